"""The vocabulary's log-sum-exp against float64, by the reference and by the interpreted kernel."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

from crs_fast.ops import vocab_logsumexp
from crs_fast.ops.vocab_logsumexp import reference
from crs_fast.ops.vocab_logsumexp import triton as kernel

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="test_vocab_logsumexp_gpu.py runs the compiled kernel"
    ),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]
RUNS = [vocab_logsumexp, kernel.vocab_logsumexp]
PLAIN = (None, 1.0, None, 1.0)


def _random(rows, dim, vocab, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + vocab)
    hidden = torch.randn(rows, dim, generator=generator)
    weight = torch.randn(vocab, dim, generator=generator) / dim**0.5
    return hidden.to(dtype), weight.to(dtype), torch.randn(vocab, generator=generator).to(dtype)


def _in_float64(hidden, weight, bias, scale, softcap, temperature):
    logits = hidden.double() @ weight.double().T * scale
    if bias is not None:
        logits += bias.double() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits / temperature).logsumexp(1).float()


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 20, 65), (17, 40, 130), (70, 70, 64)])
def test_random(run, shape):
    hidden, weight, _ = _random(*shape)
    want = _in_float64(hidden, weight, *PLAIN)
    torch.testing.assert_close(run(hidden, weight, *PLAIN), want, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_bias_scale_softcap_and_temperature(run):
    hidden, weight, bias = _random(5, 16, 70)
    for rest in (
        (bias, 1.0, None, 1.0),
        (None, 0.25, None, 1.0),
        (bias, 3.0, 2.0, 0.7),
        (bias, -1.0, 30.0, 1.5),
    ):
        want = _in_float64(hidden, weight, *rest)
        torch.testing.assert_close(run(hidden, weight, *rest), want, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", kernel.DESIGN.designs)
def test_half_precision_rounds_as_the_head_does(name):
    """In float16: Triton's interpreter multiplies the bits of bfloat16 numbers."""
    hidden, weight, bias = _random(4, 72, 300, torch.float16)
    want = reference.vocab_logsumexp(hidden, weight, bias, 0.5, 5.0)
    with kernel.DESIGN.using(name):
        got = kernel.vocab_logsumexp(hidden, weight, bias, 0.5, 5.0, 1.0)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("run", RUNS)
def test_strided_rows_and_no_rows(run):
    hidden, weight, _ = _random(6, 20, 66)
    want = _in_float64(hidden[::2, ::2], weight[:, ::2], *PLAIN)
    torch.testing.assert_close(run(hidden[::2, ::2], weight[:, ::2], *PLAIN), want)
    assert run(hidden[:0], weight, *PLAIN).shape == (0,)


@pytest.mark.parametrize("run", RUNS)
def test_large_forbidden_and_missing_numbers(run):
    hidden, weight, bias = _random(3, 8, 70)
    bias[:64] = -torch.inf  # a whole tile
    want = _in_float64(hidden * 1e3, weight, bias, 1.0, None, 1.0)
    torch.testing.assert_close(run(hidden * 1e3, weight, bias, 1.0, None, 1.0), want)
    bias[:] = -torch.inf
    assert not run(hidden, weight, bias, 1.0, None, 1.0).isfinite().any()
    bias[:] = 0
    hidden[1, 2], bias[69] = torch.nan, 0
    assert run(hidden, weight, bias, 1.0, None, 1.0).isfinite().tolist() == [True, False, True]
    bias[69] = torch.inf
    assert not run(hidden, weight, bias, 1.0, None, 1.0).isfinite().any()


def test_wrong_arguments_are_named():
    hidden, weight, bias = _random(3, 8, 10)
    for arguments, match in (
        ((hidden[0], weight), r"hidden must be \[R, D\]"),
        ((hidden.double(), weight), "hidden must be a dense tensor of float32"),
        ((hidden, weight.half()), "weight must be a dense tensor of float32"),
        ((hidden, weight[:, 1:]), "weight must be .* D = 8"),
        ((hidden, weight[:0]), "V at least 1"),
        ((hidden, weight, bias[1:]), r"bias must be \[10\]"),
        ((hidden, weight, None, torch.inf), "scale must be a finite number"),
        ((hidden, weight, None, 1.0, 0.0), "softcap must be finite and above 0"),
        ((hidden, weight, None, 1.0, None, 0.0), "temperature must be finite and above 0"),
    ):
        with pytest.raises(ValueError, match=f"vocab_logsumexp: .*{match}"):
            vocab_logsumexp(*arguments)
