"""What the model has read of conversations, kept under a memory limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from crs_fast.decode.lm.kept_tokens import KeptTokens

# Conversations that begin with these many tokens alike may share what was read.
_BEGINNING = 16
# The most conversations with the same beginning that are looked at.
_LOOKED_AT = 8


class Conversations:
    """Keys and values of each conversation's tokens; the least recently used ones are dropped.

    A conversation that is new takes over what another one has of the same beginning: instructions,
    or the same first messages.

    Args:
        limit: the most bytes that all take together; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._kept: OrderedDict[str, KeptTokens] = OrderedDict()
        # The names of the conversations with each beginning, the latest last.
        self._names: dict[tuple[int, ...], dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def length(self, name: str | None) -> int:
        """The number of tokens that are kept of a conversation."""
        kept = None if name is None else self._kept.get(name)
        return 0 if kept is None else len(kept.ids)

    def find(self, name: str | None, context: Sequence[int]) -> tuple[KeptTokens, int] | None:
        """What can be reused for a context: what is kept of its conversation, or else of another
        one, and how many tokens at its beginning are the context's, at most all but the last. None
        where nothing can."""
        if name is not None and name in self._kept:
            self._kept.move_to_end(name)
            if shared := _shared(self._kept[name].ids, context):
                return self._kept[name], shared
        others = list(self._names.get(_beginning(context), ()))[-_LOOKED_AT:]
        reusable = [(self._kept[one], _shared(self._kept[one].ids, context)) for one in others]
        best = max(reusable, key=lambda pair: pair[1], default=None)
        return best if best and best[1] else None

    def keep(self, name: str, tokens: KeptTokens) -> None:
        """Keep the tokens in place of what the conversation had."""
        self.forget(name)
        if tokens.nbytes > self.limit:
            return
        self._kept[name] = tokens
        self._names.setdefault(_beginning(tokens.ids), {})[name] = None
        self.nbytes += tokens.nbytes
        while self.nbytes > self.limit:
            self.forget(next(iter(self._kept)))

    def forget(self, name: str) -> None:
        """Drop a conversation, if it is there."""
        dropped = self._kept.pop(name, None)
        if dropped is None:
            return
        self.nbytes -= dropped.nbytes
        beginning = _beginning(dropped.ids)
        del self._names[beginning][name]
        if not self._names[beginning]:
            del self._names[beginning]


def _beginning(tokens: Sequence[int]) -> tuple[int, ...]:
    return tuple(tokens[:_BEGINNING])


def _shared(kept: Sequence[int], context: Sequence[int]) -> int:
    """How many tokens at their beginnings are the same, at most all of the context but the last."""
    longest = min(len(kept), len(context) - 1)
    if kept[:longest] == context[:longest]:  # the usual case, at the speed of C
        return longest
    return next(n for n in range(longest) if kept[n] != context[n])
