"""Tokens of a text that is never whole in memory: the same as those of the whole text, from any position on."""

import io

import numpy as np
import pytest

from titans_jax.data import BYTES, Position, token_blocks, train_bpe

TEXT = (
    "Call me Ishmael. Some years ago\t — never mind how long  precisely — having «little» or no money,\n\n"
    "  naïve 🐋🐋 sea."
)
UNBROKEN = "鯨" * 50


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_bpe([TEXT] * 3, 300, tmp_path_factory.mktemp("bpe") / "tokenizer.json")


class Slow(io.RawIOBase):
    """A pipe: it cannot be sought, and tells when it is read ahead of what is asked for."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.given, self.most = raw, 0, 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "read to its end"
        self.most = max(self.most, size)
        piece = self.raw[self.given : self.given + size]
        self.given += len(piece)
        return piece


def tokens_of(raw: bytes, tokenizer, size: int, position: Position | None = None, piece: int = 16):
    return list(token_blocks(Slow(raw), tokenizer, size, position, piece=piece))


@pytest.mark.parametrize("text", [TEXT, UNBROKEN])
@pytest.mark.parametrize("piece", [5, 16, 1000])
def test_blocks_are_the_text(text, piece):
    found = tokens_of(text.encode(), BYTES, 7, piece=piece)
    assert {len(block) for block, _ in found[:-1]} == {7} and 0 < len(found[-1][0]) <= 7
    np.testing.assert_array_equal(np.concatenate([block for block, _ in found]), BYTES.encode(text))


@pytest.mark.parametrize("piece", [24, 40, 1000])
def test_words_stay_whole(bpe, piece):
    found = tokens_of(TEXT.encode(), bpe, 5, piece=piece)
    np.testing.assert_array_equal(np.concatenate([block for block, _ in found]), bpe.encode(TEXT))


def test_what_has_no_spaces_comes_back_all_the_same(bpe):
    found = tokens_of(UNBROKEN.encode(), bpe, 5)
    assert bpe.decode(np.concatenate([block for block, _ in found])) == UNBROKEN


def test_reading_goes_on_at_any_position(bpe):
    for tokenizer in (BYTES, bpe):
        whole = tokens_of(TEXT.encode(), tokenizer, 5)
        for i, (_, position) in enumerate(whole):
            rest = tokens_of(TEXT.encode(), tokenizer, 5, position)
            assert [(block.tolist(), at) for block, at in rest] == [(b.tolist(), at) for b, at in whole[i + 1 :]]


def test_a_file_that_has_grown_is_read_on():
    position = tokens_of(b"abcdef", BYTES, 4)[-1][1]
    assert [block.tolist() for block, _ in tokens_of(b"abcdefgh", BYTES, 4, position)] == [[103, 104]]


@pytest.mark.parametrize("other", ["x" + TEXT[1:], TEXT[:60] + "x" + TEXT[61:], TEXT[:40], ""])
def test_another_text_is_refused(other):
    position = tokens_of(TEXT.encode(), BYTES, 70)[0][1]
    with pytest.raises(ValueError, match="the text differs from the one that was read"):
        tokens_of(other.encode(), BYTES, 70, position)


@pytest.mark.parametrize("at", [0, 40])
def test_what_is_no_utf8_is_named_by_its_byte(at):
    raw = TEXT.encode()[:30] * 2
    with pytest.raises(ValueError, match=f"not UTF-8 text: invalid start byte at byte {at}$"):
        tokens_of(raw[:at] + b"\xff" + raw[at:], BYTES, 7)


def test_a_byte_order_mark_is_no_text():
    for piece in (4, 1000):
        found = tokens_of(b"\xef\xbb\xbf a\xef\xbb\xbf", BYTES, 3, piece=piece)
        assert np.concatenate([block for block, _ in found]).tolist() == [32, 97, 0xEF, 0xBB, 0xBF]
    assert tokens_of(b"\xef\xbb\xbf a\xef\xbb\xbf", BYTES, 3, found[0][1])[0][0].tolist() == [0xBB, 0xBF]


def test_nothing_gives_no_block():
    assert tokens_of(b"", BYTES, 4) == []
