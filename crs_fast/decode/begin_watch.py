"""A warning for the prompt that forgot its begin token."""

from __future__ import annotations

import warnings

import torch


class BeginWatch:
    """Notices a whole `generate` call in which no row ever held the begin token, so that nothing
    was constrained.

    Args:
        begin: the token.
    """

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self._length = self._steps = 0  # of the call that is going on
        self._seen = self._warned = False

    def look(self, input_ids: torch.Tensor) -> None:
        """One step's tokens, int64 [R, T]."""
        length = input_ids.shape[1]
        if length != self._length + 1:  # another call begins
            self.report()
            self._steps, self._seen = 0, False
        # A later step has one new token in each row.
        new = input_ids if self._steps == 0 else input_ids[:, -1:]
        self._length, self._steps = length, self._steps + 1
        if not self._seen and not self._warned:
            self._seen = bool((new == self.begin).any())

    def report(self) -> None:
        """Warn, once, if the call that has ended never saw the token. A call of one step may be
        anybody's, who asks about one row."""
        if self._steps > 1 and not self._seen and not self._warned:
            self._warned = True
            warnings.warn(
                f"SidLogitsProcessor: {self._steps} tokens were generated without a constraint, "
                f"because no row ever held vocab.begin (token {self.begin}); where an item was "
                "expected, end the prompt with it or give prompt_length",
                stacklevel=2,
            )
