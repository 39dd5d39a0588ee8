"""Embeddings of a catalogue, file by file: what is written, what is kept, what is refused."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import crs_fast
from crs_fast.cli import main
from crs_fast.crs.catalogue_encoding import encode_catalogue
from crs_fast.crs.data import write_items
from crs_fast.quantize import encode_texts, load_embeddings

from .tiny_system import ITEMS


def letters(texts):
    """Counts of some characters: an encoder that takes no time."""
    return torch.tensor([[float(text.count(c)) for c in "film 0123456789"] for text in texts])


@pytest.fixture
def sources(tmp_path):
    """The same catalogue in three files of three kinds."""
    folder = tmp_path / "items"
    folder.mkdir()
    write_items(folder / "a.jsonl", ITEMS[:3])
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        for item in ITEMS[3:5]:
            file.write(
                json.dumps({"item_id": item.item_id, "title": item.title, "year": item.year})
            )
            file.write("\n")
    rows = [{"item_id": i.item_id, "title": i.title, "year": i.year} for i in ITEMS[5:]]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "c.parquet")
    return folder


def run(sources, out, **options):
    return list(encode_catalogue(sources, out, letters, **options))


def test_the_files_hold_what_encode_texts_gives(sources, tmp_path):
    results = run(sources, tmp_path / "out")
    assert [(Path(r["target"]).name, r["items"], r["kept"]) for r in results] == [
        ("a.parquet", 3, False), ("b.parquet", 2, False), ("c.parquet", 3, False)
    ]  # fmt: skip
    x, ids = load_embeddings(tmp_path / "out", ids="item_id")
    assert ids == [item.item_id for item in ITEMS]
    torch.testing.assert_close(x, encode_texts([item.text() for item in ITEMS], letters))


def test_only_what_is_new_is_encoded(sources, tmp_path):
    run(sources / "a.jsonl", tmp_path / "out")
    assert [r["kept"] for r in run(sources, tmp_path / "out")] == [True, False, False]
    write_items(sources / "a.jsonl", ITEMS[:2])
    results = run(sources, tmp_path / "out")
    assert [(r["kept"], r["items"]) for r in results] == [(False, 2), (True, 2), (True, 3)]
    results = list(encode_catalogue(sources, tmp_path / "out", lambda texts: letters(texts) + 1))
    assert not any(r["kept"] for r in results)  # another encoder


def test_an_interrupted_run_leaves_whole_files(sources, tmp_path):
    def interrupted(texts):
        if "Film 3" in texts[0]:
            raise KeyboardInterrupt
        return letters(texts)

    with pytest.raises(KeyboardInterrupt):
        list(encode_catalogue(sources, tmp_path / "out", interrupted))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.parquet"]


def test_a_broken_file_stops_no_other(sources, tmp_path):
    (sources / "b.jsonl.gz").write_bytes(b"no gzip")
    (sources / "d.jsonl").write_text("")
    (sources / "e.parquet").write_bytes(b"no parquet")
    results = run(sources, tmp_path / "out")
    assert [Path(r["source"]).name[0] for r in results if "error" in r] == ["b", "d", "e"]
    assert sorted(path.name[0] for path in (tmp_path / "out").iterdir()) == ["a", "c"]


def test_what_is_refused(sources, tmp_path):
    with pytest.raises(ValueError, match=r"workers must be at least 1 \(got 0\)"):
        run(sources, tmp_path, workers=0)
    with pytest.raises(FileNotFoundError, match="files of items or folders of them"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="out must not hold a source"):
        run(sources, sources)
    write_items(tmp_path / "a.jsonl", ITEMS)
    with pytest.raises(ValueError, match="sources must have different names"):
        run([sources, tmp_path / "a.jsonl"], tmp_path / "out")
    (tmp_path / "a.csv").write_text("item_id,title")
    with pytest.raises(ValueError, match=r"sources must end with .* \(got a\.csv\)"):
        run(tmp_path / "a.csv", tmp_path / "out")
    run(sources, tmp_path / "out")
    with pytest.raises(ValueError, match=r"embeddings of these sources only \(got b\.parquet\)"):
        run(sources / "a.jsonl", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"must hold \.parquet files"):
        load_embeddings(sources.parent)


def test_the_command(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("crs_fast.crs.catalogue_encoding.load_encoder", lambda *_: letters)
    out = tmp_path / "out"
    assert main(["encode", str(sources), "--out", str(out)]) == 0
    assert f"8 items in {out}" in capsys.readouterr().out
    sids = [
        "--levels",
        "2",
        "--codes",
        "8",
        "--method",
        "rqkmeans",
        "--out",
        str(tmp_path / "sids"),
    ]
    assert main(["quantize", "--embeddings", str(out), "--ids", "item_id", *sids]) == 0
    trie = crs_fast.SidTrie.load(tmp_path / "sids" / "trie.safetensors")
    assert sorted(trie.item_ids.tolist()) == sorted(item.item_id for item in ITEMS)
    (sources / "d.jsonl").write_text("{}")
    assert main(["encode", str(sources), "--out", str(out)]) == 2
    assert "1 of the files could not be encoded, the first" in capsys.readouterr().err


def test_workers_need_ray(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"workers need ray: pip install 'ray\[data\]'"):
        run(sources, tmp_path / "out", workers=2)


@pytest.mark.ray
def test_ray_writes_the_same(sources, tmp_path, local_ray):
    (sources / "d.jsonl").write_text("")
    run(sources, tmp_path / "alone")
    run(sources / "a.jsonl", tmp_path / "out")
    results = run(sources, tmp_path / "out", workers=2)
    states = {Path(r["source"]).name: r.get("kept", "error") for r in results}
    assert states == {"a.jsonl": True, "b.jsonl.gz": False, "c.parquet": False, "d.jsonl": "error"}
    for name in ("a", "b", "c"):
        one, other = (tmp_path / folder / f"{name}.parquet" for folder in ("alone", "out"))
        assert one.read_bytes() == other.read_bytes()
