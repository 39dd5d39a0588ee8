"""What a constrained beam search returns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

import torch

from crs_fast.trie import ItemFilter, SidTrie


@dataclass(frozen=True)
class RecommendOutput:
    """Beams of B requests, best first.

    sids int64 [B, M, L]: -1 pads ragged SIDs and fills invalid beams
    scores float32 [B, M]: sums of log-probs, -inf for invalid beams
    items: for each request, the ids of the items its valid beams name, best first; several items
        on one SID stand in catalogue order, filtered ones are left out
    item_scores: the score of each of `items`
    num_valid int64 [B]: valid beams; fewer than M when fewer items are allowed
    """

    sids: torch.Tensor
    scores: torch.Tensor
    items: list[list[int | str]]
    item_scores: list[list[float]]
    num_valid: torch.Tensor

    @classmethod
    def of(
        cls,
        trie: SidTrie,
        sids: torch.Tensor,
        nodes: torch.Tensor,
        scores: torch.Tensor,
        filters: ItemFilter | None,
    ) -> RecommendOutput:
        """sids int64 [B, M, L], the nodes int64 [B, M] where they end and scores float32 [B, M],
        -inf at invalid beams."""
        valid = scores > float("-inf")
        sids = sids.masked_fill(~valid[..., None], -1)
        items, item_scores = _items(trie, nodes.masked_fill(~valid, -1), scores, filters)
        return cls(sids, scores, items, item_scores, valid.sum(1))


def _items(
    trie: SidTrie, nodes: torch.Tensor, scores: torch.Tensor, filters: ItemFilter | None
) -> tuple[list[list[int | str]], list[list[float]]]:
    """Ids and scores of the items that beams name; invalid beams stand at no node and name none."""
    begin, end = trie.items_at(nodes)
    spans = torch.stack([begin, end], 2).tolist()
    # A beam's only item is allowed, or there would be no beam: most catalogues need no look-up.
    several = bool((end - begin > 1).any())
    masks = filters.mask().cpu() if filters is not None and several else None
    items: list[list[int | str]] = []
    item_scores: list[list[float]] = []
    for request, (mine, values) in enumerate(zip(spans, scores.tolist(), strict=True)):
        ids: list[int | str] = []
        ranked: list[float] = []
        for (a, b), score in zip(mine, values, strict=True):
            found = trie.item_ids[a:b]
            if masks is not None:
                keep = masks[request % masks.shape[0], a:b].tolist()
                found = list(compress(found, keep))
            ids += found
            ranked += [score] * len(found)
        items.append(ids)
        item_scores.append(ranked)
    return items, item_scores
