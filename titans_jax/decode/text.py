"""Tokens as text while they arrive."""

from collections.abc import Callable, Sequence


class Text:
    """The text of a sequence while its tokens arrive; half a letter or half a stop text is kept back.

    decode: token ids -> text. stop: the text ends before the first of these.

    >>> text = Text(lambda ids: bytes(ids).decode(errors="replace"), stop=["end"])
    >>> [text.add(byte) for byte in "é en. end".encode()], text.ended, text.shown
    (['', 'é', ' ', '', '', 'en.', ' ', '', '', ''], True, 'é en. ')
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ValueError("a stop text is empty; give at least one letter")
        self.decode, self.stop = decode, tuple(stop)
        self.shown, self.ended = "", False
        self._tokens: list[int] = []
        self._waiting = ""

    def add(self, token: int) -> str:
        """Add a token; returns the text that is now complete and was not returned before."""
        self._tokens.append(token)
        text = self.decode(self._tokens)
        if text.endswith("\ufffd") and len(self._tokens) < 4:  # perhaps the first bytes of a letter of up to four
            return ""
        self._tokens = []
        return self._release(self._waiting + text)

    def finish(self) -> str:
        """Returns the text that was kept back: there are no more tokens."""
        rest = "" if self.ended else self._waiting + self.decode(self._tokens)
        self._tokens, self._waiting, self.shown = [], "", self.shown + rest
        return rest

    def _release(self, text: str) -> str:
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        self.ended = bool(cuts)
        keep = min(cuts, default=len(text))
        if not cuts:
            starts = (n for n in range(len(text), 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stop))
            keep -= next(starts, 0)
        self._waiting = "" if cuts else text[keep:]
        self.shown += text[:keep]
        return text[:keep]
