"""The text of a reply while its tokens arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crs_fast.crs.sequence import SequenceBuilder

_INCOMPLETE = "�"  # how the first bytes of a character are decoded


class ReplyText:
    """Turns the tokens of one reply into deltas of its text. All deltas together are what
    `SequenceBuilder.decode` makes of all tokens.

        text = ReplyText(builder, titles)
        while writing: show(text.push(tokens))        # all tokens so far
        show(text.finish(tokens))

    An item's title appears when its semantic ID is closed, a character when its bytes are there.
    """

    def __init__(self, builder: SequenceBuilder, titles: Mapping[str, str]) -> None:
        self.builder, self.titles = builder, titles
        self._start = self._shown = 0  # tokens that what follows is decoded with; tokens shown
        self._text = ""  # what was shown
        self._space = ""  # white space that ends the reply if nothing follows

    def push(self, tokens: Sequence[int]) -> str:
        """What can be shown more, now that the reply has these tokens; each is decoded once or
        twice, and not all of them each time."""
        stop = self._before_open_item(tokens)
        if stop <= self._shown:
            return ""
        # Many tokenizers drop the space before the first token that they decode.
        before = self.builder.decode_part(tokens[self._start : self._shown], self.titles)
        whole = self.builder.decode_part(tokens[self._start : stop], self.titles)
        if whole.endswith(_INCOMPLETE) or len(whole) <= len(before):
            return ""
        self._start, self._shown = self._shown, stop
        return self._show(whole[len(before) :])

    def finish(self, tokens: Sequence[int]) -> str:
        """The rest of the text."""
        whole = self.builder.decode(tokens, self.titles)
        return whole[len(self._text) :] if whole.startswith(self._text) else ""

    def _before_open_item(self, tokens: Sequence[int]) -> int:
        """How many tokens stand before an item that is not closed yet."""
        for place in range(len(tokens) - 1, self._shown - 1, -1):
            if tokens[place] == self.builder.end:
                break
            if tokens[place] == self.builder.begin:
                return place
        return len(tokens)

    def _show(self, text: str) -> str:
        """The text without white space at the ends of the reply."""
        text = self._space + text if self._text else text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        self._text += shown
        return shown
