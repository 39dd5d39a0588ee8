"""SidTrie, its ids, filters and files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crs_fast.trie import ItemFilter, SidTrie, TrieSlot
from python_tests.helpers import CASES, BruteForce, random_sids, whole


@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_items_and_sids_are_inverse(name, sids):
    ids = [f"item {i}" for i in range(len(sids))]
    trie = SidTrie.from_sids(sids, item_ids=ids)
    assert trie.num_items == len(sids)
    rows = trie.sids(ids)
    assert [whole(row) for row in rows] == [whole(row) for row in BruteForce(sids).sids]
    for sid, found in zip(sids, trie.items(rows), strict=True):
        assert found == [i for i, other in zip(ids, sids, strict=True) if other == sid]


def test_items_of_what_is_no_sid():
    trie = SidTrie.from_sids([[1, 2], [3]])
    assert trie.items([[1, -1], [1, 1], [3, 0], [-1, -1], [3, -1]]) == [[], [], [], [], [1]]


def test_num_nodes_counts_distinct_prefixes():
    sids = random_sids(0, 300, 4, 6)
    assert SidTrie.from_sids(sids).num_nodes == len(BruteForce(sids).prefixes())


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_sids_may_come_as(make):
    trie = SidTrie.from_sids(make([[1, 2], [0, 3]]))
    assert trie.items([[0, 3], [1, 2]]) == [[1], [0]]


def test_wide_codes_and_item_ids():
    """Codes of four bytes; ids are any int64 or text in any script."""
    sids = [[70_000, 1], [69_999, 1], [2_000_000_000, 0], [70_000, 0], [5, 65_536]]
    ids = [-(2**62), 7, 2**62, 0, 1]
    trie = SidTrie.from_sids(sids, item_ids=ids)
    assert trie.sids(ids).tolist() == sids
    assert [whole(s) for s in trie.sids()] == sorted(map(tuple, sids))
    names = ["Amélie (2001)", "七人の侍", "", "a", "ab"]
    trie = SidTrie.from_sids(sids, item_ids=names)
    assert [ids[0] for ids in trie.items(sids)] == names


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(sids=[[1.5]]), "sids must be integers"),
        (dict(sids=[1, 2]), "sids must be integers"),
        (dict(sids=[[1], [2]], item_ids=["a"]), "one id a SID, 2"),
        (dict(sids=[[1], [2]], item_ids=["a", "a"]), "distinct"),
        (dict(sids=[[1], [2]], item_ids=[4, 4]), "distinct"),
        (dict(sids=[[1], [2]], item_ids=[4, "a"]), "all int or all str"),
    ],
)
def test_from_sids_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SidTrie.from_sids(**kwargs)


def test_unknown_items_are_key_errors():
    for ids, unknown in (([3, 4], 5), (["a", "b"], "c")):
        trie = SidTrie.from_sids([[0], [1]], item_ids=ids)
        for ask in (trie.sids, lambda i, t=trie: t.filter(deny=i)):
            with pytest.raises(KeyError, match="no item"):
                ask([ids[0], unknown])


def test_empty_catalogue():
    trie = SidTrie.from_sids(torch.empty(0, 4, dtype=torch.int64))
    assert (trie.num_items, trie.num_levels, trie.num_nodes) == (0, 4, 1)
    assert trie.items([[0, 0, 0, 0]]) == [[]]
    assert trie.sids([]).shape == (0, 4)


def test_filters_compose():
    trie = SidTrie.from_sids(random_sids(0, 130, 3, 8), item_ids=list(range(1000, 1130)))
    ids = np.array(trie.item_ids.tolist())
    allow, deny = list(range(1000, 1080)), list(range(1060, 1130, 3))
    a, d = trie.filter(allow=allow), trie.filter(deny=deny)
    both = trie.filter(allow=allow, deny=deny)

    def kept(f):
        return set(ids[f.mask()[0].numpy()].tolist())

    assert kept(a) == set(allow)
    assert kept(d) == set(range(1000, 1130)) - set(deny)
    assert kept(both) == kept(a & d) == set(allow) - set(deny)
    assert kept(a | d) == kept(a) | kept(d)
    assert kept(~a) == set(range(1000, 1130)) - set(allow)
    stacked = ItemFilter.stack([a, None, d])
    assert stacked.num_requests == 3
    assert [int(row.sum()) for row in stacked.mask()] == [80, 130, 130 - len(deny)]
    assert torch.equal(trie.filter(allow=a.mask()[0]).mask(), a.mask())


def test_filter_rank_counts_every_boundary():
    """Sizes around a 64-bit word: rank at every position equals a plain count."""
    for items in (1, 63, 64, 65, 128, 129):
        mask = torch.rand(1, items, generator=torch.Generator().manual_seed(items)) < 0.4
        words, rank = ItemFilter(mask).tensors
        for position in range(items + 1):
            word, bit = divmod(position, 64)
            below = int(words[0, word]) & ((1 << bit) - 1)
            assert int(rank[0, word]) + below.bit_count() == int(mask[0, :position].sum())


def test_filter_refuses():
    trie = SidTrie.from_sids([[0], [1]])
    with pytest.raises(ValueError, match="allow or deny must be given"):
        trie.filter()
    with pytest.raises(ValueError, match="one entry an item, 2"):
        trie.filter(allow=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one filter"):
        ItemFilter.stack([None, None])


@pytest.mark.parametrize("ids", [[10, 20, 30], ["a", "b", "c"]])
def test_filters_of_another_catalogue_are_refused(tmp_path, ids):
    """Of the same size: one item exchanged, the same items on other SIDs, ids of another kind."""
    trie = SidTrie.from_sids([[0], [1], [2]], ids)
    one, new = trie.filter(deny=ids[:1]), 40 if ids[0] == 10 else "d"
    assert one.over(trie.to("cpu")).item_ids is trie.item_ids
    trie.save(tmp_path / "trie")
    loaded = SidTrie.load(tmp_path / "trie")
    for equal in (loaded, TrieSlot(3, num_levels=1, num_codes=3).load(loaded)):
        assert one.over(equal).mask().tolist() == [[False, True, True]]
        assert (one & equal.filter(deny=ids[1:])).mask().sum() == 0
    bare = ItemFilter(one.mask())  # knows the number of items only
    assert ItemFilter.stack([bare, one]).item_ids is (bare & one).item_ids is one.item_ids
    for other in (
        trie.remove(ids[:1]).add([[0]], [new]),
        SidTrie.from_sids([[0], [1], [2]], ids[::-1]),
        SidTrie.from_sids([[0], [1], [2]], list(map(str, ids)) if ids[0] == 10 else [1, 2, 3]),
    ):
        theirs = other.filter(allow=[])
        assert bare.over(other).num_items == 3
        for refused in (
            lambda o=other: one.over(o),
            lambda f=theirs: one & f,
            lambda f=theirs: f | one,
            lambda f=theirs: ItemFilter.stack([bare, one, None, f]),
        ):
            with pytest.raises(ValueError, match=r"3 items \(got filters over others"):
                refused()


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("ids", [None, "text"])
def test_saved_and_loaded_tries_are_equal(tmp_path, ids, mmap):
    sids = random_sids(3, 50, 4, 5, ragged=True)
    names = None if ids is None else [f"é{i}" for i in range(50)]
    trie = SidTrie.from_sids(sids, item_ids=names)
    trie.save(tmp_path / "trie.safetensors")
    loaded = SidTrie.load(tmp_path / "trie.safetensors", mmap=mmap)
    for mine, theirs in zip(trie.tensors, loaded.tensors, strict=True):
        assert torch.equal(mine, theirs)
    assert loaded.item_ids.tolist() == trie.item_ids.tolist()
    assert list(tmp_path.iterdir()) == [tmp_path / "trie.safetensors"]
    with safe_open(tmp_path / "trie.safetensors", framework="pt") as file:
        assert file.metadata()["num_items"] == "50"


@pytest.mark.parametrize("names", [None, [f"é{i}" for i in range(50)]])
def test_a_loaded_trie_does_not_change_with_its_file(tmp_path, names):
    path, sids = tmp_path / "trie.safetensors", random_sids(3, 50, 4, 5)
    trie = SidTrie.from_sids(sids, names)
    trie.save(path)
    loaded, size = SidTrie.load(path), path.stat().st_size
    with open(path, "rb+") as file:  # as `cp` writes: into the same file
        file.write(b"\xff" * size)
        file.truncate(8)
    assert loaded.sids().tolist() == trie.sids().tolist()
    assert loaded.item_ids.tolist() == trie.item_ids.tolist()
    trie.save(path)
    mapped = SidTrie.load(path, mmap=True)
    SidTrie.from_sids([[1, 2]]).save(path)  # by renaming
    assert mapped.sids().tolist() == trie.sids().tolist()


def test_a_save_that_breaks_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "trie.safetensors"
    SidTrie.from_sids([[1, 2]]).save(path)

    def break_half_way(tensors, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", break_half_way)
    with pytest.raises(OSError, match="no space left"):
        SidTrie.from_sids([[3, 4]]).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert SidTrie.load(path).sids().tolist() == [[1, 2]]


def rewrite(path, change, metadata=None):
    """Write the file again with other tensors and a checksum that fits them."""
    from crs_fast.trie.storage import checksum

    with safe_open(path, framework="pt") as file:
        kept = dict(file.metadata())
    tensors = load_file(path)
    change(tensors)
    kept |= {"sha256": checksum(tensors), **(metadata or {})}
    save_file(tensors, path, metadata=kept)


DAMAGE = {
    "a code is below 0": lambda t: t["codes"].__setitem__(0, -7),
    "tensor sizes disagree": lambda t: t.__setitem__("level", t["level"][:, :1].clone()),
    "the totals must be": lambda t: t.__setitem__("codes", t["codes"][:-1].clone()),
    "codes must not be": lambda t: t.__setitem__("codes", t["codes"].float()),
    "one bit an item": lambda t: t.__setitem__("bits", t["bits"][:, :-1].clone()),
    "past the last item": lambda t: t["bits"].__setitem__((0, -1), 1 << 62),
    "rank must count": lambda t: t["rank"].__setitem__((1, 1), 10_000),
    "one code a node": lambda t: t["level"].__setitem__((1, 0), 10_000),
    "the first item must begin": lambda t: t["bits"][0, 0].bitwise_xor_(3),
    "starts must list": lambda t: t["starts"].__setitem__(1, 10_000),
    "starts must belong": lambda t: t.__setitem__("starts", t["starts"].repeat(2)),
    "item ids must be int32": lambda t: t.__setitem__("item_ids", t["item_ids"].float()),
    "must be distinct": lambda t: t["item_ids"].fill_(3),
    "must ascend below a node": lambda t: t["codes"][:5].copy_(t["codes"][:5].flip(0)),
    "no item ids": lambda t: t.pop("item_ids"),
    "no tensor 'codes'": lambda t: t.pop("codes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_inconsistent_files_are_refused(tmp_path, name):
    path = tmp_path / "trie.safetensors"
    # Some codes need two bytes, and the first depth is sparse.
    SidTrie.from_sids(random_sids(3, 200, 4, 5) * 100).save(path)
    rewrite(path, DAMAGE[name])
    with pytest.raises(ValueError, match=rf"SidTrie\.load: .*is inconsistent .*{name}"):
        SidTrie.load(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "trie.safetensors"
    SidTrie.from_sids(random_sids(3, 50, 4, 5)).save(path)
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        SidTrie.load(path)
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    with pytest.raises(ValueError, match="checksum does not match"):
        SidTrie.load(path)
    path.write_bytes(good)
    rewrite(path, lambda t: None, {"version": "99"})
    with pytest.raises(ValueError, match=r"version 2 \(got crs_fast\.sid_trie version 99"):
        SidTrie.load(path)
    with pytest.raises(FileNotFoundError):
        SidTrie.load(tmp_path / "none")


@pytest.mark.data
def test_a_real_index_with_shared_sids(data_root):
    """MiniOneRec's Industrial index: 3,686 items on 3,670 SIDs, up to 3 items on one."""
    import gzip
    import json
    import re

    path = data_root / "minionerec_industrial" / "Industrial_and_Scientific.index.json.gz"
    with gzip.open(path, "rt") as file:
        index = json.load(file)
    sids = [[int(re.search(r"\d+", token)[0]) for token in row] for row in index.values()]
    trie = SidTrie.from_sids(sids, item_ids=list(index))
    assert trie.num_items == 3686
    groups = trie.items(trie.sids().unique(dim=0))
    assert len(groups) == 3670
    assert max(map(len, groups)) == 3
    assert trie.sids(list(index)).tolist() == sids
