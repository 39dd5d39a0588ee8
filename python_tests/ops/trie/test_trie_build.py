"""The native trie builder against the plain-PyTorch oracle, tensor for tensor."""

import signal
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_fast import _native
from crs_fast.ops import trie_build
from crs_fast.ops.trie import reference
from crs_fast.trie import SidTrie
from python_tests.helpers import CASES, random_sids


def same(mine, theirs) -> None:
    (trie, order), (other, other_order) = mine, theirs
    for name, a, b in zip(trie._fields, trie, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a, b), name
    assert order.dtype == other_order.dtype == torch.int32
    assert torch.equal(order, other_order)


def both(sids, num_sorted=0) -> None:
    same(trie_build(sids, num_sorted), reference.trie_build(sids, num_sorted))


@pytest.mark.parametrize("items", [0, 1, 7, 63, 64, 65, 128, 129, 5000, 70_000])
@pytest.mark.parametrize(("levels", "codes"), [(1, 3), (4, 2), (3, 60), (5, 300), (2, 2**31)])
@pytest.mark.parametrize("ragged", [False, True])
def test_random_rows(items, levels, codes, ragged):
    """Few codes a level make sparse depths, many dense ones; 70,000 items are two chunks."""
    sids = random_sids(items, items, levels, codes, ragged)
    both(sids)
    order = trie_build(sids)[1].long()
    both(sids[order], items)
    both(torch.cat([sids[order], sids[: items // 2]]), items)


@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_cases(name, sids):
    both(SidTrie.from_sids(sids).sids())


@pytest.mark.parametrize("highest", [255, 256, 2**15 - 1, 2**15, 2**16, 2**31 - 1])
def test_code_widths(highest):
    both(torch.tensor([[0, highest], [highest, -1], [0, 0]]))


def test_many_levels_and_few_nodes():
    both(random_sids(0, 300, 127, 2, ragged=True))
    both(torch.zeros(100, 3, dtype=torch.int64))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=150))
def test_any_rows(rows):
    padded = [[*row, *[-1] * (4 - len(row))] for row in rows]
    both(torch.tensor(padded, dtype=torch.int64).reshape(-1, 4))


@pytest.mark.parametrize(
    ("sids", "num_sorted"),
    [
        ([[0, 0], [0, -2]], 0),
        ([[-1, -1]], 0),
        ([[0, 2], [1, 2], [-1, 2]], 0),
        ([[0, -1, 2]], 0),
        ([[2**31]], 0),
        ([[0] * 128], 0),
        ([[2], [0], [1]], 3),
        ([[2], [0], [1]], 2),
    ],
)
def test_both_refuse_in_the_same_words(sids, num_sorted):
    said = []
    for build in (trie_build, reference.trie_build):
        with pytest.raises(ValueError, match="trie_build: ") as caught:
            build(torch.tensor(sids), num_sorted)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_without_the_native_module(monkeypatch):
    sids = random_sids(0, 200, 4, 5, ragged=True)
    wanted = trie_build(sids)
    monkeypatch.setattr(_native, "load", lambda: None)
    seen = []
    same(trie_build(sids, progress=seen.append), wanted)
    assert seen == [1.0]
    trie = SidTrie.from_sids(sids)
    assert trie.remove([0]).add(sids[:1], [0]).sids([0, 5]).tolist() == sids[[0, 5]].tolist()


def test_what_progress_raises_ends_the_build(monkeypatch):
    monkeypatch.setattr("crs_fast.ops.trie.native._POLL_SECONDS", 0.001)

    class Enough(Exception):
        pass

    def report(share):
        seen.append(share)
        if len(seen) == 2:
            raise Enough

    sids = torch.randint(100, (300_000, 4), generator=torch.Generator().manual_seed(0))
    seen = []
    with pytest.raises(Enough):
        trie_build(sids, progress=report)
    assert 0 < seen[0] <= seen[1] < 1
    trie_build(sids[:1000], progress=seen.append)
    assert seen[2:] == [1.0]


@pytest.fixture
def python_handles_ctrl_c():
    """A shell starts its background jobs with Ctrl-C ignored, and Python leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_the_build(threads, python_handles_ctrl_c):
    sids = torch.randint(100, (2_000_000, 4), generator=torch.Generator().manual_seed(0))
    order = torch.empty(len(sids), dtype=torch.int32)
    builder = _native.load().TrieBuilder(
        sids=sids.data_ptr(),
        num_items=len(sids),
        levels=4,
        num_sorted=0,
        threads=threads,
        poll=lambda: None,
        poll_seconds=0.01,
    )
    timer = threading.Timer(0.02, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        builder.sort(order=order.data_ptr())
    timer.join()
    assert builder.progress() < 0.8  # sorted to the end it is 5 / 6


MEMORY = """
import resource, torch
from crs_fast.trie import SidTrie

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

SidTrie.from_sids(torch.zeros(1000, 2, dtype=torch.int64))
sids = torch.randint({codes}, ({items}, {levels}))
ids = torch.arange({items})
before = peak()
trie = SidTrie.from_sids(sids, ids)
result = sum(t.nbytes for t in (*trie.tensors, trie.item_ids.numbers))
print((peak() - before) / result)
"""


@pytest.mark.parametrize(("items", "levels", "codes"), [(4_000_000, 4, 256), (1_000_000, 8, 2048)])
def test_a_build_takes_three_times_its_result_at_most(items, levels, codes):
    """In a process of its own, where the peak is that of this build; that takes 4 s."""
    command = [sys.executable, "-c", MEMORY.format(items=items, levels=levels, codes=codes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 3
