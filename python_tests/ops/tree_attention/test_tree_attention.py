"""Tree attention against one dense mask, and the Triton kernel in Triton's interpreter."""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
from crs_fast.ops.tree_attention import tree_attention
from crs_fast.ops.tree_attention import triton as kernel
from crs_fast.ops.tree_attention.dispatch import _attend
from crs_fast.ops.tree_attention.reference import tree_attention as oracle

from .cases import CASES, tree

IN_THE_INTERPRETER = pytest.mark.skipif(
    torch.cuda.is_available(), reason="test_tree_attention_gpu.py runs the compiled kernel"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def close(got, wanted):
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_the_oracle(case, padded, dtype):
    arguments = tree(case, 1, dtype, padded)
    close(tree_attention(*arguments), oracle(*arguments))
    close(tree_attention(*arguments, 0.3, 2.0), oracle(*arguments, 0.3, 2.0))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("padded", "splits", "softcap"), [(False, 1, None), (True, 3, None), (True, 1, 2.0)]
)
@IN_THE_INTERPRETER
def test_kernel_in_the_interpreter(case, padded, splits, softcap):
    arguments = tree(case, 2, torch.float32, padded)
    got = kernel.tree_attention(*arguments, 0.3, softcap, splits)
    close(got, oracle(*arguments, 0.3, softcap))


@IN_THE_INTERPRETER
def test_a_stretch_without_tokens_counts_for_nothing():
    query, key, value, ancestors, prompt, _ = tree((2, 4, 2, 5, 2, 192, 16, 16))
    mask = torch.zeros(2, prompt, dtype=torch.bool)
    mask[0, 70], mask[1, 3] = True, True
    key[:, :, :prompt][~mask[:, None].expand(-1, 2, -1)] = float("nan")
    clean = torch.nan_to_num(key)
    wanted = oracle(query, clean, value, ancestors, prompt, mask, 0.25)
    close(kernel.tree_attention(query, key, value, ancestors, prompt, mask, 0.25, None, 3), wanted)


def test_refusals():
    query, key, value, ancestors, prompt, _ = tree(CASES[1])
    with pytest.raises(ValueError, match="ancestors must have shape"):
        tree_attention(query, key, value, ancestors[:, 1:], prompt)
    with pytest.raises(ValueError, match="query heads must be a multiple"):
        tree_attention(query[:, :3], key, value, ancestors, prompt)
    with pytest.raises(ValueError, match="prompt_mask must have shape"):
        tree_attention(query, key, value, ancestors, prompt, torch.ones(2, 1).bool())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("query", lambda t: t.long(), "query must be float32, .* float64 .got int64"),
        ("query", lambda t: t[0], r"query must have shape \[B, H, M, D\]"),
        ("key", lambda t: t.half(), "key must be float32 .got float16"),
        ("key", lambda t: t[..., :3], r"key must have shape .* with B = 2, D = 16"),
        ("value", lambda t: t.long(), "value must be float32, .* .got int64"),
        ("value", lambda t: t[:, :, 1:], "value must have shape .* with B = 2, G = 2, S = 30"),
        ("ancestors", lambda t: t.int(), "ancestors must be int64 .got int32"),
        ("ancestors", lambda t: t.to("meta"), "ancestors must be on the query's device cpu"),
        ("prompt_mask", lambda t: t.long(), "prompt_mask must be bool .got int64"),
        ("prompt_mask", lambda t: t.to("meta"), "prompt_mask must be on the query's device cpu"),
        ("prompt_length", lambda n: -1, "prompt_length must lie in 0 .. 30"),
        ("softcap", lambda _: 0.0, "softcap must be above 0 .got 0.0"),
    ],
)
def test_refuses_what_no_kernel_can_read(name, change, message):
    names = ("query", "key", "value", "ancestors", "prompt_length", "prompt_mask")
    arguments = dict(zip(names, tree(CASES[1], padded=True), strict=True))
    arguments[name] = change(arguments.get(name))
    if name == "prompt_length":
        arguments["prompt_mask"] = None
    with pytest.raises(ValueError, match=f"tree_attention: {message}"):
        tree_attention(**arguments)


def test_float64_and_values_of_another_dtype():
    """Under autocast rotary embeddings leave queries and keys in float32, values in bfloat16."""
    query, key, value, *rest = tree(CASES[2], 4)
    wanted = oracle(query, key, value, *rest)
    in_float64 = tree_attention(query.double(), key.double(), value.double(), *rest)
    assert in_float64.dtype == torch.float64
    torch.testing.assert_close(in_float64.float(), wanted, atol=1e-5, rtol=1e-5)
    mixed = tree_attention(query, key, value.bfloat16(), *rest)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, wanted, atol=3e-2, rtol=3e-2)


COMPILE = """
import os, re, subprocess, sys, tempfile, torch, triton
from triton.backends.nvidia import compiler as nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crs_fast.ops.tree_attention import triton as ta
names = ta._forward.arg_names
dtype, width, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pointers = dict(query=f"*{dtype}", key=f"*{dtype}", value=f"*{dtype}", ancestors="*i64", mask="*i1",
                out="*fp32", lse="*fp32", scale="fp32", softcap="fp32")
rows, warps = ta._block(400, width, size)
constants = dict(PER=2, D=width, E=width, BD=width, BE=width, DEPTH=3, BM=rows, BN=64, MASKED=True,
                 CAPPED=False)
signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
# What every call finds: aligned tensors of even strides.
even = [n for n in names if n[1:] in ("b", "h", "m", "n") or signature[n].startswith("*")]
aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in even}
source = ASTSource(ta._forward, signature, constants, aligned)
options = {"num_warps": warps, "num_stages": 2}
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
    file.write(ptx)
    file.flush()
    how = [nvidia.get_ptxas(90).path, "-v", "-arch=sm_90a", file.name, "-o", os.devnull]
    said = subprocess.run(how, capture_output=True, text=True, check=True).stderr
print(re.search(r"(\\d+) bytes spill stores", said).group(1))
"""


@pytest.mark.parametrize(("dtype", "width", "size"), [("bf16", 128, 2), ("fp32", 64, 4)])
def test_it_compiles_for_a_device_that_is_not_here(dtype, width, size):
    """The interpreter takes code that the compiler refuses, or can't fit into registers."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, dtype, str(width), str(size)]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert int(done.stdout) <= 64  # bytes a thread: blocks too large for it spill thousands


def test_the_kernel_is_launched_on_the_querys_device():
    query = SimpleNamespace(is_cuda=True, dtype=torch.float16, device=torch.device("cuda", 1))
    with (
        mock.patch("torch.cuda.device") as device,
        mock.patch("crs_fast.ops.tree_attention.triton.tree_attention") as kernel,
    ):
        kernel.side_effect = lambda *_: device.return_value.__enter__.called
        assert _attend(query, None, None)
    device.assert_called_once_with(query.device)
