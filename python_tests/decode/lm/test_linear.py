"""Linear layers on few rows, and their stand-in in a tree view."""

import pytest
import torch

from crs_fast.decode.lm.linear import SkinnyLinear, is_plain


@pytest.mark.parametrize("rows", [1, 7, 8, 63, 64, 129])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 11), (600, 900)])
def test_the_stand_in_computes_with_what_the_layer_holds(rows, bias, inputs, outputs):
    layer, x = torch.nn.Linear(inputs, outputs, bias=bias), torch.randn(rows, inputs)
    assert SkinnyLinear.can_replace(layer) is (inputs == 600)
    ours = SkinnyLinear.of(layer)
    torch.testing.assert_close(ours(x), layer(x), atol=1e-5, rtol=1e-5)
    layer.weight = torch.nn.Parameter(torch.randn(outputs, inputs))  # a view must not be stale
    torch.testing.assert_close(ours(x), layer(x), atol=1e-4, rtol=1e-4)
    assert is_plain(layer)
    assert not is_plain(ours)
