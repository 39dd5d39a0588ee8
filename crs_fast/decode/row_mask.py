"""The constraint on rows of logits inside somebody else's inference engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crs_fast.ops import FilterTensors
from crs_fast.ops.trie import trie_mask_
from crs_fast.ops.trie.nodes import allowed
from crs_fast.trie import Grammar, ItemFilter, SidTrie, Vocabulary

# No token: what stands before a row's first one, and what opens a SID without a begin token.
_BEFORE = -1
_OPENS = -3


class RowMask:
    """Masks logits of an engine's batch, in which rows come and go and are of any length.

    A row is known by its last tokens alone (`window`), so nothing is kept between steps. Unlike
    `SidLogitsProcessor`, which may stop a `generate` call, it never raises because of what a row
    holds: a server has other people's rows beside it. A row whose open semantic ID (SID) is not the
    prefix of an allowed item's goes on as free text, in which no code may stand.

    Args:
        trie, vocab: as in `SidLogitsProcessor`.
        device: where the logits will be.
        eos_token_id: the token after a whole SID where `vocab.end` and `vocab.eos` are None.

    Raises:
        ValueError: no token is known that ends a SID.
    """

    def __init__(
        self,
        trie: SidTrie,
        vocab: Vocabulary | None,
        device: torch.device | str = "cpu",
        eos_token_id: int | None = None,
    ) -> None:
        self.vocab = trie.vocabulary(vocab, "RowMask")
        self.trie = trie.to(device)
        self.tokens = self.vocab.tensors(torch.device(device), eos_token_id)
        self.begins_by_token = self.vocab.begin is not None
        self._begin = _OPENS if self.vocab.begin is None else self.vocab.begin
        if self.tokens.terminator < 0:
            raise ValueError(
                "RowMask: vocab.end, vocab.eos or eos_token_id must be set: it follows a whole SID "
                "(got none)"
            )
        self.grammar = Grammar(
            self.trie,
            self.vocab,
            None,
            self._begin,
            self.tokens.terminator,
            self.vocab.text_follows,
        )

    @property
    def width(self) -> int:
        """The number of last tokens that say where a row stands: begin, the codes, the end."""
        return self.trie.num_levels + 2

    def window(self, prompt: Sequence[int], output: Sequence[int]) -> list[int]:
        """The last `width` tokens of prompt and output."""
        tail = list(output[-self.width :])
        missing = self.width - len(tail)
        head = list(prompt[-missing:]) if missing else []
        return [*[_BEFORE] * (missing - len(head)), *head, *tail]

    def apply_(
        self,
        logits: torch.Tensor,
        windows: torch.Tensor,
        written: torch.Tensor,
        filters: Sequence[ItemFilter | None] | None = None,
    ) -> torch.Tensor:
        """Write -inf, in place, over every token that may not follow.

        Args:
            logits: float [R, V].
            windows: the last tokens of each row, int64 [R, `width`], -1 before its first one.
            written: int64 [R]. Where it is not negative, a SID opens that many tokens before the
                row's end, with or without a begin token there.
            filters: the items that each row may name, one `ItemFilter` per row over this trie, on
                its device; None allows all.

        Returns:
            `logits`.
        """
        nodes = self.grammar.read(self._opened(windows, written)).nodes
        if filters is None or all(f is None for f in filters):
            return trie_mask_(logits, nodes, self.trie.tensors, self.tokens)
        stacked = ItemFilter.stack(filters).over(self.trie).tensors
        rows = torch.arange(len(filters), device=nodes.device)
        legal = allowed(self.trie.tensors, stacked, rows, nodes.clamp(min=0))
        nodes = torch.where((nodes > 0) & ~legal, -1, nodes)
        trie_mask_(logits, nodes, self.trie.tensors, self.tokens, stacked)
        if self.vocab.begin is not None:
            self._forbid_begin(logits, nodes, stacked)
        return logits

    def _opened(self, windows: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """The windows with a begin token where `written` says that a SID opens."""
        width, begin = self.width, self._begin
        opening = (width - 1 - written)[:, None]  # [R, 1]
        place = torch.arange(width, device=windows.device)
        windows = torch.where((written >= 0)[:, None] & (place == opening), begin, windows)
        if self.vocab.text_follows:
            return windows
        # The opening is out of sight, and nothing may follow the SID but its terminator.
        over = (written >= width)[:, None]
        windows = torch.where(over & (place == width - 2), begin, windows)
        return torch.where(over & (place == width - 1), self.grammar.terminator, windows)

    def _forbid_begin(
        self, logits: torch.Tensor, nodes: torch.Tensor, filters: FilterTensors
    ) -> None:
        """Keep the begin token out of text where the filter allows nothing."""
        is_empty = ~filters.words.bool().any(1)  # [R]
        column = logits[:, self.vocab.begin]
        column.masked_fill_(is_empty & (nodes < 0), -torch.inf)
