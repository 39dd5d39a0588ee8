"""A tree's attention on the CPU, by one dense call or by ancestors, against the op's oracle."""

import pytest
import torch

from crs_fast.decode.lm import tree_state
from crs_fast.decode.lm.tree_state import TreeState
from crs_fast.ops.tree_attention.reference import tree_attention


def inputs(prompt, beams, depth, dtype=torch.float32, masked=False):
    """query, key, value and the state of a tree of `depth` levels."""
    generator = torch.Generator().manual_seed(0)
    length = prompt + beams * depth
    shapes = [(2, 6, beams, 16), (2, 3, length, 16), (2, 3, length, 16)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    earlier = torch.randint(beams, (2, beams, depth), generator=generator)
    earlier[..., -1] = torch.arange(beams)
    mask = None
    if masked:
        mask = torch.arange(prompt) < torch.tensor([[prompt], [prompt // 2]])
    return tensors, TreeState(earlier + beams * torch.arange(depth), prompt, mask)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(
    ("prompt", "beams", "depth", "is_dense"),
    [(8, 5, 3, True), (40, 30, 9, True), (8, 30, 7, False), (2, 1, 1, True)],
)
def test_both_paths_are_the_oracle(
    prompt, beams, depth, is_dense, scale, masked, dtype, tolerance, monkeypatch
):
    tensors, state = inputs(prompt, beams, depth, dtype, masked)
    called = []

    def by_ancestors(*args):
        called.append(args)
        return torch.ops.crs_fast.tree_attention(*args[:6], scale or 0.25, args[7])

    monkeypatch.setattr(tree_state, "tree_attention", by_ancestors)
    got = state.attend(*tensors, scale, None)
    query, key, value = (tensor.double() for tensor in tensors)
    wanted = tree_attention(
        query, key, value, state.ancestors, prompt, state.prompt_mask, scale or 0.25, None
    )
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=tolerance)
    assert got.is_contiguous()
    assert bool(called) != is_dense


def test_scores_are_capped_as_by_the_op():
    (query, key, value), state = inputs(8, 5, 2)
    got = state.attend(query * 9, key, value, None, 2.0)
    wanted = tree_attention(query * 9, key, value, state.ancestors, 8, None, 0.25, 2.0)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-6)


def test_layers_of_a_step_share_the_mask():
    tensors, state = inputs(8, 5, 2)
    state.attend(*tensors, None, None)
    first = list(state._biases.values())
    state.attend(*tensors, None, None)
    assert [id(bias) for bias in first] == [id(bias) for bias in state._biases.values()]
