"""Continue a prompt with an exported model: python run.py PROMPT [TOKENS]. Needs jax, flatbuffers and safetensors."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file


def generate(folder: Path, prompt: list[list[int]], length: int) -> list[list[int]]:
    """The likeliest `length` tokens after each prompt; all prompts have one length, all tokens one cost.

    The state is a list of arrays of constant size: keep it to continue later.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    params = load_file(folder / "model.safetensors")

    def function(name: str) -> Any:
        return jax.jit(jax.export.deserialize(bytearray((folder / f"{name}.jax").read_bytes())).call)

    init, prefill, decode = (function(name) for name in ("init_state", "prefill", "decode"))
    tokens, segment = np.asarray(prompt, np.int32), manifest["segment"]
    state = init(params, np.zeros(len(tokens), np.int32))
    whole = tokens.shape[1] // segment * segment
    for at in range(0, whole, segment):
        logits, state = prefill(params, state, tokens[:, at : at + segment])
    for at in range(whole, tokens.shape[1]):
        logits, state = decode(params, state, tokens[:, at])
    written = []
    for _ in range(length):
        written.append(np.asarray(logits).argmax(-1).astype(np.int32))
        logits, state = decode(params, state, written[-1])
    return np.stack(written, 1).tolist()


def main(folder: Path, prompt: str, length: int) -> None:
    """Print the prompt and its continuation."""
    if (folder / "tokenizer.json").is_file():
        import tokenizers

        model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        separator = model.get_vocab_size()  # the last id of a titans_jax vocabulary; it has no text
        [written] = generate(folder, [model.encode(prompt, add_special_tokens=False).ids], length)
        print(prompt + model.decode([index for index in written if index < separator], skip_special_tokens=False))
    else:
        [written] = generate(folder, [list(prompt.encode())], length)
        print(prompt + bytes(index for index in written if index != 255).decode(errors="replace"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Continue a prompt with the model in this folder.")
    parser.add_argument("prompt")
    parser.add_argument("tokens", nargs="?", type=int, default=100, help="tokens to write (default %(default)s)")
    options = parser.parse_args()
    if not options.prompt or options.tokens < 1:
        parser.error("the prompt needs at least one byte, and tokens must be at least 1")
    main(Path(__file__).parent, options.prompt, options.tokens)
