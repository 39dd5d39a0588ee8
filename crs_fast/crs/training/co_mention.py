"""Item vectors from dialogues: items that are named together are similar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from crs_fast.crs.data.dialogue import Dialogue, Item


def co_mention_embeddings(
    items: Sequence[Item], dialogues: Sequence[Dialogue], dim: int = 64, seed: int = 0
) -> torch.Tensor:
    """Item vectors from the items that are named in the same dialogues.

        counts[i, j] = number of dialogues that name both
        ppmi = max(0, log(counts * total / row sums / column sums))
        U, S = svd(ppmi); vector = U * sqrt(S), scaled to unit length

    Args:
        items: the catalogue, N items.
        dialogues: training dialogues.
        dim: width of the vectors, at most N.
        seed: seed of the randomised SVD.

    Returns:
        float32 [N, dim]; zero for an item that is never named together with another.

    Source: Levy & Goldberg 2014 (shifted PPMI factorisation).
    """
    index = {item.item_id: i for i, item in enumerate(items)}
    counts = torch.zeros(len(items), len(items))
    for dialogue in dialogues:
        named = {m.item_id for turn in dialogue.turns for m in turn.mentions} & index.keys()
        rows = torch.tensor(sorted(index[item] for item in named), dtype=torch.int64)
        counts[rows[:, None], rows] += 1
    counts.fill_diagonal_(0)
    sums = counts.sum(1)
    expected = sums[:, None] * sums / sums.sum().clamp(min=1)
    ppmi = torch.where(counts > 0, (counts / expected.clamp(min=1e-12)).log(), 0.0).clamp(min=0)
    dim = min(dim, len(items))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(ppmi, q=dim)
    # Set rows of unnamed items to zero: the SVD leaves rounding there, which would be scaled up.
    return F.normalize(u * s.sqrt() * (sums > 0)[:, None], dim=1)


def fill_unnamed(vectors: torch.Tensor, texts: torch.Tensor, neighbours: int = 10) -> torch.Tensor:
    """Fill in co-mention vectors for items that have none: the mean of the vectors of the items
    nearest by text, weighted by cosine and scaled to unit length. Without them, all such items
    share SIDs that no training dialogue names, and the model finds none of them.

    Args:
        vectors: float [N, C]; rows of zeros where an item has no vector.
        texts: float [N, D], text embeddings.
        neighbours: the most items with a vector to average over.

    Returns:
        float [N, C]; rows of items with a vector are unchanged. If no item has one, all are.
    """
    has_vector = vectors.any(1)
    x = F.normalize(texts.float(), dim=1)
    similarity = x[~has_vector] @ x[has_vector].T
    cosine, nearest = similarity.topk(min(neighbours, int(has_vector.sum())))  # [U, k]
    means = (cosine.clamp(min=0)[..., None] * vectors[has_vector][nearest]).sum(1)  # [U, C]
    filled = vectors.clone()
    filled[~has_vector] = F.normalize(means, dim=1)
    return filled
