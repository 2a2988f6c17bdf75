"""The report on a trained model: what it scores, what it writes, and what goes on inside while it reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from titans_jax import plots
from titans_jax.data import Tokenizer
from titans_jax.decode import generate
from titans_jax.evaluation import statistics
from titans_jax.evaluation.inside import Reading, read
from titans_jax.evaluation.page import Sample, Section, html, markdown
from titans_jax.evaluation.perplexity import Scores
from titans_jax.evaluation.positions import by_position
from titans_jax.evaluation.relevance import CUTS, relevance
from titans_jax.metrics import Progress
from titans_jax.nn import LM
from titans_jax.plots.style import write_numbers

PROMPT, MOVING = 64, 64  # tokens given before a sample, and written in the moving picture
NEAR = 32  # tokens of the map that is large enough to read
READ = 512  # tokens that are read one by one, at most: more are not legible in a picture
STEPS = 8  # of a report's progress bar


class Report:
    """Makes the report in a folder, a section at a time: pictures, report.json, report.md, report.html.

    folder: where to. model, tokenizer: what to look at. batch: held-out text as `data.held_out_batches` gives it, whose
    first row is read token by token, READ of them. facts: what stands at the top, by name.
    """

    def __init__(
        self, folder: Path, model: LM, tokenizer: Tokenizer, batch: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        self.folder, self.model, self.tokenizer, self.batch, self.facts = folder, model, tokenizer, dict(batch), facts
        pairs = zip(batch["inputs"], batch["mask"], strict=True)
        self.rows = [tokens[mask != 0] for tokens, mask in pairs if mask.any()]
        self.sections: list[Section] = []
        self.numbers: dict[str, Any] = dict(facts)

    def make(self, scores: Scores, bar: Progress, *, samples: int, length: int, temperature: float, seed: int) -> None:
        """Everything. samples: texts of `length` tokens, drawn at this temperature. bar: of STEPS steps."""
        prompt, written = self.samples(samples, length, temperature, seed)
        bar.advance()
        reading = read(self.model, self.rows[0][:READ].tolist())
        bar.advance()
        for part in (
            lambda: self.positions(scores),
            lambda: self.attention(reading),
            lambda: self.memory(reading),
            lambda: self.state(reading),
            self.relevance,
            lambda: self.animation(prompt, written),
        ):
            part()
            bar.advance()
        self.write()

    def samples(self, count: int, length: int, temperature: float, seed: int) -> tuple[Any, Any]:
        """Texts that go on from held-out text. Returns the tokens of the first prompt and of what was written."""
        prompts, rests = [], []
        for i in range(count):
            row = self.rows[i % len(self.rows)]
            size = max(1, min(PROMPT, len(row) // 2))
            start = i // len(self.rows) * size % max(len(row) - size, 1)
            prompts.append(row[start : start + size])
            rests.append(row[start + size :][:length])
        key = jax.random.key(seed)
        written = generate(self.model, prompts, length=length, temperature=temperature, key=key)
        shown = [
            Sample(*(self.tokenizer.decode(part) for part in parts))
            for parts in zip(prompts, written, rests, strict=True)
        ]
        text = f"Grey is held-out text; the rest is drawn at temperature {temperature} with seed {seed}."
        self._add("Samples", text, samples=shown, numbers=[sample._asdict() for sample in shown])
        return prompts[0], written[0]

    def positions(self, scores: Scores) -> None:
        """Loss and accuracy along the sequence."""
        found = by_position(scores)
        plots.positions_curve(found, self.folder / "positions.png")
        text = (
            "If reading more helps, the loss falls along the sequence. Where it stops falling, no more is made of it."
        )
        self._add("Position in the sequence", text, [("positions.png", "Loss and accuracy by position")], numbers=found)

    def attention(self, reading: Reading) -> None:
        """Who looks at whom."""
        seen = reading.attention
        if seen is None:
            self._add("Attention", "This model has no attention.", numbers={})
            return
        last = int(np.flatnonzero(np.isfinite(seen.key).all((1, 2)))[-1])
        maps, heads = _maps(seen), statistics.head_numbers(seen)
        plots.attention_maps(maps, self.folder / "attention.png")
        near = slice(-NEAR, None)
        part = {name: weights[last][:, near, near] for name, weights in maps.items()}
        pieces = self._pieces(reading.tokens)[near]
        plots.head_grid(part, pieces, self.folder / "attention_heads.png", layer=last)
        titles = {"distance": "mean distance, tokens", "reach": "things read at once", "read": "weight on memory"}
        titles |= {"persistent": "weight on persistent tokens"}
        shown = {title: heads[name] for name, title in titles.items() if name != "read" or "memory" in maps}
        plots.head_comparison(shown, self.folder / "head_comparison.png")
        far = {"tokens": np.asarray(seen.tokens).mean((1, 2)), "memory": np.asarray(seen.read).mean((1, 2))}
        shares = {name: far[name].sum(-1) for name in maps} | {"persistent tokens": heads["persistent"].mean(1)}
        by_distance = {name: far[name][:, : len(reading.tokens)] for name in maps}
        plots.layer_analysis(by_distance, shares, heads["reach"], self.folder / "layer_analysis.png")
        text = (
            "The weights with which each token of a held-out text read what it can see. What is missing to 1 lies on "
            "the persistent tokens, which stand in front of every text. Distance and reach are of the weight on tokens"
        )
        text += " and on what the memory gave for them." if "memory" in maps else "."
        pictures = [
            ("attention.png", "Weights of every layer and head over the text; darker is more"),
            ("attention_heads.png", f"The heads of layer {last} over the last {len(pieces)} tokens"),
            ("head_comparison.png", "How the heads differ"),
            ("layer_analysis.png", "How the layers differ"),
        ]
        self._add("Attention", text, pictures, numbers=heads)

    def memory(self, reading: Reading) -> None:
        """What the memories did with each token."""
        if reading.memory is None:
            self._add("Memory", "This model has no memory that is written.", numbers={})
            return
        layers, seen = list(reading.weights[0]), _of_layers(reading)
        look, pieces = seen.look, self._pieces(reading.tokens)
        batched = jax.tree.map(lambda x: x[:, None], look)
        plots.memory_picture(batched, self.folder / "memory.png", text=pieces)
        size = look.weight_norm
        strips = {
            "Surprise: loss before the write": look.surprise,
            "Update: log10 of the norm of what the token changed": np.log10(np.maximum(seen.change, 1e-12)),
            "Rate: the step's gate": look.rate,
            "Momentum: how much of the last step goes on": look.momentum,
            "Keep: how much is not forgotten": look.keep,
            "Norm of the fast weights, % above the first token's": 100 * (size / size[..., :1] - 1),
        }
        plots.memory_activity(strips, self.folder / "memory_activity.png", names=layers)
        learned = statistics.learned(reading)
        means = look.surprise.mean(1), seen.change.mean(1)
        plots.memory_updates(*means, reading.ends, learned, self.folder / "memory_updates.png")
        text = (
            "What the memories did while they read the same text, token by token. Surprise is the memory's own loss on "
            "a token before it is written; the update is the norm of all that the token changed in the fast weights, "
            "forgetting included. Fast weights are looked at after every chunk."
        )
        pictures = [
            ("memory.png", "Surprise, gradients, momentum and weights, with the most surprising letters"),
            ("memory_activity.png", "Every layer and memory over the text"),
            ("memory_updates.png", "Sizes of updates, and what the weights became"),
        ]
        numbers = {name: x.mean((1, 2)) for name, x in look._asdict().items()}
        numbers |= {"change": seen.change.mean((1, 2)), "ends": reading.ends, "layers": layers}
        self._add("Memory", text, pictures, numbers=numbers | {n: list(x.values()) for n, x in learned.items()})

    def state(self, reading: Reading) -> None:
        """What is carried from token to token."""
        panels: dict[str, Any] = {}
        pictures = []
        if reading.memory is not None:
            plots.memory_state(reading.weights[0], reading.weights[-1], self.folder / "memory_state.png")
            pictures.append(("memory_state.png", "The memories' matrices at the end, and what the text has changed"))
            if np.isfinite(reading.memory.key).any():
                panels = {"memory keys, before normalising": reading.memory.key, "memory values": reading.memory.value}
        if reading.attention is not None:
            panels = {"attention keys": reading.attention.key} | panels
        if panels:
            panels = {title: np.asarray(x) for title, x in panels.items()}
            plots.norms(panels, self.folder / "key_norms.png")
            pictures.append(("key_norms.png", "Norms of keys and values by layer and head"))
        text = "What the model carries from token to token: fast weights, and keys with their values."
        if {"hope", "hope_attention"} & set(self.model.config.pattern):
            text += " Not shown: the keys that HOPE's memories make for themselves, and the MLPs that learn."
        numbers = {title: np.median(x, -1) for title, x in panels.items()}
        self._add("State", text, pictures, numbers=numbers)

    def relevance(self) -> None:
        """What it costs to do without the memories."""
        found = relevance(self.model, self.batch)
        plots.relevance_bars(found, self.folder / "relevance.png")
        meant = [f"Without {name}: {CUTS[name]}" for name in found]
        text = f"One part of one layer is cut out, and the rest reads on. {'. '.join(meant)}."
        self._add("Relevance", text, [("relevance.png", "What it costs to do without each part")], numbers=found)

    def animation(self, prompt: Any, written: Any) -> None:
        """Attention and memory while the first sample was written."""
        tokens = np.concatenate([prompt, written[:MOVING]])
        reading = read(self.model, tokens.tolist())
        memory = None
        if reading.memory is not None:
            parts = {"Surprise": reading.memory.look.surprise, "Norm of the update": reading.memory.change}
            memory = {title: np.asarray(x).mean(1) for title, x in parts.items()}
        plots.generation(
            self._pieces(tokens),
            self.folder / "generation.gif",
            prompt=len(prompt),
            attention=None if reading.attention is None else _maps(reading.attention),
            memory=memory,
        )
        text = "The first sample as it is written: a picture for every token, means over heads where it says no other."
        pictures = [("generation.gif", "Attention and memory while text is written")]
        self._add("While it writes", text, pictures, numbers={"tokens": tokens})

    def write(self) -> None:
        """report.json, report.md, report.html."""
        facts = {name: f"{x:.4f}" if isinstance(x, float) else f"{x}" for name, x in self.facts.items()}
        title = f"Report on {self.facts['checkpoint']}"
        write_numbers(self.folder / "report.json", self.numbers)
        (self.folder / "report.md").write_text(markdown(title, facts, self.sections), encoding="utf-8")
        (self.folder / "report.html").write_text(html(title, facts, self.sections, self.folder), encoding="utf-8")

    def _add(self, title: str, text: str, pictures: Any = (), samples: Any = (), *, numbers: Any) -> None:
        self.sections.append(Section(title, text, pictures, samples))
        self.numbers[title.lower().replace(" ", "_")] = numbers

    def _pieces(self, tokens: Any) -> list[str]:
        return [self.tokenizer.decode([int(token)]) for token in tokens]


def _maps(seen: Any) -> dict[str, Any]:
    """What attention can read, as maps [layers, heads, T, T]."""
    maps = {"tokens": statistics.square(seen.tokens)}
    if np.nansum(seen.read) > 0:
        maps["memory"] = statistics.square(seen.read)
    return maps


def _of_layers(reading: Reading) -> Any:
    """What the layers that have a memory show."""
    layers = list(reading.weights[0])
    return jax.tree.map(lambda x: x[layers], reading.memory)
