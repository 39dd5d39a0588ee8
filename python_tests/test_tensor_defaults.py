"""torch's defaults (device, dtype) change nothing: every tensor that is created says where it
stands and of which kind it is."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch

import crs_fast
from crs_fast.decode import capability
from crs_fast.trie import ItemFilter
from python_tests.helpers import tiny_model

PACKAGE = Path(__file__).parent.parent / "crs_fast"
ROOMS = ("ops", "trie", "decode", "quantize")
# Functions of torch that take the default device, and those that take the default dtype too.
DEVICE = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip
DTYPE = {"empty", "eye", "linspace", "ones", "rand", "randn", "zeros"}
FILES = sorted(p for room in ROOMS for p in (PACKAGE / room).rglob("*.py"))


def calls(path):
    """(line, function, what is missing) of each creation that leaves something to a default."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch" and name in DEVICE):
            continue
        given = {keyword.arg for keyword in node.keywords}
        if None in given:  # **kwargs
            continue
        for needed, names in (("device", DEVICE), ("dtype", DTYPE)):
            if name in names and needed not in given:
                yield node.lineno, f"torch.{name}", needed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_tensor_says_device_and_dtype(path):
    assert list(calls(path)) == []


def call_everything():
    """A number or tensors of each public call; the inputs are made on the CPU by name."""
    cpu = torch.device("cpu")
    codes = torch.arange(2, device=cpu)
    sids = torch.cartesian_prod(codes, codes, codes)
    trie = crs_fast.SidTrie.from_sids(sids)
    named = crs_fast.SidTrie.from_sids(sids.tolist(), list("abcdefgh"))
    more = trie.add([[9, 9, 9]], [99]).remove([1])
    vocab = crs_fast.SidVocab([[20, 21], [22, 23], [24, 25]])
    ids = torch.tensor([[3, 4, 5], [3, 3, 6]], device=cpu)
    scores = torch.linspace(-1, 1, 128, dtype=torch.float32, device=cpu).view(2, 64)
    x = torch.linspace(-1, 1, 512, dtype=torch.float32, device=cpu).sin().view(64, 8)
    quantizer = crs_fast.RQKMeans(levels=2, codes=8).fit(x)
    encoded = quantizer.encode(x)
    filters = ItemFilter.stack([trie.filter(deny=[1]), trie.filter(allow=range(4))])
    processor = crs_fast.SidLogitsProcessor(trie, vocab, prompt_length=3, filters=filters)
    results = [
        more.sids(), named.sids(["a", "c"]), vocab.encode(sids), vocab.decode(vocab.encode(sids)),
        processor(ids, scores), encoded, crs_fast.ops.residual_lookup(x, quantizer.codebooks)[1],
        crs_fast.resolve_collisions(x[:8], encoded[:8], quantizer.codebooks), filters.mask(),
    ]  # fmt: skip
    assert named.items(sids[:2]) == [["a"], ["b"]]
    for model in (LLAMA, BLOOM):
        for normalize in ("vocab", "level", "legal"):
            out = crs_fast.recommend(
                model, ids, trie=trie, vocab=vocab, num_beams=8, normalize=normalize,
                filters=filters,
            )  # fmt: skip
            results += [out.scores, out.sids, out.num_valid]
    return results


LLAMA, BLOOM = (tiny_model(kind, 64) for kind in ("llama", "bloom"))


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS = {
    "device": lambda: default_device("meta"),
    "device_context": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.filterwarnings("ignore")
def test_defaults_change_nothing(name):
    wanted = call_everything()
    with CONTEXTS[name]():
        got = call_everything()
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
    # What was made inside serves outside.
    for one, other in zip(call_everything(), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["device", "inference", "bfloat16"])
@pytest.mark.filterwarnings("ignore")
def test_a_first_call_under_other_defaults_is_right(name):
    """Nothing that is remembered of a model, a trie or a vocabulary is of the defaults."""
    ids = torch.tensor([[3, 4, 5]], device="cpu")
    trie = crs_fast.SidTrie.from_sids([[0, 1], [1, 0], [1, 1]])
    vocab = crs_fast.SidVocab([[20, 21], [22, 23]])
    for kind in ("llama", "bloom"):
        model = tiny_model(kind, 64, seed=1)
        with CONTEXTS[name]():
            first = crs_fast.recommend(model, ids, trie=trie, vocab=vocab, num_beams=3)
        then = crs_fast.recommend(model, ids, trie=trie, vocab=vocab, num_beams=3)
        torch.testing.assert_close(first.scores, then.scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "bloom"])
@pytest.mark.filterwarnings("ignore")
def test_autocast(kind, dtype):
    """Scores of the precision that autocast gives; the probe's verdict does not depend on it."""
    model, plain = tiny_model(kind, 64), tiny_model(kind, 64)
    trie = crs_fast.SidTrie.from_sids([[0, 1], [1, 0], [1, 1]])
    vocab = crs_fast.SidVocab([[20, 21], [22, 23]])
    ids = torch.tensor([[3, 4, 5], [3, 3, 6]])
    with torch.autocast("cpu", dtype):
        out = crs_fast.recommend(model, ids, trie=trie, vocab=vocab, num_beams=3)
        verdict = capability(model)
    wanted = crs_fast.recommend(plain, ids, trie=trie, vocab=vocab, num_beams=3)
    assert verdict == capability(plain)
    for row in range(2):
        exact = dict(zip(wanted.items[row], wanted.item_scores[row], strict=True))
        for item, score in zip(out.items[row], out.item_scores[row], strict=True):
            assert score == pytest.approx(exact[item], rel=0.05, abs=0.3)
