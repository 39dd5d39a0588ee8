"""The constraint on rows of logits inside somebody else's inference engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crs_fast.ops import FilterTensors
from crs_fast.ops.trie import trie_mask_
from crs_fast.ops.trie.nodes import allowed
from crs_fast.trie import Grammar, ItemFilter, SidTrie, Vocabulary

from .begins import Begins

# No token: what stands before a row's first one.
_BEFORE = -1


class RowMask:
    """Masks logits of an engine's batch, in which rows come and go and are of any length.

    A row is known by its last tokens alone (`window`); nothing is kept of it between steps. Unlike
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
        # The filters of the last step, their bitmaps, and which of them allow nothing, bool [F].
        self._stacked: tuple[list[ItemFilter], FilterTensors, torch.Tensor] | None = None
        self.tokens = self.vocab.tensors(torch.device(device), eos_token_id)
        self.begins_by_token = bool(self.vocab.begins)
        self._begins = Begins(self.trie, self.vocab)
        if self.tokens.terminator < 0:
            raise ValueError(
                "RowMask: vocab.end, vocab.eos or eos_token_id must be set: it follows a whole SID "
                "(got none)"
            )
        self.grammar = Grammar(
            self.trie,
            self.vocab,
            None,
            self.vocab.begins,
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
        with self.trie.reading():
            nodes = self._nodes(windows, written)
            if filters is None or all(f is None for f in filters):
                trie_mask_(logits, nodes, self.trie.tensors, self.tokens)
                self._begins.forbid_(logits, nodes, None, nodes, None)
                return logits
            bitmaps, is_empty, of_row = self._bitmaps(filters)
            legal = allowed(self.trie.tensors, bitmaps, of_row, nodes.clamp(min=0))
            nodes = torch.where((nodes > 0) & ~legal, -1, nodes)
            trie_mask_(logits, nodes, self.trie.tensors, self.tokens, bitmaps, of_row)
            self._begins.forbid_(logits, nodes, bitmaps, of_row, is_empty)
        return logits

    def _bitmaps(
        self, filters: Sequence[ItemFilter | None]
    ) -> tuple[FilterTensors, torch.Tensor, torch.Tensor]:
        """The bitmaps of the filters, each once, which of them allow nothing, and which of them
        each row takes, int64 [R], -1 for none. Those of the last step are kept: most batches stay
        as they are."""
        places: dict[int, int] = {}
        different: list[ItemFilter] = []
        for one in filters:
            if one is not None and id(one) not in places:
                places[id(one)] = len(different)
                different.append(one)
        if self._stacked is None or list(map(id, different)) != list(map(id, self._stacked[0])):
            bitmaps = ItemFilter.stack(different).over(self.trie).tensors
            self._stacked = different, bitmaps, ~bitmaps.words.bool().any(1)
        _, bitmaps, is_empty = self._stacked
        of_row = [-1 if one is None else places[id(one)] for one in filters]
        return bitmaps, is_empty, torch.tensor(of_row, device=bitmaps.words.device)

    def _nodes(self, windows: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """Where each row stands, int64 [R], a SID opened where `written` says so."""
        start = torch.where(written >= 0, self.width - written, -1)
        nodes = self.grammar.read(windows, prompt_lengths=start).nodes
        if self.vocab.text_follows:
            return nodes
        # The opening is out of sight, and nothing may follow the SID but its terminator.
        return nodes.masked_fill(written > self.width, self.trie.leaf)
