"""Tokens as text while they arrive."""

from collections.abc import Callable, Sequence


class Text:
    """A row's text while its tokens arrive: what is sure is handed on, half a letter or half a stop text waits.

    decode: token ids -> text. stop: texts before which the row ends.

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
        """Take a token; the text that is sure by now and was not handed on before."""
        self._tokens.append(token)
        text = self.decode(self._tokens)
        if text.endswith("\ufffd") and len(self._tokens) < 4:  # perhaps the first bytes of a letter of up to four
            return ""
        self._tokens = []
        return self._hand_on(self._waiting + text)

    def finish(self) -> str:
        """What was still waiting: there are no more tokens."""
        rest = "" if self.ended else self._waiting + self.decode(self._tokens)
        self._tokens, self._waiting, self.shown = [], "", self.shown + rest
        return rest

    def _hand_on(self, text: str) -> str:
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        self.ended = bool(cuts)
        keep = min(cuts, default=len(text))
        if not cuts:
            starts = (n for n in range(len(text), 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stop))
            keep -= next(starts, 0)
        self._waiting = "" if cuts else text[keep:]
        self.shown += text[:keep]
        return text[:keep]
