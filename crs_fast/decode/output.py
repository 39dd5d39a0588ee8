"""What a constrained beam search returns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress, pairwise

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
    begin, end = (t.cpu() for t in trie.items_at(nodes))
    beams = scores.cpu()
    if not bool((end - begin > 1).any()):
        # A beam's only item is allowed, or there would be no beam.
        named = begin < end
        ids, values = trie.item_ids.take(begin[named]).tolist(), beams[named].tolist()
        bounds = [0, *named.sum(1).cumsum(0).tolist()]
        return (
            [ids[a:b] for a, b in pairwise(bounds)],
            [values[a:b] for a, b in pairwise(bounds)],
        )
    masks = None if filters is None else filters.mask().cpu()
    items: list[list[int | str]] = []
    item_scores: list[list[float]] = []
    spans = torch.stack([begin, end], 2).tolist()
    for request, (mine, ranked) in enumerate(zip(spans, beams.tolist(), strict=True)):
        items.append([])
        item_scores.append([])
        for (a, b), score in zip(mine, ranked, strict=True):
            found = trie.item_ids[a:b]
            if masks is not None:
                keep = masks[request % masks.shape[0], a:b].tolist()
                found = list(compress(found, keep))
            items[-1] += found
            item_scores[-1] += [score] * len(found)
    return items, item_scores
