"""Item ids: the types people have them in, and the speed of finding them among many."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crs_fast.trie import SidTrie
from crs_fast.trie.item_ids import ItemIds

SIDS = [[0, 1], [1, 0], [1, 1]]


class Series:
    """As pandas hands a column out."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def tolist(self):
        return list(self.values)

    def to_numpy(self):
        return np.array(self.values)


IDS = {
    "np.int64 in a list": (list(np.array([5, 6, 7])), [5, 6, 7]),
    "np.uint64 in a list": (list(np.array([5, 6, 7], dtype=np.uint64)), [5, 6, 7]),
    "np.int32 among ints": ([5, np.int32(6), 7], [5, 6, 7]),
    "np.str_ in a list": (list(np.array(["a", "b", "c"])), ["a", "b", "c"]),
    "np.str_ among strs": (["a", np.str_("b"), "c"], ["a", "b", "c"]),
    "an array of uint64": (np.array([5, 6, 7], dtype=np.uint64), [5, 6, 7]),
    "an array of objects": (np.array(["a", "b", "c"], dtype=object), ["a", "b", "c"]),
    "a tensor": (torch.tensor([5, 6, 7], dtype=torch.int16), [5, 6, 7]),
    "a list of tensors": ([torch.tensor(5), torch.tensor(6), torch.tensor(7)], [5, 6, 7]),
    "a column": (Series([5, 6, 7]), [5, 6, 7]),
    "dictionary keys": ({"a": 1, "b": 2, "c": 3}.keys(), ["a", "b", "c"]),
    "the ends of int64": ([-(2**63), 0, 2**63 - 1], [-(2**63), 0, 2**63 - 1]),
}


@pytest.mark.parametrize(("ids", "plain"), IDS.values(), ids=IDS)
def test_ids_are_taken_in_the_types_people_have(ids, plain):
    trie = SidTrie.from_sids(SIDS, ids)
    assert trie.item_ids.tolist() == plain
    assert {type(one) for one in trie.item_ids.tolist()} <= {int, str}
    listed = ids if isinstance(ids, Series) else list(ids)
    assert trie.filter(deny=listed).mask().sum() == 0
    assert torch.equal(trie.sids(listed), trie.sids(plain))
    if isinstance(listed, list):
        assert trie.remove(listed[:1]).item_ids.tolist() == plain[1:]


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        ([1, 2, 2**63], "9223372036854775808"),
        ([1, 2, -(2**70)], "-1180591620717411303424"),
        (np.array([1, 2, 2**63 + 5], dtype=np.uint64), "9223372036854775813"),
        (torch.tensor([1, 2, 2**63 + 5], dtype=torch.uint64), "uint64"),
        ([True, False, True], "bool"),
        ([1.0, 2.0, 3.0], "float"),
        ([np.float64(1), np.float64(2), np.float64(3)], "float"),
        (["a", None, "c"], "NoneType"),
        (["a", float("nan"), "c"], "float"),
        ([b"a", b"b", b"c"], "bytes"),
        ("abc", "'abc'"),
        (b"abc", "b'abc'"),
        (np.array(5), "5"),
        (["a", "\ud83d", "c"], r"'\\ud83d'"),
    ],
)
def test_other_ids_are_refused_in_one_sentence(ids, got):
    with pytest.raises(ValueError, match=rf"^SidTrie: item_ids must be .*\(got .*{got}"):
        SidTrie.from_sids(SIDS, ids)


@pytest.mark.parametrize("unknown", ["d", "\ud83d", "", 1, 1.5, None, np.str_("x")])
def test_what_is_no_id_is_not_found(unknown):
    trie = SidTrie.from_sids(SIDS, ["a", "b", "c"])
    with pytest.raises(KeyError, match=r"no item .* \(1 unknown ids\)"):
        trie.filter(deny=["a", unknown])


def test_a_text_is_no_list_of_ids():
    trie = SidTrie.from_sids(SIDS, ["a", "b", "c"])
    for ask in (trie.sids, trie.remove, lambda ids: trie.filter(allow=ids)):
        with pytest.raises(ValueError, match="must be a list of ids"):
            ask("abc")


SID_ROWS = {
    "tensors": [torch.tensor([0, 1]), torch.tensor([1])],
    "arrays": [np.array([0, 1]), np.array([1])],
    "tuples": ((0, 1), (1,)),
    "lists of numpy ints": [[np.int64(0), np.uint64(1)], [np.int8(1)]],
    "an array of lists": np.array([[0, 1], [1]], dtype=object),
    "mixed": [[0, 1], torch.tensor([1])],
}


@pytest.mark.parametrize("rows", SID_ROWS.values(), ids=SID_ROWS)
def test_sids_are_taken_as_rows_of_any_kind(rows):
    trie = SidTrie.from_sids(rows)
    assert trie.sids([0, 1]).tolist() == [[0, 1], [1, -1]]
    assert trie.items(rows) == [[0], [1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.uint64])
def test_sids_are_taken_in_every_dtype_of_integers(dtype):
    assert SidTrie.from_sids(np.array(SIDS, dtype=dtype)).sids().tolist() == SIDS


@pytest.mark.parametrize(
    "rows",
    [
        [["a", "b"]],
        [[0, None]],
        [0, [1]],
        ["ab"],
        None,
        np.array([[2**63]], dtype=np.uint64),
        [[2**70]],
        [torch.tensor([[0, 1]])],
    ],
    ids=str,
)
def test_other_sids_are_refused_in_one_sentence(rows):
    with pytest.raises(ValueError, match=r"^SidTrie: sids must .*\(got "):
        SidTrie.from_sids(rows)


@given(
    st.lists(st.text(max_size=9), unique=True, min_size=2, max_size=30),
    st.data(),
)
def test_text_is_found_after_every_change(ids, data):
    """Against a dictionary, through add, remove and a second add."""
    cut = data.draw(st.integers(1, len(ids) - 1))
    trie = SidTrie.from_sids([[n, 1] for n in range(cut)], ids[:cut])
    trie = trie.add([[n, 2] for n in range(cut, len(ids))], ids[cut:])
    gone = data.draw(st.lists(st.sampled_from(ids), unique=True, max_size=len(ids) - 1))
    trie = trie.remove(gone)
    left = [one for one in ids if one not in gone]
    expected = [[ids.index(one), 1 if ids.index(one) < cut else 2] for one in left]
    assert trie.sids(left).tolist() == expected
    for one in gone[:3]:
        with pytest.raises(KeyError):
            trie.sids([one])
    with pytest.raises(ValueError, match="must be new"):
        trie.add([[0, 0]], left[:1])
    back = trie.add([[n, 3] for n in range(len(gone))], gone) if gone else trie
    assert sorted(back.item_ids.tolist()) == sorted(ids)


def test_a_slice_of_text_ids_is_those_ids():
    ids = ["ä", "", "中文", "z"]
    made = ItemIds.make(ids)
    assert [made[a:b] for a in range(4) for b in range(a, 5)] == [
        ids[a:b] for a in range(4) for b in range(a, 5)
    ]


@pytest.mark.parametrize("form", ["B{:09d}", "00000000-1111-4222-8333-{:012d}"])
def test_the_first_filter_of_a_million_text_ids_is_quick(form):
    ids = [form.format(n) for n in range(1_000_000)]
    made = ItemIds.make(ids)
    best = float("inf")
    for _ in range(5):
        fresh = ItemIds(text=made.text, offsets=made.offsets)  # as after a load
        start = time.perf_counter()
        positions = fresh.positions(ids[5:10])
        best = min(best, time.perf_counter() - start)
    assert positions.tolist() == [5, 6, 7, 8, 9]
    # A dictionary of a million texts takes seconds. On a machine of its own this takes 0.04 s.
    assert best < 0.5
