"""The live catalogue: versions, requests in flight, restarts, and files that are broken."""

import gc
import threading
import time
import weakref

import pytest
import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.item_encoder import ItemEncoder
from crs_fast.crs.recommender import Recommender
from crs_fast.quantize import RQKMeans
from crs_fast.serve import CatalogueStore, Engine, TurnRequest
from python_tests.crs.tiny_system import ITEMS, SIDS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
NEW = Item("n1", "Film 90", 2021)


def embed(texts):
    return torch.tensor([[float(t.count(c)) for c in "aeilm 0123456789"] for t in texts])


def made(seed=0):
    model, tokenizer, trie, vocab, control, builder = system(seed=seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6.0)  # default initialisation is nearly uniform
    texts = torch.nn.functional.normalize(embed([item.text() for item in ITEMS]), dim=1)
    quantizer = RQKMeans(levels=3, codes=4, seed=seed).fit(texts)
    bundle = Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, quantizer.fingerprint())
    return Recommender(bundle, item_encoder=ItemEncoder(quantizer, embed))


@pytest.fixture(scope="module")
def recommender():
    return made()


def ids(catalogue):
    return {item.item_id for item in catalogue.recommender.bundle.items}


def recommended(catalogue):
    return {item_id for item_id, _, _ in catalogue.recommender.rank(ASK, 20)}


OLD = {item.item_id for item in ITEMS}


@pytest.mark.parametrize("on_disk", [True, False])
def test_versions_and_rollback(recommender, tmp_path, on_disk):
    swapped = []
    store = CatalogueStore(recommender, tmp_path / "live" if on_disk else None,
                           on_swap=swapped.append)  # fmt: skip
    assert (store.current.version, store.versions) == ("0", ["0"])
    assert store.change() is store.current
    one = store.change(add=[NEW], remove=["i1"])
    two = store.change(add=[{"item_id": "n2", "title": "Film 91"}])
    assert recommended(two) == ids(two) == OLD - {"i1"} | {"n1", "n2"}
    assert store.versions == ["0", "1", "2"]
    back = store.rollback("1")
    assert back is store.current
    assert back.version == "1"
    assert recommended(back) == ids(one)
    assert back.recommender.rank(ASK, 20) == one.recommender.rank(ASK, 20)
    three = store.change(remove=["i2"])  # goes on from 1
    assert (three.version, ids(three)) == ("3", ids(one) - {"i2"})
    assert store.rollback("0").recommender is recommender
    assert [c.version for c in swapped] == ["1", "2", "1", "3", "0"]
    with pytest.raises(FileNotFoundError, match="version must be one of"):
        store.rollback("7")
    assert store.current.version == "0"


def test_it_survives_a_restart(recommender, tmp_path):
    store = CatalogueStore(recommender, tmp_path)
    store.change(add=[NEW], remove=["i1"])
    two = store.change(add=[Item("n2", "Film 92", None, {"genres": "noir"})])
    again = CatalogueStore(recommender, tmp_path)
    assert (again.current.version, again.versions) == ("2", ["0", "1", "2"])
    assert again.current.recommender.bundle.items == two.recommender.bundle.items
    assert again.current.recommender.rank(ASK, 20) == two.recommender.rank(ASK, 20)
    assert again.current.recommender.groups.names == ["noir"]
    again.rollback("1")
    third = CatalogueStore(recommender, tmp_path)
    assert (third.current.version, ids(third.current)) == ("1", OLD - {"i1"} | {"n1"})
    assert third.change(remove=["n1"]).version == "3"
    assert store.refresh().version == "3"  # what another process made current


def test_old_versions_are_deleted(recommender, tmp_path):
    for directory in (tmp_path, None):
        store = CatalogueStore(recommender, directory, keep=2)
        for turn in range(4):
            store.change(**({"remove": ["i1"]} if turn % 2 == 0 else {"add": [ITEMS[1]]}))
        assert store.versions == ["0", "3", "4"]
    assert sorted(p.name for p in (tmp_path / "versions").iterdir()) == ["3", "4"]


@pytest.mark.parametrize(
    "change",
    [
        {"add": [ITEMS[1]]},
        {"remove": ["gone"]},
        {"add": [{"item_id": "n1"}]},
        {"add": [{"item_id": "n1", "title": "x", "year": "soon"}]},
        {"add": [NEW], "sids": [[0, 0, 0]]},
        {"add": [NEW], "embeddings": torch.full((1, 16), torch.nan)},
        {"add": [Item(f"n{n}", "x") for n in range(60)]},
    ],
)
def test_a_bad_change_changes_nothing(recommender, tmp_path, change):
    swapped = []
    store = CatalogueStore(recommender, tmp_path / "live", on_swap=swapped.append)
    with pytest.raises(ValueError, match=r"read|must"):
        store.change(**change)
    assert (store.current.version, store.versions, swapped) == ("0", ["0"], [])
    assert not (tmp_path / "live").exists()


@pytest.mark.parametrize("fails", ["items.jsonl", "current.json"])
def test_a_full_disk_changes_nothing(recommender, tmp_path, monkeypatch, fails):
    store = CatalogueStore(recommender, tmp_path)
    one = store.change(add=[NEW])

    def full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if fails == "items.jsonl":
            patch.setattr("crs_fast.crs.catalogue_files.write_items", full)
        else:
            patch.setattr("crs_fast.serve.catalogue.write_text", full)
        with pytest.raises(OSError, match="no space left"):
            store.change(remove=["n1"])
    assert store.current is one
    assert store.versions == CatalogueStore(recommender, tmp_path).versions == ["0", "1"]
    assert CatalogueStore(recommender, tmp_path).current.version == "1"
    assert [p.name for p in (tmp_path / "versions").iterdir()] == ["1"]
    assert store.change(remove=["n1"]).version == "2"


@pytest.mark.parametrize("name", ["trie.safetensors", "items.jsonl", "catalogue.json"])
def test_a_damaged_version_is_refused_and_another_one_begins(recommender, tmp_path, name):
    store = CatalogueStore(recommender, tmp_path)
    store.change(add=[NEW])
    store.change(remove=["i1"])
    file = tmp_path / "versions/2" / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"read_catalogue: .*{name} must be"):
        CatalogueStore(recommender, tmp_path)
    other = CatalogueStore(recommender, tmp_path, version="1")
    with pytest.raises(ValueError, match=name):
        other.rollback("2")
    assert (other.current.version, ids(other.current)) == ("1", OLD | {"n1"})
    assert other.change(remove=["i2"]).version == "3"
    assert CatalogueStore(recommender, tmp_path).current.version == "3"
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(ValueError, match="must name the current version"):
        CatalogueStore(recommender, tmp_path)


def test_another_models_versions_are_refused(recommender, tmp_path):
    CatalogueStore(recommender, tmp_path).change(add=[NEW])
    other = recommender.with_catalogue(remove=["i1"])
    with pytest.raises(ValueError, match="must hold catalogues of this model"):
        CatalogueStore(other, tmp_path)
    with pytest.raises(ValueError, match="keep must be at least 1"):
        CatalogueStore(recommender, keep=0)


def test_requests_in_flight_end_on_the_catalogue_that_they_began_with(recommender):
    """Readers rank while the catalogue swaps; each answer is that of the version it took."""
    store = CatalogueStore(recommender)
    new, old = dict(add=[NEW], sids=[[3, 3, 3]]), dict(add=[ITEMS[1]], sids=[SIDS[1]])
    wanted = {"i1": recommender.rank(ASK, 20)}
    wanted["n1"] = store.change(**new, remove=["i1"]).recommender.rank(ASK, 20)
    stop, wrong, answered = threading.Event(), [], []

    def read():
        while not stop.is_set():
            catalogue = store.current
            time.sleep(0.002)  # swapped in the meantime
            got = catalogue.recommender.rank(ASK, 20)
            kind = "n1" if "n1" in ids(catalogue) else "i1"
            answered.append(kind)
            if [i for i, _, _ in got] != [i for i, _, _ in wanted[kind]]:
                wrong.append((catalogue.version, got))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        store.change(**old, remove=["n1"])
        store.change(**new, remove=["i1"])
    stop.set()
    for reader in readers:
        reader.join()
    assert set(answered) == {"i1", "n1"}
    assert wrong == []


def test_hundreds_of_swaps_leave_nothing_behind(recommender):
    store = CatalogueStore(recommender, keep=3)
    old = []
    for turn in range(300):
        change = {"remove": ["i1"]} if turn % 2 == 0 else {"add": [ITEMS[1]]}
        made = store.change(**change, sids=None if turn % 2 == 0 else SIDS[1:2])
        old.append(weakref.ref(made.recommender))
        old.append(weakref.ref(made.recommender.bundle.trie))
    del made
    gc.collect()
    assert store.current.version == "300"
    assert sum(ref() is not None for ref in old) == 2 * 3


def test_the_engine_swaps_with_the_store(recommender):
    request = TurnRequest(ASK, "rec", 9, max_new_tokens=2, repeat_named=True)
    with Engine(recommender) as engine:
        store = CatalogueStore(
            recommender, on_swap=lambda new: engine.swap(new.recommender, new.version)
        )
        before = engine.submit(request)
        store.change(add=[NEW], remove=["i1"])
        after = engine.submit(request)
        assert before.result(20).catalogue_version == "0"
        answer = after.result(20)
    assert answer.catalogue_version == "1"
    assert {i for i, _, _ in before.result().items} == OLD
    assert {i for i, _, _ in answer.items} == OLD - {"i1"} | {"n1"}
