"""The model card: the model, its training data, its scores, and how to load it."""

from collections.abc import Mapping
from typing import Any

from titans_jax.config import Experiment
from titans_jax.nn import ModelConfig

_MEASURED = {
    "bits_per_byte": "bits per byte",
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "accuracy": "accuracy of the next token",
    "tokens": "held-out tokens scored",
}


def model_card(
    experiment: Experiment,
    step: int,
    *,
    parameters: int,
    corpus: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> str:
    """The text of a README.md, with the run's own numbers only.

    corpus: `data.provenance` of the training text. evaluation: scores on held-out text at this step, or None.
    """
    model, data = experiment.model, experiment.data
    source = "\n".join(f"- {name}: {value}" for name, value in corpus.items())
    tokens = "bytes" if data.tokenizer == "bytes" else "tokenizer.json"
    held_out = "the corpus' own part" if data.split == "test" else f"{data.held_out:.0%}, split `{data.split}`"
    return f"""---
library_name: titans_jax
pipeline_tag: text-generation
---

# {experiment.name}

{_kind(model)}, {parameters:,} parameters, {model.depth} layers of width {model.dim}, a vocabulary of {model.vocab_size}
({tokens}). Exported at step {step}. Its state has one size, however long the text is.

## Trained on

{source}
- corpus: {data.corpus}
- held out: {held_out}, or the corpus' own validation part if it has one
- read: {step:,} batches of {data.batch} x {data.sequence} tokens, seed {experiment.train.seed}

The licence above is that of the text. No licence of the weights is given here.

## Measured

{_table(evaluation)}

One run with one seed, on text of the same corpus. Nothing else was measured. Nobody checks what the model writes, and
a model of this size should not be relied on.

## Load

```python
from titans_jax import data, training
from titans_jax.decode import generate

experiment, model, step = training.load("FOLDER")
tokenizer = data.load_tokenizer(experiment.data.tokenizer)
print(tokenizer.decode(generate(model, [tokenizer.encode("The ")], length=100, temperature=0)[0]))
```

`titans-jax eval`, `titans-jax generate` take `--checkpoint FOLDER`. `model.safetensors` holds the parameters by name,
matrices [in, out], layers stacked on the first axis; `config.json` the experiment that made them.
"""


def _kind(model: ModelConfig) -> str:
    named = {"lmm": "LMM", "mac": "Titans (memory as context)", "mag": "Titans (memory as a gate)"}
    named |= {"mal": "Titans (memory as a layer)", "transformer": "A transformer", "hope": "HOPE"}
    kind = named.get(model.block, f"Layers {model.block}")
    return kind if model.block in ("transformer", "hope_attention") else f"{kind}, memory rule `{model.memory.rule}`"


def _table(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Nothing: there was no evaluation at this step."
    rows = [f"| {text} | {evaluation[name]:.6g} |" for name, text in _MEASURED.items() if name in evaluation]
    memory = [f"\nIn evaluation {evaluation['reset']}."] if "reset" in evaluation else []
    return "\n".join(["| held-out text | |", "| --- | --- |", *rows, *memory])
