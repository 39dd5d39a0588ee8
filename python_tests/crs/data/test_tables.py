"""Items, dialogues and SIDs from tables of other libraries, against the same rows from files."""

import json

import datasets
import numpy as np
import pandas
import pytest
import torch

from crs_fast.crs.data import ReadReport, items_from, load_dataset, write_dialogues, write_items
from crs_fast.crs.data.dialogue import Dialogue, Item, Mention, Turn
from crs_fast.quantize import encode_texts
from crs_fast.trie import SidTrie

ITEMS = (
    Item("m1", "Heat", 1995, {"genres": "crime, drama"}, "tt1"),
    Item("m2", "Ronin", None, {"plot": "a case"}),
    Item("m3", "Café", 2001),
)
DIALOGUES = (
    Dialogue(
        "d1",
        (
            Turn("seeker", "I liked Heat.", (Mention("m1", 8, 12),)),
            Turn("recommender", "Try Ronin!", (Mention("m2"),), "explain"),
        ),
        {"m2": "liked"},
        ("m1",),
    ),
    Dialogue("d2", (Turn("seeker", "hi"), Turn("recommender", "hello"))),
)


@pytest.fixture
def rows(tmp_path):
    write_items(tmp_path / "items.jsonl", ITEMS)
    write_dialogues(tmp_path / "train.jsonl", DIALOGUES)
    return {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        for name in ("items", "train")
    }


def parquet(rows, tmp_path):
    """As pandas reads it: lists are arrays, and what is missing is NaN or None."""
    frame = pandas.DataFrame(rows)
    frame.to_parquet(tmp_path / "table.parquet")
    return pandas.read_parquet(tmp_path / "table.parquet")


def columns(rows):
    """With every key in every row, as columns have them."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return datasets.Dataset.from_list([{key: row.get(key) for key in keys} for row in rows])


MAKERS = {
    "list": lambda rows, _: rows,
    "frame": lambda rows, _: pandas.DataFrame(rows),
    "parquet": parquet,
    "dataset": lambda rows, _: columns(rows),
    "arrow": lambda rows, _: columns(rows).data.table,
    "generator": lambda rows, _: iter(rows),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_tables_read_as_files(rows, kind, tmp_path):
    tables = {name: MAKERS[kind](of_name, tmp_path) for name, of_name in rows.items()}
    dataset = load_dataset(tables)
    assert dataset.items == ITEMS
    assert dataset.splits == {"train": DIALOGUES}
    assert items_from(MAKERS[kind](rows["items"], tmp_path)) == ITEMS
    assert items_from(ITEMS) == ITEMS


def test_broken_rows(rows):
    rows["items"].insert(1, {"item_id": 17, "title": "x"})
    rows["train"].append({"dialogue_id": "d1", "turns": []})
    with pytest.raises(ValueError, match="load_dataset: row 1 of items must be readable: item_id"):
        load_dataset(rows)
    report = ReadReport()
    dataset = load_dataset(rows, on_error="skip", report=report)
    assert (dataset.items, dataset.splits["train"]) == (ITEMS, DIALOGUES)
    assert len(report.skipped) == 2
    with pytest.raises(ValueError, match="items_from: row 0 of items must be readable"):
        items_from(["Heat"])
    with pytest.raises(ValueError, match="tables must be named 'items' and at least one of"):
        load_dataset({"items": rows["items"], "training": []})


SIDS = [[1, 2], [0, 3], [1, 0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "sids",
    [
        datasets.Dataset.from_dict({"sid": SIDS})["sid"],
        datasets.Dataset.from_dict({"sid": SIDS}).with_format("torch")["sid"],
        pandas.Series(SIDS),
        pandas.Series([np.array(row) for row in SIDS]),
        pandas.DataFrame(SIDS, columns=["a", "b"]),
    ],
    ids=["column", "torch column", "series", "series of arrays", "frame"],
)
def test_sids_and_ids_from_columns(sids):
    ids = ["x", "y", "z"]
    wanted = SidTrie.from_sids(SIDS, ids)
    for item_ids in (ids, pandas.Series(ids), datasets.Dataset.from_dict({"id": ids})["id"]):
        trie = SidTrie.from_sids(sids, item_ids)
        assert trie.item_ids.tolist() == wanted.item_ids.tolist()
        assert torch.equal(trie.sids(), wanted.sids())


def test_texts_from_columns():
    def encoder(texts):
        return [[float(len(text)), 1.0] for text in texts]

    texts = ["aa", "b", "aa"]
    wanted = encode_texts(texts, encoder)
    for column in (pandas.Series(texts), datasets.Dataset.from_dict({"t": texts})["t"]):
        assert torch.equal(encode_texts(column, encoder), wanted)
