"""Semantic IDs sampled under the constraint, all samples of a prompt behind one prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from crs_fast.ops import trie_logprob, trie_mask, trie_walk
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary

from .lm.capability import capability
from .lm.prompt import Prompt, checked_inputs, pad_right
from .lm.tree_model import TreeModel
from .lm.tree_state import TreeState
from .search_request import SearchRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Samples(NamedTuple):
    """M samples for each of B prompts.

    sids int64 [B, M, L]
    tokens int64 [B, M, L]: their tokens
    logprobs float32 [B, M, L]: of each code among the legal ones, as in `ops.trie_logprob`
    """

    sids: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: SidTrie,
    vocab: Vocabulary | None = None,
    num_samples: int = 8,
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
) -> Samples:
    """Draw SIDs from the model's distribution over the catalogue, with replacement.

        cache = prefill(prompt)                                  # once per prompt
        for level: code ~ softmax(logits[legal children] / temperature), for each sample

    Args:
        model, input_ids, attention_mask, trie, vocab, temperature, filters: as in `recommend`.
        num_samples: M.

    Raises:
        ValueError: as `recommend`; SIDs of unequal length, a filter that allows nothing, or a model
            that can't hold a token tree.
    """
    ids, mask = checked_inputs("sample", input_ids, attention_mask)
    request = SearchRequest(
        trie, vocab, ids.shape[0], num_samples, temperature=temperature, filters=filters
    )
    attention = capability(model).attention
    if attention is None:
        raise ValueError(
            f"sample: model must be able to hold a token tree (got {type(model).__name__}, which "
            "is not); sample by model.generate with SidLogitsProcessor"
        )
    if bool((trie.sids()[:, -1] < 0).any()):
        raise ValueError("sample: trie must hold SIDs of one length (got shorter ones)")
    batch, device, levels = ids.shape[0], ids.device, trie.num_levels
    tokens = request.vocabulary.tensors(device)._replace(terminator=-1)
    prompt = Prompt.of(TreeModel(model, attention, False), pad_right(ids, mask), request.tree_size)
    hidden = prompt.hidden.repeat_interleave(num_samples, 0)  # [B * M, H]
    nodes = torch.zeros(batch * num_samples, dtype=torch.int64, device=device)
    drawn = nodes.new_empty(batch * num_samples, 0)
    positions = nodes.new_empty(batch, num_samples, 0)
    lengths, all_logits = prompt.mask.sum(1, keepdim=True), []
    for level in range(levels):
        logits = prompt.lm.head(hidden, None)  # [B * M, V]
        all_logits.append(logits)
        legal = trie_mask(logits, nodes, trie.tensors, tokens, request.bitmaps)
        if bool((legal == -torch.inf).all(1).any()):
            raise ValueError("sample: every filter must allow an item (got one that allows none)")
        probabilities = (legal.float() / temperature).softmax(1)
        drawn = torch.cat([drawn, torch.multinomial(probabilities, 1)], 1)  # [B * M, l + 1]
        sids = request.vocabulary.decode(drawn)
        nodes = trie_walk(trie.tensors, sids)
        if level + 1 < levels:
            first = level * num_samples
            own = torch.arange(first, first + num_samples, device=device)
            own = own.expand(batch, num_samples)[..., None]
            positions = torch.cat([positions, own], 2)
            fed = drawn[:, -1].view(batch, num_samples)
            tree = TreeState(positions, prompt.length, prompt.visible)
            hidden = prompt.grow(fed, (lengths + level).expand(fed.shape), tree).flatten(0, 1)
    values = trie_logprob(
        torch.stack(all_logits, 1), sids, trie.tensors, tokens, temperature, request.bitmaps
    )
    shape = batch, num_samples, levels
    return Samples(sids.view(shape), drawn.view(shape), values.view(shape))
