"""Every instruction set that this machine can run: how one is chosen, and that all agree."""

import pytest
import torch

from crs_fast import _native
from crs_fast.ops import residual_statistics, trie_mask, trie_step
from crs_fast.trie import SidTrie
from python_tests.helpers import vocab_of


@pytest.fixture
def native():
    """The module; the instruction set and the environment are as before afterwards."""
    module = _native.load()
    before = module.isa
    yield module
    module.use_isa(before)


@pytest.fixture
def load_anew(monkeypatch):
    """Load with CRS_FAST_ISA set, as a new process would."""

    def load(isa):
        monkeypatch.setenv("CRS_FAST_ISA", isa)
        return _native.load.__wrapped__()

    return load


def test_the_environment_chooses(native, load_anew):
    assert native.isas[0] == "portable"
    for isa in native.isas:
        assert load_anew(isa).isa == isa
        assert _native.describe()["isa"] == isa


@pytest.mark.parametrize("isa", ["avx1024", "AVX2"])
def test_an_impossible_choice_is_an_error(native, load_anew, isa):
    with pytest.raises(
        ValueError, match=rf"^CRS_FAST_ISA must be one of portable.*\(got '{isa}'\)"
    ):
        load_anew(isa)
    with pytest.raises(ValueError, match=f"use_isa: .*{isa}"):
        native.use_isa(isa)


def under_each(native, op):
    results = []
    for isa in native.isas:
        native.use_isa(isa)
        results.append(op())
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "dim", "codes"), [(500, 33, 70), (301, 200, 37)])
def test_lookups_agree_in_every_bit(native, rows, dim, codes, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator).to(dtype)
    books = torch.randn(3, codes, dim, generator=generator)
    books[:, 5] = books[:, 4]  # float32 cannot order these two
    first, *others = under_each(native, lambda: residual_statistics(x, books))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_steps_and_masks_agree(native, dtype):
    generator = torch.Generator().manual_seed(1)
    trie = SidTrie.from_sids(torch.randint(20, (3000, 3), generator=generator))
    tokens = vocab_of(3, 20).tensors()
    logits = torch.randn(14, tokens.num_columns + 13, generator=generator).to(dtype)
    scores, nodes = torch.zeros(2, 7), torch.full((2, 7), -1)
    nodes[:, 0] = 0
    results = under_each(native, lambda: trie_step(logits, scores, nodes, trie.tensors, tokens, 9))
    for score, *rest in results[1:]:
        torch.testing.assert_close(score, results[0][0], rtol=0, atol=2e-6)
        assert all(torch.equal(a, b) for a, b in zip(rest, results[0][1:], strict=True))
    masks = under_each(native, lambda: trie_mask(logits, nodes.flatten(), trie.tensors, tokens))
    assert all(torch.equal(mask, masks[0]) for mask in masks)
