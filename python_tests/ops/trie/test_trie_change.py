"""Insertion into a trie and removal from it, against rebuilding, tensor for tensor."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crs_fast import _native
from crs_fast.ops import TrieTensors, trie_build, trie_insert, trie_remove, trie_rows
from crs_fast.ops.trie import native, reference
from crs_fast.ops.trie.checks import TRIES
from crs_fast.trie import SidTrie, TrieSlot
from python_tests.helpers import random_sids

# The fixture sets the same for every example.
FIXTURES = [HealthCheck.function_scoped_fixture]


def same(trie, other) -> None:
    for name, a, b in zip(TrieTensors._fields, trie, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a, b), name


def check_insert(trie, old, new) -> None:
    """`trie` is that of the rows `old`."""
    levels = new.shape[1]
    padded = torch.nn.functional.pad(old, (0, levels - old.shape[1]), value=-1)
    whole, whole_order = reference.trie_build(torch.cat([padded, new]))
    made, order, at = trie_insert(trie, new)
    same(made, whole)
    assert order.dtype == torch.int32
    positions = at + torch.arange(len(new))
    assert torch.equal(whole_order[positions], order + len(old))
    again, other_order, other_at = reference.trie_insert(trie, new)
    same(made, again)
    assert torch.equal(order, other_order)
    assert torch.equal(at, other_at)


def check_remove(trie, items) -> None:
    keep = torch.ones(int(trie.level[-1, 1]), dtype=torch.bool)
    keep[items] = False
    made = trie_remove(trie, items)
    same(made, reference.trie_build(trie_rows(trie)[keep])[0])
    same(made, reference.trie_remove(trie, items))


@pytest.fixture(autouse=True, params=[0, 4], ids=["runs", "runs or rebuilt"])
def _largest_change(request, monkeypatch):
    """Large changes rebuild the trie; here they go by runs too."""
    monkeypatch.setattr(native, "_REBUILD", request.param)


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=140)


def tensor_of(rows, levels=4):
    padded = [[*row, *[-1] * (levels - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(-1, levels)


@settings(max_examples=80, deadline=None, suppress_health_check=FIXTURES)
@given(ROWS, ROWS, st.integers(4, 6))
def test_any_rows_are_inserted(old, new, levels):
    """Few codes: SIDs repeat, end within others, and take over the beginnings of nodes."""
    old, new = tensor_of(old), tensor_of(new, levels)
    check_insert(trie_build(old)[0], old, new)


@settings(max_examples=80, deadline=None, suppress_health_check=FIXTURES)
@given(ROWS, st.data())
def test_any_items_are_removed(rows, data):
    trie = trie_build(tensor_of(rows))[0]
    chosen = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    check_remove(trie, torch.tensor(chosen, dtype=torch.bool).nonzero().squeeze(1))


@settings(max_examples=40, deadline=None, suppress_health_check=FIXTURES)
@given(ROWS, st.integers(0, 140), st.integers(0, 140))
def test_whole_runs_of_items_are_removed(rows, first, size):
    """Nodes lose all of their items, up to the whole trie."""
    check_remove(trie_build(tensor_of(rows))[0], torch.arange(len(rows))[first : first + size])


@pytest.mark.parametrize("items", [1, 63, 64, 65, 128, 20_000])
@pytest.mark.parametrize(("levels", "codes"), [(1, 3), (4, 2), (3, 60), (5, 300), (2, 2**31)])
@pytest.mark.parametrize("ragged", [False, True])
def test_random_rows(items, levels, codes, ragged):
    """Both sides of a word's end, sparse depths and dense ones, several chunks of changes."""
    old = random_sids(items, items, levels, codes, ragged)
    trie = trie_build(old)[0]
    generator = torch.Generator().manual_seed(items)
    for count in {1, 64, items // 7, 2 * items}:
        check_insert(trie, old, random_sids(count + 1, count, levels, codes, ragged))
        check_remove(trie, torch.randperm(items, generator=generator)[:count].sort().values)


def test_codes_become_wider_and_narrower():
    old = torch.tensor([[3, 255], [2, 0], [3, 1]])
    trie = trie_build(old)[0]
    for highest in (255, 256, 2**15 - 1, 2**15, 2**31 - 1):
        check_insert(trie, old, torch.tensor([[3, highest], [3, 1]]))
        grown = trie_insert(trie, torch.tensor([[3, highest]]))[0]
        check_remove(grown, torch.tensor([3]))
        check_remove(grown, torch.tensor([0]))
        check_insert(grown, trie_rows(grown), torch.tensor([[0, 7]]))


def test_more_levels_than_the_trie_has():
    old = random_sids(0, 200, 2, 5, ragged=True)
    trie = trie_build(old)[0]
    check_insert(trie, old, random_sids(1, 200, 5, 5, ragged=True))
    check_insert(trie, old, random_sids(1, 3, 127, 5, ragged=True))


def test_the_room_of_a_slot_is_not_taken_over():
    sids = random_sids(4, 300, 3, 9, ragged=True)
    slot = TrieSlot(5000, num_levels=3, num_codes=1000)
    slot.load(SidTrie.from_sids(random_sids(0, 4000, 3, 900)))
    trie = slot.load(SidTrie.from_sids(sids)).tensors
    check_insert(trie, trie_rows(trie), random_sids(5, 50, 3, 9, ragged=True))
    check_remove(trie, torch.arange(0, 300, 3))


def test_nothing_is_changed():
    trie = trie_build(random_sids(0, 100, 3, 4))[0]
    none = torch.zeros(0, 3, dtype=torch.int64)
    same(trie_insert(trie, none)[0], trie)
    same(trie_remove(trie, none[:, 0]), trie)
    same(trie_insert(trie_build(none)[0], none)[0], trie_build(none)[0])


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize(
    "sids", [[[0, -2]], [[-1, -1]], [[0, 1], [1, 2], [-1, 2]], [[0, 2**31]], [[0] * 128]]
)
def test_rows_are_refused_in_the_words_of_trie_build(sids, built, monkeypatch):
    trie = trie_build(torch.tensor([[0, 1]]))[0]
    with pytest.raises(ValueError, match="trie_build: ") as expected:
        trie_build(torch.tensor(sids))
    if not built:
        monkeypatch.setattr(_native, "load", lambda: None)
    with pytest.raises(ValueError, match="trie_build: ") as got:
        trie_insert(trie, torch.tensor(sids))
    assert str(got.value) == str(expected.value)


def test_other_arguments_are_refused():
    trie = trie_build(torch.tensor([[0, 1], [1, 1], [2, 0]]))[0]
    with pytest.raises(ValueError, match="trie_insert: sids must have at least the trie's 2 level"):
        trie_insert(trie, torch.tensor([[1]]))
    with pytest.raises(ValueError, match="trie_insert: sids must be int64"):
        trie_insert(trie, torch.zeros(1, 2))
    huge = trie._replace(level=torch.tensor([[0, 0], [0, 0], [0, 2**28 - 1]]))
    TRIES.remember(huge)  # nobody has memory for a real one
    with pytest.raises(ValueError, match="fewer than 2\\^28 items \\(got 268435456\\)"):
        trie_insert(huge, torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match=r"trie_remove: items must lie in 0 \.\. 2"):
        trie_remove(trie, torch.tensor([3]))
    for items in ([1, 1], [1, 0]):
        with pytest.raises(ValueError, match="trie_remove: items must be distinct and ascend"):
            trie_remove(trie, torch.tensor(items))
    meta = TrieTensors(*(t.to("meta") for t in trie))._replace(level=trie.level)
    with pytest.raises(ValueError, match="trie_remove: the trie must be on the CPU"):
        trie_remove(meta, torch.zeros(1, dtype=torch.int64, device="meta"))
