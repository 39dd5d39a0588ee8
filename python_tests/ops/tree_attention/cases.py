"""Random trees behind random prompts, for the tests of tree attention."""

from __future__ import annotations

import torch

CASES = [
    # batch, heads, key heads, beams, depth, prompt, head size, value size
    (1, 1, 1, 1, 1, 1, 8, 8),
    (2, 4, 2, 7, 3, 9, 16, 16),
    (1, 9, 3, 20, 2, 130, 64, 64),
    (1, 8, 1, 10, 4, 65, 24, 24),
    (2, 3, 3, 33, 1, 200, 32, 48),
]


def tree(case, seed=0, dtype=torch.float32, padded=False, device="cpu"):
    """Arguments of `tree_attention`; keys hold room behind the slots, as a cache's buffers do."""
    batch, heads, groups, beams, depth, prompt, width, values = case
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    columns = prompt + beams * depth
    key = normal(batch, groups, columns + 5, width)[:, :, :columns]
    value = normal(batch, groups, columns + 5, values)[:, :, :columns]
    query = normal(batch, beams, heads, width).transpose(1, 2)
    ancestors = torch.stack(
        [
            level * beams + torch.randint(beams, (batch, beams), generator=generator)
            for level in range(depth)
        ],
        2,
    )
    mask = None
    if padded:
        mask = torch.rand(batch, prompt, generator=generator) < 0.6
        mask[:, 0] = True
        mask = mask.to(device)
    return query, key, value, ancestors.to(device), prompt, mask
