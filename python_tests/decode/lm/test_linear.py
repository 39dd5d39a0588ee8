"""Linear layers on few rows, and their stand-in in a tree view."""

import pytest
import torch

from crs_fast.decode.lm.linear import SkinnyLinear, is_plain


@pytest.mark.parametrize("rows", [1, 7, 8, 63, 64, 129])
@pytest.mark.parametrize("bias", [True, False])
def test_the_stand_in_computes_with_what_the_layer_holds(rows, bias):
    layer, x = torch.nn.Linear(5, 11, bias=bias), torch.randn(rows, 5)
    ours = SkinnyLinear.of(layer)
    torch.testing.assert_close(ours(x), layer(x))
    layer.weight = torch.nn.Parameter(torch.randn(11, 5))  # a view must not be stale
    torch.testing.assert_close(ours(x), layer(x))
    assert is_plain(layer)
    assert not is_plain(ours)
