"""What dialogues say about items: those named together are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from crs_fast.crs.data.dialogue import Dialogue, Item


def co_mention_embeddings(
    items: Sequence[Item], dialogues: Sequence[Dialogue], dim: int = 64, seed: int = 0
) -> torch.Tensor:
    """Item vectors from who is named with whom.

        counts[i, j] = dialogues that name both; ppmi = max(0, log(counts * all / rows / columns))
        U, S = svd(ppmi); vector = U * sqrt(S), scaled to unit length

    Args:
        items: the catalogue, N items.
        dialogues: training dialogues.
        dim: of the vectors, at most N.
        seed: of the randomised SVD.

    Returns:
        float32 [N, dim]; zero for an item that is never named beside another.

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
    # Rows of zeros explicitly: in a null space they are rounding, which would become unit length.
    return F.normalize(u * s.sqrt() * (sums > 0)[:, None], dim=1)


def fill_unnamed(vectors: torch.Tensor, texts: torch.Tensor, neighbours: int = 10) -> torch.Tensor:
    """Co-mention vectors for items that have none: those of the items nearest by text, weighted by
    cosine, scaled to unit length. Without them such items share a corner of their own, and a model
    that was never taught its SIDs finds none of them.

    Args:
        vectors: float [N, C], zero rows where there is none.
        texts: float [N, D], text embeddings.
        neighbours: at most so many items that have a vector.

    Returns:
        float [N, C]; the other rows as they were, and all of them where no item has a vector.
    """
    known = vectors.any(1)
    x = F.normalize(texts.float(), dim=1)
    near, which = (x[~known] @ x[known].T).topk(min(neighbours, int(known.sum())))  # [U, k]
    means = (near.clamp(min=0)[..., None] * vectors[known][which]).sum(1)  # [U, C]
    filled = vectors.clone()
    filled[~known] = F.normalize(means, dim=1)
    return filled
