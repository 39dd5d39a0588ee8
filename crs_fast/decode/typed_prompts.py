"""Prompts that say by their last token which type of item is to come."""

from __future__ import annotations

import torch

from crs_fast.ops import trie_walk
from crs_fast.ops.trie.nodes import unpack
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary


def without_begins(
    ids: torch.Tensor,
    mask: torch.Tensor,
    trie: SidTrie,
    vocab: Vocabulary,
    filters: ItemFilter | None,
) -> tuple[torch.Tensor, torch.Tensor, ItemFilter | None]:
    """Prompts without the begin tokens at their ends, which are the first codes of what is
    searched, and filters that allow only these types.

    Args:
        ids: int64 [B, P]; mask: bool [B, P].
        filters: one filter per prompt, one for all, or None.
    """
    begins = torch.tensor(vocab.begins, dtype=torch.int64, device=ids.device)
    places = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(mask, places, -1).amax(1).clamp(min=0)  # [B]
    rows = torch.arange(ids.shape[0], device=ids.device)
    is_type = ids[rows, last][:, None] == begins  # [B, types]
    typed = is_type.any(1)
    if not bool(typed.any()):
        return ids, mask, filters
    mask = mask.clone()
    mask[rows[typed], last[typed]] = False
    kinds = [of_row.index(True) if True in of_row else None for of_row in is_type.tolist()]
    chosen = ItemFilter.stack([None if k is None else _of_type(trie, k) for k in kinds])
    if filters is not None:
        everyone = [0] * len(kinds) if filters.num_requests == 1 else range(len(kinds))
        chosen = chosen & filters.select(everyone)
    return ids, mask, chosen


def _of_type(trie: SidTrie, kind: int) -> ItemFilter:
    """A filter that allows the items of a type, which stand side by side."""
    code = torch.tensor([[kind]], dtype=torch.int64, device=trie.device)
    node = trie_walk(trie.tensors, code)
    _, begin, end = unpack(trie.tensors, node.clamp(min=0))
    mask = torch.zeros(trie.num_items, dtype=torch.bool, device="cpu")
    if int(node) >= 0:  # else no item of this type is left
        mask[int(begin) : int(end)] = True
    return trie.filter(allow=mask)
