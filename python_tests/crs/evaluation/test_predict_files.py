"""Predictions of files of dialogues: what is written, what is kept, what is refused."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch

from crs_fast.cli import main
from crs_fast.crs import shared_encoder
from crs_fast.crs.checkpoint import save_bundle
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.data.jsonl import write_dialogues
from crs_fast.crs.evaluation.evaluate import evaluate
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predict_files import predict_files
from crs_fast.crs.evaluation.predictions import read_predictions
from crs_fast.crs.recommender import Recommender
from python_tests.crs.tiny_system import ITEMS, dialogues, system

OPTIONS = dict(num_beams=4, replies=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network, tokenizer, trie, vocab, control, _ = system()
    folder = tmp_path_factory.mktemp("model") / "model"
    save_bundle(folder, (network, tokenizer), trie, vocab, control, ITEMS)
    return folder


@pytest.fixture
def sources(tmp_path):
    """Four dialogues in two files."""
    folder = tmp_path / "dialogues"
    folder.mkdir()
    write_dialogues(folder / "a.jsonl", dialogues(4)[:3])
    write_dialogues(folder / "rest.jsonl", dialogues(4)[3:])
    with gzip.open(folder / "b.jsonl.gz", "wb") as file:
        file.write((folder / "rest.jsonl").read_bytes())
    (folder / "rest.jsonl").unlink()
    return folder


def run(sources, out, model, **options):
    return list(predict_files(sources, out, model, **{**OPTIONS, **options}))


def test_all_files_together_are_the_predictions_of_all_dialogues(sources, tmp_path, model):
    results = run(sources, tmp_path / "out", model, replies=True, max_new_tokens=6)
    assert [(Path(r["target"]).name, r["turns"], r["kept"]) for r in results] == [
        ("a.jsonl", 6, False), ("b.jsonl", 2, False)
    ]  # fmt: skip
    together = tmp_path / "predictions.jsonl"
    together.write_text("".join((tmp_path / "out" / f"{n}.jsonl").read_text() for n in "ab"))
    made = read_predictions(together, dialogues(4), ITEMS)
    bundle = Recommender.from_pretrained(model).bundle
    expected = predict(bundle, dialogues(4), num_beams=4, max_new_tokens=6, progress=False)
    for one, other in zip(made, expected, strict=True):
        assert (one.ranking, one.mode, one.reply) == (other.ranking, other.mode, other.reply)
        assert one.gold_nll is not None


def test_parquet_files_get_the_same_answers(sources, tmp_path, model):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = tmp_path / "columns"
    columns.mkdir()
    rows = [json.loads(line) for line in (sources / "a.jsonl").open()]
    parquet.write_table(pa.Table.from_pylist(rows), columns / "a.parquet")
    (columns / "b.parquet").write_bytes(b"no parquet")
    (lines,) = run(sources / "a.jsonl", tmp_path / "lines", model)
    for kept in (False, True):
        good, bad = run(columns, tmp_path / "out", model)
        assert (Path(good["target"]).name, good["turns"], good["kept"]) == ("a.jsonl", 6, kept)
        assert "b.parquet must be a parquet file" in bad["error"]
    assert Path(good["target"]).read_text() == Path(lines["target"]).read_text()
    with pytest.raises(ValueError, match="out must not hold a source"):
        run(columns, columns, model)  # the next run would take the predictions for dialogues


def test_parquet_files_need_pyarrow(tmp_path, model, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"predict_files: \.parquet needs .*the extra parquet"):
        run(tmp_path / "a.parquet", tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_only_what_is_new_is_answered(sources, tmp_path, model):
    out = tmp_path / "out"

    def kept(**options):
        return [r["kept"] for r in run(sources, out, model, **options)]

    run(sources / "a.jsonl", out, model)
    assert kept() == [True, False]
    assert kept() == [True, True]
    assert kept(num_beams=5) == [False, False]
    write_dialogues(sources / "a.jsonl", dialogues(2))
    assert kept(num_beams=5) == [False, True]
    # Files that an interrupted run, or somebody else, has left are made again.
    (out / "a.jsonl").write_text("")
    (out / "b.done").write_text("[]")
    assert kept(num_beams=5) == [False, False]


def test_joined_rankings_are_made_anew_and_kept(sources, tmp_path, model, monkeypatch):
    def encode(texts):
        return torch.tensor([[text.count(c) for c in "Film 0123456789"] for text in texts]).float()

    monkeypatch.setattr(shared_encoder, "load_encoder", lambda encoder, device: encode)
    out = tmp_path / "out"
    run(sources, out, model)
    assert [r["kept"] for r in run(sources, out, model, join=0.4)] == [False, False]
    assert [r["kept"] for r in run(sources, out, model, join=0.4)] == [True, True]
    made = read_predictions(out / "a.jsonl", dialogues(3), ITEMS)
    recommender = Recommender.from_pretrained(model).with_join(0.4)
    expected = predict(
        recommender.bundle, dialogues(3), **OPTIONS, join=recommender.join, progress=False
    )
    assert [p.ranking for p in made] == [p.ranking for p in expected]
    evaluation = evaluate(
        recommender,
        CrsDataset("d", ITEMS, {"train": dialogues(3), "test": dialogues(3)}),
        **OPTIONS,
        progress=False,
    )
    assert [p.ranking for p in evaluation.predictions] == [p.ranking for p in expected]
    assert evaluation.settings["join"] == {"share": 0.4, "rule": "mixture"}


def test_a_broken_file_stops_no_other(sources, tmp_path, model, capsys):
    (sources / "a.jsonl").write_text("{}\n")
    (sources / "c.jsonl").write_text("")
    out = tmp_path / "out"
    command = ["predict", str(sources), "--model", str(model), "--out", str(out), "--no-replies"]
    assert main([*command, "--beams", "4", "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert "b.jsonl: 2 turns, answered" in told.out
    assert "c.jsonl must hold dialogues (got none)" in told.out
    assert "2 of the files could not be answered, the first" in told.err
    assert sorted(path.name for path in out.iterdir()) == ["b.done", "b.jsonl"]


def test_bad_input(sources, tmp_path, model):
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        run(sources, tmp_path / "out", model, num_beams=0)
    with pytest.raises(FileNotFoundError, match="model must be a model directory"):
        run(sources, tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="out must not hold a source"):
        run(sources, sources, model)
    run(sources / "a.jsonl", tmp_path / "out", model)
    with pytest.raises(ValueError, match="out must hold predictions of these sources only"):
        run(sources / "b.jsonl.gz", tmp_path / "out", model)


def test_workers_need_ray(sources, tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"workers need ray: pip install 'ray\[data\]'"):
        run(sources, tmp_path / "out", model, workers=2)


@pytest.mark.ray
def test_ray_writes_the_same(sources, tmp_path, model, local_ray):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in (sources / "a.jsonl").open()]
    for row in rows:
        row["dialogue_id"] += "c"
    parquet.write_table(pa.Table.from_pylist(rows), sources / "c.parquet")
    (sources / "d.jsonl").write_text("")
    run(sources / "a.jsonl", tmp_path / "out", model)
    results = run(sources, tmp_path / "out", model, workers=2)
    states = {Path(r["source"]).name: r.get("kept", "error") for r in results}
    assert states == {
        "a.jsonl": True, "b.jsonl.gz": False, "c.parquet": False, "d.jsonl": "error"
    }  # fmt: skip
    (sources / "d.jsonl").unlink()
    run(sources, tmp_path / "alone", model)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "a.done", "b.done", "c.done"):
        one, other = ((tmp_path / folder / name).read_text() for folder in ("alone", "out"))
        if name.endswith("jsonl"):
            assert one == other
        else:
            assert json.loads(one) == json.loads(other)
