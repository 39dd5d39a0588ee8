"""Every op of `torch.ops.crs_fast`: registered by one import, correct to torch, traced whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crs_fast import ops
from crs_fast.trie import SidTrie
from python_tests.helpers import CASES, vocab_of

from .tree_attention.cases import CASES as TREES
from .tree_attention.cases import tree

DEFINED = re.compile(r'register\(\s*f?"(\w+)\(')


def defined() -> list[str]:
    sources = Path(ops.__file__).parent.rglob("dispatch.py")
    return sorted(name for path in sources for name in DEFINED.findall(path.read_text()))


def arguments(name: str, filtered: bool = False) -> tuple:
    generator = torch.Generator().manual_seed(0)
    trie = SidTrie.from_sids(CASES[2][1])
    tokens = vocab_of(3, 6, end=3).tensors()
    filters = tuple(trie.filter(allow=[0, 1]).tensors) if filtered else (None, None)
    nodes = torch.zeros(2, dtype=torch.int64)
    logits = torch.randn(2, 40, generator=generator)
    x = torch.randn(9, 5, generator=generator)
    books = torch.randn(2, 7, 5, generator=generator)
    query, key, value, *rest = tree(TREES[1], padded=filtered)
    return {
        "residual_lookup": (x, books, True, not filtered),
        "residual_statistics": (x, books, not filtered),
        "tree_attention": (query, key, value, *rest, 0.3, 2.0 if filtered else None),
        "trie_mask": (logits, nodes, *trie.tensors, *tokens, *filters),
        "trie_mask_": (logits, nodes, *trie.tensors, *tokens, *filters),
        "trie_step": (
            logits, torch.zeros(1, 2), nodes[None], *trie.tensors, *tokens, *filters, 4, "vocab",
            1.0,
        ),
        "vocab_logsumexp": (
            x, torch.randn(30, 5, generator=generator), None, 0.5, 2.0 if filtered else None, 1.0,
        ),
        "trie_walk": (*trie.tensors, torch.zeros(2, 3, dtype=torch.int64)),
    }[name]  # fmt: skip


def test_one_import_registers_all_and_needs_neither_transformers_nor_triton():
    assert len(defined()) >= 7
    code = (
        "import sys, torch, crs_fast.ops;"
        "[getattr(torch.ops.crs_fast, name).default for name in sys.argv[1:]];"
        "assert not {'transformers', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *defined()], check=True)


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("name", defined())
def test_opcheck(name, filtered):
    torch.library.opcheck(getattr(torch.ops.crs_fast, name).default, arguments(name, filtered))


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("name", defined())
def test_traced_into_one_graph(name, filtered):
    torch.compiler.reset()  # the same `run` for every op: more kinds than dynamo keeps
    op = getattr(torch.ops.crs_fast, name)

    def run(*args):
        first, *rest = args
        first = first.clone()
        result = op(first, *rest)
        return (first,) if result is None else (first, *torch.utils._pytree.tree_leaves(result))

    args = arguments(name, filtered)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(*args), run(*args), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_public_functions_are_traced_whole():
    """Their checks too, which the ops alone don't have."""
    trie = SidTrie.from_sids(CASES[2][1]).tensors
    tokens = vocab_of(3, 6, end=3).tensors()
    query, key, value, ancestors, prompt, _ = tree(TREES[1])
    mask = torch.ones(2, prompt, dtype=torch.bool)

    def run(logits, x, books, query, mask):
        nodes = ops.trie_walk(trie, torch.zeros(2, 3, dtype=torch.int64))
        masked = ops.trie_mask(logits, nodes, trie, tokens)
        step = ops.trie_step(logits, torch.zeros(1, 2), nodes[None], trie, tokens, 4)
        codes = ops.residual_codes(x, books)
        lookup = ops.residual_lookup(x, books)
        statistics = ops.residual_statistics(x, books)
        heads = ops.tree_attention.tree_attention(query, key, value, ancestors, prompt, mask)
        return masked, *step, codes, *lookup, *statistics, heads

    args = (torch.randn(2, 40), torch.randn(9, 5), torch.randn(2, 7, 5), query, mask)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(*args), run(*args), strict=True):
        assert torch.equal(got, expected)
