"""What dialogues say about items: those named together are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crs_fast.crs.dialogue import Dialogue, Item


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
    return torch.nn.functional.normalize(u * s.sqrt(), dim=1)
