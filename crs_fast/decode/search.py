"""The beam search itself: from a prompt's last hidden states to the beams, all on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from crs_fast.ops import trie_step

from .lm.prompt import Prompt
from .lm.tree_state import TreeState
from .output import Beams
from .search_plan import SearchPlan

# From this level on it is asked at every level whether any SID goes on. Semantic IDs have fewer
# levels; titles have more, and most titles end long before the longest one.
LONG = 8


def search(prompt: Prompt, plan: SearchPlan) -> Beams:
    """Beam search after a prompt. The tree stays in the prompt's cache. Nothing waits for the
    device, except for the question, from level `LONG` on, whether any beam goes on.

    Each beam's token is a position behind the prompt that sees the prompt and its own ancestors,
    so keys and values are neither reordered nor copied when beams are.

    Raises:
        ValueError: the vocabulary names tokens that the model's head lacks.
    """
    num_tokens = prompt.lm.head.num_tokens
    if num_tokens is not None and plan.highest_token >= num_tokens:
        raise ValueError(
            f"recommend: vocab must name tokens below {num_tokens}, the rows of the model's head "
            f"(got {plan.highest_token})"
        )
    batch, device = prompt.ids.shape[0], prompt.ids.device
    scores = torch.zeros(batch, 1, dtype=torch.float32, device=device)
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    sids = tree_positions = fed = nodes.new_empty(batch, 1, 0)
    lengths = prompt.mask.sum(1, keepdim=True)
    not_numbers = torch.zeros(batch, dtype=torch.bool, device=device)
    goes_on = torch.ones(batch, 1, dtype=torch.bool, device=device)
    hidden = prompt.hidden  # [B * M, H]
    for level, (tokens, computed) in enumerate(plan.levels):
        logits, normalizers = prompt.lm.head(hidden, computed), None
        if plan.is_streamed:
            normalizers = prompt.lm.head.logsumexp(hidden, plan.temperature)
        checked = logits.amax(1) if normalizers is None else normalizers
        is_wrong = ~checked.isfinite().view(goes_on.shape)
        not_numbers = not_numbers | (goes_on & is_wrong).any(1)
        scores, nodes, parents, codes = trie_step(
            logits,
            scores,
            nodes,
            plan.trie,
            tokens,
            num_beams=plan.num_beams,
            normalize=plan.normalize,
            temperature=plan.temperature,
            filters=plan.filters,
            normalizers=normalizers,
        )
        sids = torch.cat([_of_parents(sids, parents), codes[..., None]], 2)  # [B, M, l + 1]
        tree_positions, fed = _of_parents(tree_positions, parents), _of_parents(fed, parents)
        goes_on = codes >= 0  # the others feed anything
        is_last = level + 1 == len(plan.levels)
        if is_last or (level + 1 >= LONG and not _any_goes_on(codes)):
            break
        # A beam that waits or is dead feeds any token: nothing reads what comes of it.
        ids = plan.token_of_code[level][codes.clamp(min=0)].clamp(min=0)
        first = level * plan.num_beams
        own = torch.arange(first, first + plan.num_beams, device=device).expand(ids.shape)
        tree_positions = torch.cat([tree_positions, own[..., None]], 2)
        fed = torch.cat([fed, ids[..., None]], 2)
        position_ids = (lengths + level).expand(ids.shape)
        tree = TreeState(tree_positions, prompt.length, prompt.visible)
        hidden = prompt.grow(ids, position_ids, tree).flatten(0, 1)
    missing = len(plan.levels) - sids.shape[2]  # levels that no beam has reached
    return Beams(
        F.pad(sids, (0, missing), value=-1),
        scores,
        nodes,
        F.pad(tree_positions, (0, missing)),
        F.pad(fed, (0, missing)),
        not_numbers,
    )


def _any_goes_on(codes: torch.Tensor) -> bool:
    """Whether any beam's SID has not ended. While a CUDA graph is recorded nobody can ask, so every
    level is recorded."""
    is_recording = codes.is_cuda and torch.cuda.is_current_stream_capturing()
    return is_recording or bool((codes >= 0).any())


def _of_parents(values: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """values [B, M, n] of each beam's parent [B, M']: [B, M', n]."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))
