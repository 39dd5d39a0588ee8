"""What the model has read of conversations, kept under a memory limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from crs_fast.decode.lm.kept_tokens import KeptTokens


class Conversations:
    """Keys and values of each conversation's tokens; the least recently used ones are dropped.

    Args:
        limit: the most bytes that all take together; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._kept: OrderedDict[str, KeptTokens] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def length(self, name: str | None) -> int:
        """The number of tokens that are kept of a conversation."""
        kept = None if name is None else self._kept.get(name)
        return 0 if kept is None else len(kept.ids)

    def find(self, name: str | None, context: Sequence[int]) -> tuple[KeptTokens, int] | None:
        """What is kept of a conversation, and how many tokens it shares with the beginning of a
        context, at most all but the last; None where they share none."""
        kept = None if name is None else self._kept.get(name)
        if name is None or kept is None:
            return None
        self._kept.move_to_end(name)
        longest = min(len(kept.ids), len(context) - 1)
        shared = next(
            (n for n in range(longest) if kept.ids[n] != context[n]),
            longest,
        )
        return (kept, shared) if shared else None

    def keep(self, name: str, tokens: KeptTokens) -> None:
        """Keep the tokens in place of what the conversation had."""
        self.forget(name)
        if tokens.nbytes > self.limit:
            return
        self._kept[name] = tokens
        self.nbytes += tokens.nbytes
        while self.nbytes > self.limit:
            self.forget(next(iter(self._kept)))

    def forget(self, name: str) -> None:
        """Drop a conversation, if it is there."""
        dropped = self._kept.pop(name, None)
        if dropped is not None:
            self.nbytes -= dropped.nbytes
