"""The report on a trained model: its scores, its samples, and what its layers do while it reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from titans_jax import files, plots
from titans_jax.data import Tokenizer
from titans_jax.decode import generate
from titans_jax.evaluation import statistics
from titans_jax.evaluation.ablation import CUTS, ablate
from titans_jax.evaluation.findings import findings
from titans_jax.evaluation.html import Sample, Section, to_html, to_markdown
from titans_jax.evaluation.introspect import Reading, read
from titans_jax.evaluation.perplexity import Scores, by_position
from titans_jax.metrics import Progress
from titans_jax.nn import LM
from titans_jax.plots.style import write_numbers

PROMPT, ANIMATED = 64, 64  # tokens of a sample's prompt, and written tokens in the animation
NEAR = 32  # tokens of the attention map with legible letters
READ = 512  # most tokens that are read one by one: more are not legible in a picture
STEPS = 8  # of a report's progress bar


class Report:
    """Makes the report, section by section: pictures, report.json, report.md, report.html.

    Args:
      folder: for the files.
      model, tokenizer: the report's subject.
      batch: held-out text as from `data.held_out_batches`; the first READ tokens of its first row are read one by one.
      facts: the table at the top, by name.
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
        """Make all sections and write the report, in STEPS steps of `bar`.

        samples: how many texts of `length` tokens to draw, at this temperature.
        """
        prompt, written = self.samples(samples, length, temperature, seed)
        bar.advance()
        reading = read(self.model, self.rows[0][:READ].tolist())
        bar.advance()
        for part in (
            lambda: self.positions(scores),
            lambda: self.attention(reading),
            lambda: self.memory(reading),
            lambda: self.state(reading),
            self.ablation,
            lambda: self.animation(prompt, written),
        ):
            part()
            bar.advance()
        self.write()

    def samples(self, count: int, length: int, temperature: float, seed: int) -> tuple[Any, Any]:
        """Continue held-out text. Returns the tokens of the first prompt and of its continuation."""
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
        """Loss and accuracy by position in the sequence."""
        found = by_position(scores)
        plots.positions_curve(found, self.folder / "positions.png")
        text = "The loss falls along the sequence as long as a longer context helps the model to predict."
        self._add("Position in the sequence", text, [("positions.png", "Loss and accuracy by position")], numbers=found)

    def attention(self, reading: Reading) -> None:
        """What each token attends to."""
        attended = reading.attention
        if attended is None:
            self._add("Attention", "This model has no attention.", numbers={})
            return
        last = int(np.flatnonzero(np.isfinite(attended.key).all((1, 2)))[-1])
        maps, heads = _maps(attended), statistics.head_numbers(attended)
        plots.attention_maps(maps, self.folder / "attention.png")
        near = slice(-NEAR, None)
        part = {name: weights[last][:, near, near] for name, weights in maps.items()}
        pieces = self._pieces(reading.tokens)[near]
        plots.head_grid(part, pieces, self.folder / "attention_heads.png", layer=last)
        titles = {"distance": "mean distance, tokens", "reach": "things read at once", "read": "weight on memory"}
        titles |= {"persistent": "weight on persistent tokens"}
        shown = {title: heads[name] for name, title in titles.items() if name != "read" or "memory" in maps}
        plots.head_comparison(shown, self.folder / "head_comparison.png")
        far = {"tokens": np.asarray(attended.tokens).mean((1, 2)), "memory": np.asarray(attended.read).mean((1, 2))}
        shares = {name: far[name].sum(-1) for name in maps} | {"persistent tokens": heads["persistent"].mean(1)}
        by_distance = {name: far[name][:, : len(reading.tokens)] for name in maps}
        plots.layer_analysis(by_distance, shares, heads["reach"], self.folder / "layer_analysis.png")
        text = (
            "The attention weights of each token of a held-out text. The weights that are missing to 1 are on the "
            "persistent tokens in front of every text. Distance and reach are of the weights on tokens"
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
        layers, pieces = list(reading.weights[0]), self._pieces(reading.tokens)
        info, change = jax.tree.map(lambda x: x[layers], (reading.memory.info, reading.memory.change))
        plots.memory_picture(info, self.folder / "memory.png", text=pieces)
        strips = {
            "Surprise: loss before the write": info.surprise,
            "Update: log10 of the norm of what the token changed": np.log10(np.maximum(change, 1e-12)),
            "Rate: the gate of the step": info.rate,
            "Momentum: how much of the last step is kept": info.momentum,
            "Keep: how much of the memory is kept": info.keep,
            "Norm of the fast weights, % above the first token's": 100
            * (info.weight_norm / info.weight_norm[..., :1] - 1),
        }
        plots.memory_activity(strips, self.folder / "memory_activity.png", names=layers)
        learned = statistics.learned(reading)
        means = info.surprise.mean(1), change.mean(1)
        plots.memory_updates(*means, reading.ends, learned, self.folder / "memory_updates.png")
        text = (
            "What the memories did while they read the same text, token by token. Surprise is the memory's own loss on "
            "a token before it is written. The update is the norm of the token's change of the fast weights, "
            "forgetting included. Fast weights are compared after every chunk."
        )
        pictures = [
            ("memory.png", "Surprise, gradients, momentum and weights, with the most surprising letters"),
            ("memory_activity.png", "Every layer and memory over the text"),
            ("memory_updates.png", "Sizes of updates, and what the weights became"),
        ]
        numbers = {name: x.mean((1, 2)) for name, x in info._asdict().items()}
        numbers |= {"change": change.mean((1, 2)), "ends": reading.ends, "layers": layers}
        self._add("Memory", text, pictures, numbers=numbers | {n: list(x.values()) for n, x in learned.items()})

    def state(self, reading: Reading) -> None:
        """What the model carries from token to token."""
        panels: dict[str, Any] = {}
        pictures = []
        if reading.memory is not None:
            plots.memory_state(reading.weights[0], reading.weights[-1], self.folder / "memory_state.png")
            pictures.append(("memory_state.png", "The memories' matrices at the end, and their change by the text"))
            if np.isfinite(reading.memory.key).any():
                key, value = (np.linalg.norm(x, axis=-1) for x in (reading.memory.key, reading.memory.value))
                panels = {"memory keys, before normalising": key, "memory values": value}
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

    def ablation(self) -> None:
        """The cost of removing parts of layers."""
        found = ablate(self.model, self.batch)
        plots.ablation_bars(found, self.folder / "ablation.png")
        meanings = [f"Without {name}: {CUTS[name]}" for name in found]
        text = f"One part of one layer is removed, and the rest runs unchanged. {'. '.join(meanings)}."
        self._add("Ablation", text, [("ablation.png", "The cost of removing each part")], numbers=found)

    def animation(self, prompt: Any, written: Any) -> None:
        """Attention and memory while the first sample was written."""
        tokens = np.concatenate([prompt, written[:ANIMATED]])
        reading = read(self.model, tokens.tolist())
        memory = None
        if reading.memory is not None:
            parts = {"Surprise": reading.memory.info.surprise, "Norm of the update": reading.memory.change}
            memory = {title: np.asarray(x).mean(1) for title, x in parts.items()}
        plots.generation(
            self._pieces(tokens),
            self.folder / "generation.gif",
            prompt=len(prompt),
            attention=None if reading.attention is None else _maps(reading.attention),
            memory=memory,
        )
        text = "The first sample while the model writes it, a frame per token. Unlabelled values are means over heads."
        pictures = [("generation.gif", "Attention and memory while the model writes")]
        self._add("While it writes", text, pictures, numbers={"tokens": tokens})

    def write(self) -> None:
        """Write report.json, report.md and report.html."""
        facts = {name.replace("_", " "): _shown(x) for name, x in self.facts.items()}
        self.sections.insert(0, Section("Findings", findings(self.numbers)))
        title = f"Report on {self.facts['checkpoint']}"
        write_numbers(self.folder / "report.json", self.numbers)
        files.write(self.folder / "report.md", to_markdown(title, facts, self.sections))
        files.write(self.folder / "report.html", to_html(title, facts, self.sections, self.folder))

    def _add(self, title: str, text: str, pictures: Any = (), samples: Any = (), *, numbers: Any) -> None:
        self.sections.append(Section(title, text, pictures, samples))
        self.numbers[title.lower().replace(" ", "_")] = numbers

    def _pieces(self, tokens: Any) -> list[str]:
        return [self.tokenizer.decode([int(token)]) for token in tokens]


def _shown(fact: Any) -> str:
    if isinstance(fact, int) and not isinstance(fact, bool):
        return f"{fact:,}"
    return f"{fact:.4f}" if isinstance(fact, float) else f"{fact}"


def _maps(attended: Any) -> dict[str, Any]:
    """The attention weights as maps [layers, heads, T, T], by what is read."""
    maps = {"tokens": statistics.square(attended.tokens)}
    if np.nansum(attended.read) > 0:
        maps["memory"] = statistics.square(attended.read)
    return maps
