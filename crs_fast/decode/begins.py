"""Masks begin tokens that no allowed SID could follow."""

from __future__ import annotations

import torch

from crs_fast.ops import FilterTensors, trie_walk
from crs_fast.ops.trie.nodes import allowed
from crs_fast.trie import SidTrie, Vocabulary


class Begins:
    """Masks a begin token in the rows whose filter allows no item behind it: such a SID could have
    no code. In a typed catalogue, where each type of items has its own begin token, each type is
    judged alone."""

    def __init__(self, trie: SidTrie, vocab: Vocabulary) -> None:
        self.trie, self.vocab = trie.tensors, vocab
        # Where the items of each type stand, [T]; -1 for a type that has none.
        self._nodes: torch.Tensor | None = None
        self._lacks_type = False
        if vocab.opens_with_code:
            tokens = torch.tensor(vocab.begins, device=trie.device)[:, None]
            self._nodes = trie_walk(trie.tensors, vocab.decode(tokens))
            self._lacks_type = bool((self._nodes < 0).any())

    def forbid_(
        self,
        masked: torch.Tensor,
        nodes: torch.Tensor,
        filters: FilterTensors | None,
        which: torch.Tensor,
        is_empty: torch.Tensor | None,
    ) -> None:
        """Write -inf over them, in place.

        Args:
            masked: scores [R, V].
            nodes: where each row stands, int64 [R]; -1 is text.
            which: the filter of each row, int64 [R], -1 for none.
            is_empty: which filters allow no item at all, bool [F]; None where there are none.
        """
        if self._nodes is not None:
            if filters is None and not self._lacks_type:
                return
            for token, node in zip(self.vocab.begins, self._nodes, strict=True):
                at = node.clamp(min=0).expand_as(nodes)
                open_rows = allowed(self.trie, filters, which, at) & (node >= 0)
                masked[:, token].masked_fill_(~open_rows & (nodes == -1), -torch.inf)
        elif is_empty is not None and self.vocab.begin is not None:
            rows = is_empty[which.clamp(min=0)] & (which >= 0) & (nodes == -1)
            masked[:, self.vocab.begin].masked_fill_(rows, -torch.inf)

    def possible(self, filters: FilterTensors | None) -> set[int]:
        """The begin tokens of a typed catalogue of whose types the first filter allows items."""
        assert self._nodes is not None
        at = self._nodes.clamp(min=0)
        legal = allowed(self.trie, filters, torch.zeros_like(at), at) & (self._nodes >= 0)
        pairs = zip(self.vocab.begins, legal.tolist(), strict=True)
        return {token for token, is_legal in pairs if is_legal}
