"""The tree-attention kernel on a device."""

import itertools

import pytest
import torch

from crs_fast.ops.tree_attention import tree_attention
from crs_fast.ops.tree_attention.reference import tree_attention as oracle

from .cases import CASES, tree

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
LONG = [(8, 16, 8, 50, 3, 512, 128, 128), (1, 16, 8, 256, 2, 1000, 128, 128)]


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("case", "dtype"),
    # Large float32 blocks take the compiler longest, and nobody serves them.
    [*itertools.product(CASES, TOLERANCE), *itertools.product(LONG, [torch.bfloat16])],
    ids=str,
)
def test_kernel_on_the_device(case, padded, dtype):
    arguments = tree(case, 3, dtype, padded, "cuda")
    for how in ((None, None), (0.3, 2.0)):
        torch.testing.assert_close(
            tree_attention(*arguments, *how), oracle(*arguments, *how),
            atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype],
        )  # fmt: skip
