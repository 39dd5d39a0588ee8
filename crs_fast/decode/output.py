"""What a constrained beam search returns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import NamedTuple

import torch

from crs_fast._arguments import check_kind
from crs_fast.ops import trie_walk
from crs_fast.trie import ItemFilter, SidTrie


class Beams(NamedTuple):
    """The best beams of B requests on the device, best first.

    sids int64 [B, M, L]: -1 where a SID has ended
    scores float32 [B, M]: sums of log-probs, -inf for invalid beams
    nodes int64 [B, M]: where they stand in the trie
    tree_positions int64 [B, M, L - 1]: where each beam's tokens stand in the cache, counted from
        the end of the prompt
    tokens int64 [B, M, L - 1]: those tokens; the last level's is not fed
    not_numbers bool [B]: requests that met logits that are NaN or infinite
    """

    sids: torch.Tensor
    scores: torch.Tensor
    nodes: torch.Tensor
    tree_positions: torch.Tensor
    tokens: torch.Tensor
    not_numbers: torch.Tensor

    def ranks(self) -> torch.Tensor:
        """See `RecommendOutput`. A level's tokens stand one after the other in the tree, M each."""
        levels = torch.arange(self.tree_positions.shape[2], device=self.sids.device)
        earlier = self.tree_positions - levels * self.scores.shape[1]
        return torch.nn.functional.pad(earlier, (1, 0))


def refuse_not_numbers(requests: Collection[int], op: str = "recommend") -> None:
    """
    Raises:
        ValueError: there are requests whose logits are no numbers.
    """
    check_kind("refuse_not_numbers: requests", requests, Collection, "numbers of requests")
    if isinstance(requests, str):
        raise ValueError(
            f"refuse_not_numbers: requests must be numbers of requests (got {requests!r})"
        )
    if requests:
        raise ValueError(
            f"{op}: the model's logits must be numbers (got NaN or infinity after the prompt "
            f"of row {min(requests)}, of {len(requests)} such rows): weights that are damaged, "
            "were not loaded, or overflow in their dtype"
        )


@dataclass(frozen=True)
class RecommendOutput:
    """Beams of B requests, best first.

    sids int64 [B, M, L]: -1 pads ragged SIDs and fills invalid beams
    scores float32 [B, M]: sums of log-probs, -inf for invalid beams
    items: for each request, the ids of the items its valid beams name, best first; several items
        on one SID stand in catalogue order, filtered ones are left out; at most M with
        `by="item"`
    item_scores: the score of each of `items`
    num_valid int64 [B]: valid beams; fewer than M when fewer items are allowed
    ranks int64 [B, M, L]: for each code, the rank that its beam had at the level before, 0 at the
        first; None where the beams were not grown as a token tree
    """

    sids: torch.Tensor
    scores: torch.Tensor
    items: list[list[int | str]]
    item_scores: list[list[float]]
    num_valid: torch.Tensor
    ranks: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        trie: SidTrie,
        sids: torch.Tensor,
        nodes: torch.Tensor,
        scores: torch.Tensor,
        filters: ItemFilter | None,
        most_items: int | None = None,
        ranks: torch.Tensor | None = None,
    ) -> RecommendOutput:
        """sids int64 [B, M, L], the nodes int64 [B, M] where they end and scores float32 [B, M],
        -inf at invalid beams; at most `most_items` items each; `ranks` as in the class."""
        valid = scores > float("-inf")
        sids = sids.masked_fill(~valid[..., None], -1)
        items, item_scores = _items(trie, nodes.masked_fill(~valid, -1), scores, filters)
        if most_items is not None:
            items = [of_request[:most_items] for of_request in items]
            item_scores = [of_request[:most_items] for of_request in item_scores]
        return cls(sids, scores, items, item_scores, valid.sum(1), ranks)

    @classmethod
    def of_sids(
        cls, trie: SidTrie, sids: torch.Tensor, scores: torch.Tensor, filters: ItemFilter | None
    ) -> RecommendOutput:
        """As `of`, for beams whose nodes are not at hand."""
        nodes = trie_walk(trie.tensors, sids.flatten(0, 1).to(trie.device))
        return cls.of(trie, sids, nodes.view(scores.shape), scores, filters)


def _items(
    trie: SidTrie, nodes: torch.Tensor, scores: torch.Tensor, filters: ItemFilter | None
) -> tuple[list[list[int | str]], list[list[float]]]:
    """Ids and scores of the items that beams name; invalid beams stand at no node and name none."""
    begin, end = (t.cpu() for t in trie.items_at(nodes))
    scores = scores.cpu()
    if not bool((end - begin > 1).any()):
        # A beam's only item is allowed, or there would be no beam.
        named = begin < end
        ids, values = trie.item_ids.take(begin[named]).tolist(), scores[named].tolist()
        bounds = [0, *named.sum(1).cumsum(0).tolist()]
        return (
            [ids[a:b] for a, b in pairwise(bounds)],
            [values[a:b] for a, b in pairwise(bounds)],
        )
    masks = None if filters is None else filters.mask().cpu()
    items: list[list[int | str]] = []
    item_scores: list[list[float]] = []
    ranges = torch.stack([begin, end], 2).tolist()
    for request, (of_beams, beam_scores) in enumerate(zip(ranges, scores.tolist(), strict=True)):
        items.append([])
        item_scores.append([])
        for (a, b), score in zip(of_beams, beam_scores, strict=True):
            named_items = trie.item_ids[a:b]
            if masks is not None:
                is_allowed = masks[request % masks.shape[0], a:b].tolist()
                named_items = list(compress(named_items, is_allowed))
            items[-1] += named_items
            item_scores[-1] += [score] * len(named_items)
    return items, item_scores
