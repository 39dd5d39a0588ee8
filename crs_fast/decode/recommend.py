"""Constrained beam search with beams as a token tree over one shared prompt."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch

from crs_fast.ops import trie_step
from crs_fast.trie import ItemFilter, SidTrie, SidVocab

from .processor import token_tensors
from .prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


@torch.no_grad()
def recommend(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: SidTrie,
    vocab: SidVocab | None = None,
    num_beams: int = 50,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
) -> RecommendOutput:
    """The best items after a prompt, by beam search over the catalogue's semantic IDs.

        cache = prefill(prompt)                                    # once a request
        for level: beams = trie_step(logits, beams)                # legal children only
                   logits = forward(one token a beam, seeing the prompt and its own ancestors)

    Args:
        model: any decoder-only `AutoModelForCausalLM` with rotary or learned positions that takes
            a 4-D attention mask (eager or SDPA attention).
        input_ids: int64 [B, P]; the SID begins right after it (end it with `<BOI>`).
        attention_mask: [B, P], 1 at real tokens; None means all ones. Left or right padding.
        trie: the catalogue, on the model's device.
        vocab: which token stands for which code; None means codes are token ids.
        num_beams: M.
        normalize: "vocab" scores by log-softmax over the whole vocabulary (Hugging Face's beams in
            its order), "level" over the level's codes, "legal" over the legal children.
        temperature: divides the logits.
        filters: one filter a request (or one for all).

    Returns:
        `RecommendOutput`. Ties go to the lower parent, then the lower code.

    Raises:
        ValueError: bad shapes, `num_beams` < 1, or a vocabulary that lacks codes of the trie.
    """
    return grow_beams(
        Prompt(model, input_ids, attention_mask),
        trie,
        vocab,
        num_beams=num_beams,
        normalize=normalize,
        temperature=temperature,
        filters=filters,
    )


@torch.no_grad()
def grow_beams(
    prompt: Prompt,
    trie: SidTrie,
    vocab: SidVocab | None,
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
) -> RecommendOutput:
    """`recommend` after a prompt that is cached already; leaves the prompt as it was."""
    if num_beams < 1:
        raise ValueError(f"recommend: num_beams must be at least 1 (got {num_beams})")
    tokens = token_tensors(trie, vocab)
    bitmaps = _one_each(filters, prompt.ids.shape[0], trie)
    batch, device = prompt.ids.shape[0], prompt.ids.device
    scores = torch.zeros(batch, 1, device=device)
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    sids = nodes.new_empty(batch, 1, 0)
    logits = prompt.logits  # [B * M, V]
    tree = _Tree(prompt)
    for level in range(trie.num_levels):
        scores, nodes, parents, codes = trie_step(
            logits, scores, nodes, trie.tensors, tokens, num_beams, normalize, temperature, bitmaps
        )
        sids = torch.cat([_of_parents(sids, parents), codes[..., None]], 2)  # [B, M, l + 1]
        if level + 1 < trie.num_levels:
            # A beam that waits or is dead feeds any token: nothing reads what comes of it.
            logits = tree.grow(tokens.column[level][codes.clamp(min=0)].clamp(min=0), parents)
    prompt.crop()
    valid = scores > float("-inf")
    sids = sids.masked_fill(~valid[..., None], -1)
    items, item_scores = _items(trie, sids, scores, filters)
    return RecommendOutput(sids, scores, items, item_scores, valid.sum(1))


class _Tree:
    """Beams as slots behind the prompt: each sees the prompt and its own ancestors, so nothing is
    reordered or copied when beams are."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.lengths = prompt.mask.sum(1)  # [B]
        batch = prompt.mask.shape[0]
        self.seen = prompt.mask.new_zeros(batch, 1, 0)  # [B, M, slots]: ancestors of each beam
        self.depth = 0

    def grow(self, ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """One more token a beam, ids and parents [B, M]: logits [B * M, V]."""
        batch, beams = ids.shape
        own = torch.eye(beams, dtype=torch.bool, device=ids.device).expand(batch, -1, -1)
        self.seen = torch.cat([_of_parents(self.seen, parents), own], 2)
        shared = self.prompt.mask[:, None].expand(-1, beams, -1)
        positions = (self.lengths + self.depth)[:, None].expand(-1, beams)
        self.depth += 1
        logits = self.prompt.grow(ids, torch.cat([shared, self.seen], 2), positions)
        return logits.flatten(0, 1)


def _of_parents(values: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """values [B, M, n] of each beam's parent [B, M']: [B, M', n]."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))


def _one_each(filters: ItemFilter | None, batch: int, trie: SidTrie):
    if filters is None:
        return None
    if filters.num_requests == 1 and batch > 1:
        filters = ItemFilter.stack([filters] * batch)
    return filters.to(trie.device).tensors


def _items(
    trie: SidTrie, sids: torch.Tensor, scores: torch.Tensor, filters: ItemFilter | None
) -> tuple[list[list[int | str]], list[list[float]]]:
    """Ids and scores of the items that beams name; invalid beams hold only padding and name
    none."""
    batch, beams, levels = sids.shape
    begin, end = trie.item_ranges(sids.reshape(batch * beams, levels).cpu())
    spans = torch.stack([begin, end], 1).view(batch, beams, 2).tolist()
    masks = None if filters is None else filters.mask().cpu()
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
