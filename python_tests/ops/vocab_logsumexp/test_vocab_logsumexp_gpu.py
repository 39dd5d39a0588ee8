"""The compiled log-sum-exp against float64. Needs torch and pytest."""

import pytest
import torch

from crs_fast.ops import vocab_logsumexp
from crs_fast.ops.vocab_logsumexp import reference
from crs_fast.ops.vocab_logsumexp import triton as kernel

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", kernel.DESIGN.designs)
@pytest.mark.parametrize("rows", [1, 400])
def test_random(dtype, name, rows):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, device="cuda").to(dtype)
        for shape in ((rows, 576), (50_001, 576), (50_001,))
    )
    weight *= 0.1
    with kernel.DESIGN.using(name):
        got = vocab_logsumexp(hidden, weight, bias, 0.5, 30.0, 0.8)
    exact = reference.vocab_logsumexp(
        hidden.double(), weight.double(), bias.double(), 0.5, 30.0, 0.8
    )
    atol = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, exact, atol=atol, rtol=0)


def test_no_logits_in_memory():
    hidden = torch.randn(400, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(152_960, 1024, device="cuda", dtype=torch.bfloat16) * 0.03
    vocab_logsumexp(hidden, weight)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    vocab_logsumexp(hidden, weight)
    assert torch.cuda.max_memory_allocated() - before < 400 * 152_960 // 8
