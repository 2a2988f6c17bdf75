"""Text while its tokens arrive: every letter once, and nothing of what it stops before."""

import pytest

from titans_jax.decode import Text


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_text_hands_on_every_letter_once(stop):
    source = "naïve — “quoted” 🐋 end"
    text = Text(lambda ids: bytes(ids).decode(errors="replace"), stop)
    pieces = [text.add(byte) for byte in source.encode()]
    pieces.append(text.finish())
    assert "".join(pieces) == text.shown == source
    assert "\ufffd" not in "".join(pieces)


def test_text_ends_before_the_first_stop_text_and_never_shows_a_part_of_it():
    text = Text(lambda ids: bytes(ids).decode(errors="replace"), ("END", "ENDING", "E."))
    shown = ""
    for byte in b"the EN of the END of it":
        shown += text.add(byte)
        assert "END" not in shown
        if text.ended:
            break
    assert shown + text.finish() == text.shown == "the EN of the "


def test_text_that_is_no_utf8_comes_through():
    text = Text(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [text.add(byte) for byte in b"\xff\xff\xff\xff\xffok"]
    assert "".join(pieces) + text.finish() == "\ufffd" * 5 + "ok"
