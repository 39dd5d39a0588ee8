"""Attention of a token tree: beams that share their request's prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from crs_fast.ops.tree_attention import reference, tree_attention

from .case import Case, Methods

# batch, query heads, key heads, head width, prompt, beams; four tokens per beam
SHAPES = {
    "toy": (2, 4, 2, 16, 12, 5),
    "cpu": (2, 9, 3, 64, 128, 50),  # SmolLM2-135M's heads
    "cuda": (8, 16, 8, 128, 512, 50),  # Qwen3-0.6B's heads
}
DEPTH = 4


class Inputs:
    """Beams behind random prompts, of a shape as in `SHAPES`."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        batch, heads, key_heads, width, self.prompt, beams = shape
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        self.query = random(batch, heads, beams, width)
        self.key, self.value = (
            random(batch, key_heads, self.prompt + DEPTH * beams, width) for _ in range(2)
        )
        # Each level holds one slot per beam; a beam's ancestors are one slot of each level.
        ancestors = torch.randint(beams, (batch, beams, DEPTH), generator=generator)
        ancestors[..., -1] = torch.arange(beams)
        self.ancestors = (ancestors + beams * torch.arange(DEPTH)).to(device)
        self.tensors = (self.query, self.key, self.value, self.ancestors)
        self.name = (
            f"batch {batch}, {heads} heads on {key_heads} x {width}, prompt {self.prompt}, "
            f"{beams} beams x {DEPTH} tokens, {str(dtype).removeprefix('torch.')}"
        )


def attention(size: str, device: str) -> tuple[str, Methods]:
    """One layer's attention at the last level, beside two ways of calling PyTorch's own."""
    inputs = Inputs(SHAPES[device if size == "full" else size], device)
    (query, key, value, ancestors), prompt = inputs.tensors, inputs.prompt
    batch, heads, beams, width = query.shape
    visible = _visible(ancestors, prompt, key.shape[2])
    # What a search that repeats the prompt for its beams holds: [B * M, G, P + T, D].
    own_keys, own_values = (_repeated(states, ancestors, prompt) for states in (key, value))
    own_query = query.transpose(1, 2).reshape(batch * beams, heads, 1, width)

    def repeated_prompt() -> torch.Tensor:
        out = scaled_dot_product_attention(own_query, own_keys, own_values, enable_gqa=True)
        return out.view(batch, beams, heads, width)

    def dense_mask() -> torch.Tensor:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=visible[:, None], enable_gqa=True
        )
        return out.transpose(1, 2)

    methods: Methods = {
        "PyTorch SDPA, prompt repeated per beam": repeated_prompt,
        "PyTorch SDPA, dense mask": dense_mask,
        "tree_attention": lambda: tree_attention(query, key, value, ancestors, prompt),
    }
    expected = reference.tree_attention(query, key, value, ancestors, prompt)
    tolerance: dict[str, Any] = {torch.float32: dict(atol=1e-4, rtol=1e-4)}.get(
        query.dtype, dict(atol=2e-2, rtol=2e-2)
    )
    for run in methods.values():
        torch.testing.assert_close(run(), expected, **tolerance)
    return inputs.name, methods


def _visible(ancestors: torch.Tensor, prompt: int, positions: int) -> torch.Tensor:
    """bool [B, M, S]: the prompt and the beam's own ancestors."""
    batch, beams, _ = ancestors.shape
    visible = torch.zeros(batch, beams, positions, dtype=torch.bool, device=ancestors.device)
    visible[..., :prompt] = True
    return visible.scatter_(2, ancestors + prompt, True)


def _repeated(states: torch.Tensor, ancestors: torch.Tensor, prompt: int) -> torch.Tensor:
    """[B, G, S, D] -> [B * M, G, P + T, D], each beam with a copy of its prompt."""
    batch, beams, _ = ancestors.shape
    shared = torch.arange(prompt, device=ancestors.device).expand(batch, beams, prompt)
    positions = torch.cat([shared, ancestors + prompt], 2)  # [B, M, P + T]
    rows = torch.arange(batch, device=ancestors.device)[:, None, None]
    return states[rows, :, positions].transpose(2, 3).flatten(0, 1).contiguous()


CASES = [Case("tree_attention", attention, ("tree_attention",), ("cpu", "cuda"))]
