"""Run an exported Titan-Min with numpy and jax alone; `needle run` copies this file into its export folder.

    python run.py length_64.stablehlo "5 17 127 8" "3 127 9"    a position for each sequence, a line each
    python run.py length_64.stablehlo tokens.npy                the same for an array of int32 [n, T]

A sequence shorter than the program's length is padded with 0 behind its end.
"""

import argparse
from pathlib import Path

import numpy as np
from jax import export
from numpy.typing import NDArray


def logits(path: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Run the program at `path` on tokens [n, T]: logits [n, T], largest where the needle is.

    Raises ValueError for a file that is not such a program, and for sequences that are too long for it.
    """
    try:
        program = export.deserialize(bytearray(Path(path).read_bytes()))
    except OSError:
        raise
    except Exception as error:  # the reader raises many kinds
        raise ValueError(f"{path} is not an exported program: {error}") from None
    length = program.in_avals[0].shape[1]
    if tokens.shape[1] > length:
        raise ValueError(f"{path} takes sequences of at most {length} tokens, not {tokens.shape[1]}")
    padded = np.zeros((len(tokens), length), np.int32)
    padded[:, : tokens.shape[1]] = tokens
    return np.asarray(program.call(padded))[:, : tokens.shape[1]]


def main(path: Path, sequences: list[str]) -> None:
    """Print the positions of the needles."""
    if sequences[0].endswith(".npy"):
        tokens = np.load(sequences[0])
    else:
        rows = [np.array(text.split(), np.int32) for text in sequences]
        tokens = np.stack([np.pad(row, (0, max(map(len, rows)) - len(row))) for row in rows])
    print(*logits(path, tokens).argmax(1), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Find the needle in each sequence of tokens.")
    parser.add_argument("program", type=Path, help="such as length_64.stablehlo, beside this file")
    parser.add_argument("sequences", nargs="+", help='such as "5 17 127 8", or one file tokens.npy')
    options = parser.parse_args()
    try:
        main(options.program, options.sequences)
    except (OSError, ValueError) as error:
        parser.error(str(error))
