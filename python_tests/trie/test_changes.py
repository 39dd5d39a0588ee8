"""Catalogues that change: add and remove against rebuilding, and the slot that holds them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_fast.ops import trie_step
from crs_fast.trie import ItemFilter, SidTrie, TrieSlot
from python_tests.helpers import CASES, random_sids, vocab_of


def same(a: SidTrie, b: SidTrie) -> None:
    for name, left, right in zip(a.tensors._fields, a.tensors, b.tensors, strict=True):
        assert torch.equal(left, right), name
    assert a.item_ids.tolist() == b.item_ids.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=150),
    st.integers(0, 150),
)
def test_add_and_remove_give_what_rebuilding_gives(sids, cut):
    cut = min(cut, len(sids))
    ids = [f"item {i}" for i in range(len(sids))]
    whole = SidTrie.from_sids(sids, ids)
    if 0 < cut < len(sids):
        width = max(map(len, sids))
        padded = [[*row, *[-1] * (width - len(row))] for row in sids]
        start = SidTrie.from_sids(padded[:cut], ids[:cut])
        before = [t.clone() for t in start.tensors]
        same(start.add(padded[cut:], ids[cut:]), whole)
        same(whole.remove(ids[cut:]), start)
        assert all(torch.equal(a, b) for a, b in zip(before, start.tensors, strict=True))


def test_numbers_grow_to_64_bits_and_levels_to_more():
    trie = SidTrie.from_sids([[1, 2], [0, 1]], [5, 3])
    grown = trie.add([[1, 2, 0], [7, -1, -1]], [2**40, -9])
    assert grown.num_levels == 3
    assert grown.items([[1, 2, 0], [7, -1, -1], [1, 2, -1]]) == [[2**40], [-9], [5]]
    assert grown.sids([3, -9]).tolist() == [[0, 1, -1], [7, -1, -1]]
    with pytest.raises(ValueError, match="item 5 must be new"):
        trie.add([[3, 3]], [5])
    with pytest.raises(ValueError, match="item_ids must be int"):
        trie.add([[3, 3]], ["5"])
    with pytest.raises(ValueError, match="one id a SID, 1"):
        trie.add([[3, 3]], [8, 9])
    with pytest.raises(KeyError, match="no item 77"):
        trie.remove([77])


def test_a_catalogue_may_become_empty_and_grow_again():
    trie = SidTrie.from_sids([[1, 2], [0, 1]])
    empty = trie.remove([0, 1])
    assert (empty.num_items, empty.num_nodes, empty.num_levels) == (0, 1, 2)
    same(empty.add([[1, 2], [0, 1]], [0, 1]), trie)


@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_slot_steps_as_the_trie_it_holds(name, sids):
    trie = SidTrie.from_sids(sids)
    slot = TrieSlot(500, num_levels=trie.num_levels, num_codes=300)
    addresses = [t.data_ptr() for t in slot.tensors]
    # A larger catalogue first, so that its remains would show.
    slot.load(SidTrie.from_sids(random_sids(1, 400, trie.num_levels, 200, ragged=True)))
    held = slot.load(trie)
    assert [t.data_ptr() for t in held.tensors] == addresses
    assert held.sids().tolist() == trie.sids().tolist()
    assert held.num_nodes == trie.num_nodes
    assert held.items(trie.sids()) == trie.items(trie.sids())
    tokens = vocab_of(trie.num_levels, 6).tensors()
    scores, nodes = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    allowed = list(range(0, trie.num_items, 2))
    for _ in range(trie.num_levels):
        logits = torch.randn(scores.numel(), 60)
        filters = [ItemFilter.stack([t.filter(allow=allowed), None]) for t in (held, trie)]
        mine, theirs = (
            trie_step(logits, scores, nodes, t.tensors, tokens, 4, filters=f.tensors)
            for t, f in zip((held, trie), filters, strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        scores, nodes = mine[:2]


def test_slot_refuses_what_does_not_fit_and_stays_as_it_is(tmp_path):
    slot = TrieSlot(64, num_levels=2, num_codes=256)
    assert slot.trie.num_items == 0
    trie = slot.load(SidTrie.from_sids(random_sids(0, 64, 2, 256)))
    for other in (random_sids(0, 65, 2, 4), random_sids(0, 5, 3, 4), torch.tensor([[1, 256]])):
        with pytest.raises(ValueError, match=r"TrieSlot\.load: trie must have at most 64 items"):
            slot.load(SidTrie.from_sids(other))
    assert slot.trie.sids().tolist() == trie.sids().tolist()
    other = TrieSlot(128, num_levels=2, num_codes=300)
    assert other.load(slot.trie).sids().tolist() == trie.sids().tolist()
    slot.trie.save(tmp_path / "held")
    same(SidTrie.load(tmp_path / "held"), SidTrie.from_sids(random_sids(0, 64, 2, 256)))
    with pytest.raises(ValueError, match="capacity, num_levels and num_codes"):
        TrieSlot(0, num_levels=2, num_codes=4)


def test_a_filter_of_the_trie_works_over_the_slot_that_holds_it():
    """Either is made with bitmaps as wide as its trie's, and the slot's are wider."""
    sids = random_sids(3, 90, 3, 6)
    trie = SidTrie.from_sids(sids)
    slot = TrieSlot(5000, num_levels=3, num_codes=6)
    slot.load(trie)
    tokens = vocab_of(3, 6).tensors()
    allowed = trie.item_ids.tolist()[::3]
    logits, scores = torch.randn(2, tokens.num_columns), torch.zeros(2, 1)
    nodes = torch.zeros(2, 1, dtype=torch.int64)
    expected = None
    for made_for in (trie, slot.trie):
        given = ItemFilter.stack([made_for.filter(allow=allowed), None])
        for used_over in (trie, slot.trie):
            tensors = given.over(used_over).tensors
            step = trie_step(logits, scores, nodes, used_over.tensors, tokens, 30, filters=tensors)
            expected = step if expected is None else expected
            assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))
            assert torch.equal(given.over(used_over).mask(), given.mask())


def test_filters_of_the_trie_and_of_the_slot_combine():
    trie = SidTrie.from_sids(random_sids(3, 90, 3, 6))
    slot = TrieSlot(5000, num_levels=3, num_codes=6)
    slot.load(trie)
    some, others = trie.item_ids.tolist()[::3], trie.item_ids.tolist()[::2]
    narrow, wide = trie.filter(allow=some), slot.trie.filter(allow=others)
    for a, b in ((narrow, wide), (wide, narrow)):
        assert torch.equal((a & b).mask(), a.mask() & b.mask())
        assert torch.equal((a | b).mask(), a.mask() | b.mask())
        stacked = ItemFilter.stack([a, None, b])
        wanted = torch.cat([a.mask(), torch.ones_like(a.mask()), b.mask()])
        assert torch.equal(stacked.mask(), wanted)
        assert torch.equal(stacked.over(slot.trie).mask(), wanted)


NAMES = {
    "int": lambda numbers: [3 * n - 70 for n in numbers],
    "int64": lambda numbers: [n * 2**33 - 5 for n in numbers],
    "str": lambda numbers: ["ä" * (n % 5) + str(n) for n in numbers],
}


@pytest.mark.parametrize("kind", NAMES)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=90),
    st.data(),
)
def test_changes_in_a_row_give_what_one_rebuild_gives(kind, sids, data):
    """Ids of every kind, their tensors too; old items stand before new ones of the same SID."""
    sids = [[*row, *[-1] * (3 - len(row))] for row in sids]
    names = NAMES[kind](range(len(sids)))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(sids)), min_size=2, max_size=2)))
    trie = SidTrie.from_sids(sids[: cuts[0]], names[: cuts[0]])
    if data.draw(st.booleans()):
        trie.filter(allow=names[:1])  # makes the look-up table
    gone = data.draw(st.lists(st.sampled_from(names[: cuts[1]]), max_size=20))
    if cuts[0] < cuts[1]:
        trie = trie.add(sids[cuts[0] : cuts[1]], names[cuts[0] : cuts[1]])
    trie = trie.remove(gone)  # may name an item twice
    if cuts[1] < len(sids):
        trie = trie.add(sids[cuts[1] :], names[cuts[1] :])
    left = [n for n, name in enumerate(names) if name not in gone]
    if not left:
        assert trie.num_items == 0
        return
    whole = SidTrie.from_sids([sids[n] for n in left], [names[n] for n in left])
    same(trie, whole)
    for one in ("numbers", "text", "offsets"):
        a, b = getattr(trie.item_ids, one), getattr(whole.item_ids, one)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b))


@pytest.mark.parametrize("kind", NAMES)
def test_changes_refuse_in_the_same_words_before_and_after_a_look_up(kind):
    names = NAMES[kind](range(6))
    for looked_up in (False, True):
        trie = SidTrie.from_sids([[n, n] for n in range(4)], names[:4])
        if looked_up:
            trie.sids(names[:1])
        with pytest.raises(ValueError, match=f"item {names[2]!r} must be new"):
            trie.add([[0, 0], [1, 1]], [names[4], names[2]])
        with pytest.raises(KeyError, match=rf"no item {names[4]!r} \(2 unknown ids\)"):
            trie.remove([names[1], names[4], names[5]])


def test_filters_made_before_are_refused_for_the_changed_trie():
    trie = SidTrie.from_sids([[n % 7, n] for n in range(20)])
    before = trie.filter(allow=[1, 2])
    with pytest.raises(ValueError, match="filters must be over the trie's 21 items"):
        before.over(trie.add([[0, 0]], [20]))
    swapped = trie.remove([3]).add([[6, 99]], [3])
    with pytest.raises(ValueError, match="others, or in another order"):
        before.over(swapped)
