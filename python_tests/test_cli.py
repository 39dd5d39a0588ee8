"""The command line end to end, on a tiny dataset in the package's own format."""

import json
import shutil

import pytest
import torch

from crs_fast.cli import main
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.data import write_dialogues, write_items
from crs_fast.crs.recommender import Recommender
from python_tests.crs.tiny_system import ITEMS, TEXTS, dialogues


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/ in the own format, base/ a tiny model."""
    path = tmp_path_factory.mktemp("cli")
    data = path / "data"
    data.mkdir()
    write_items(data / "items.jsonl", ITEMS)
    for split, count in (("train", 8), ("valid", 2), ("test", 3)):
        write_dialogues(data / f"{split}.jsonl", dialogues(count))
    model, tokenizer = tiny_backbone(
        TEXTS, hidden_size=32, layers=1, heads=2, vocab_size=300, seed=0
    )
    model.save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    return path


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


SIDS = ["--levels", "3", "--codes", "4", "--method", "rqkmeans"]


def test_info_says_what_was_built(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "native: True" in out
    assert "cuda_architectures" in out


def test_quantize_train_evaluate_chat(folder, capsys, monkeypatch):
    data = ["--data", str(folder / "data")]
    assert main(["quantize", *data, *SIDS, "--out", str(folder / "sids")]) == 0
    report = last_json(capsys)
    assert report["items"] == 8
    assert report["unique"] is True
    assert (folder / "sids" / "trie.safetensors").is_file()

    out = ["--out", str(folder / "model")]
    train = ["train", *data, *SIDS, *out, "--model", str(folder / "base"), "--lora-rank", "2"]
    assert main([*train, "--epochs", "2", "--tokens-per-batch", "200"]) == 0
    summary = last_json(capsys)
    assert summary["steps"] > 1
    assert (folder / "model" / "training" / "loss.png").stat().st_size > 1000

    assert main(["evaluate", *data, "--model", str(folder / "model"), "--beams", "8"]) == 0
    (logged,) = (folder / "model/training/test_log.jsonl").read_text().splitlines()
    assert json.loads(logged)["model"] == str(folder / "model")
    figures = last_json(capsys)
    assert figures["recommendation"]["paper"]["crs_fast"]["n"] == 3
    assert figures["text"]["invalid items"] == 0

    said = iter(["I liked Film 3", "/rec", "more?", "/new", "/help", "hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    assert main(["chat", "--model", str(folder / "model")]) == 0
    out = capsys.readouterr().out
    assert "(heard: Film 3 (1993))" in out
    assert "  1. Film" in out
    assert Recommender.from_pretrained(folder / "model").titles["i3"] == "Film 3 (1993)"


def test_titles_from_scratch_train_evaluate_score_and_chat(folder, capsys, monkeypatch):
    """A model without semantic IDs, from no backbone, serves every command."""
    data, model = ["--data", str(folder / "data")], str(folder / "titles")
    train = ["train", *data, "--model", "tiny", "--titles", "--every-mention", "--out", model]
    assert main([*train, "--epochs", "2", "--tokens-per-batch", "300"]) == 0
    assert last_json(capsys)["steps"] > 1
    assert not (folder / "titles/quantizer").exists()

    evaluate = ["evaluate", *data, "--model", model, "--beams", "8", "--max-new-tokens", "8"]
    assert main(evaluate) == 0
    figures = last_json(capsys)
    assert figures["recommendation"]["paper"]["crs_fast"]["n"] == 3
    assert figures["text"]["invalid items"] == 0

    # Nothing is recommended twice here: ranks lift named items for nothing, odds put them last.
    answers = f"{model}/training/predictions.jsonl"
    before = figures["recommendation"]
    for rule, sign in (("ranks", -1), ("odds", 1)):
        assert main(["score", answers, *data, "--fuse-with-copying", rule]) == 0
        fused = last_json(capsys)
        assert fused["text"] == {}
        after = {name: methods["system"] for name, methods in fused["recommendation"].items()}
        assert after["new-only"]["hits@10"] == before["new-only"]["crs_fast"]["hits@10"]
        assert sign * (after["paper"]["mrr@10"] - before["paper"]["crs_fast"]["mrr@10"]) >= 0

    said = iter(["I liked Film 3", "/rec", "more?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    assert main(["chat", "--model", model]) == 0
    out = capsys.readouterr().out
    assert "(heard: Film 3 (1993))" in out
    assert "  5. Film" in out
    assert "<BOI>" not in out


def test_co_mentions_change_the_semantic_ids(folder, capsys):
    tries = []
    for name, more in (("text", []), ("both", ["--co-mentions"])):
        out = folder / f"sids-of-{name}"
        train = ["train", "--data", str(folder / "data"), *SIDS, *more, "--out", str(out)]
        assert main([*train, "--model", "tiny", "--epochs", "1"]) == 0
        tries.append(Recommender.from_pretrained(out).bundle.trie.sids())
    assert tries[0].shape == tries[1].shape == (8, 3)
    assert not torch.equal(*tries)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--titles --levels 3", "must be left out with --titles"),
        ("--titles --co-mentions", "must be left out with --titles"),
        ("--titles --method rqkmeans", "must be left out with --titles"),
        ("--model tiny --lora-rank 8", "must be left out with --model tiny"),
        ("--model tiny --qlora", "must be left out with --model tiny"),
    ],
)
def test_arguments_of_train_that_exclude_each_other(given, message, folder, tmp_path, capsys):
    out = tmp_path / "model"
    train = ["train", "--data", str(folder / "data"), "--out", str(out), *given.split()]
    assert main(train) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("crs-fast train: train: ")
    assert message in line
    assert not out.exists()


@pytest.mark.parametrize("command", ["quickstart", "train --out x"])
def test_no_time_to_train(command, capsys):
    data = [] if command == "quickstart" else ["--data", "starter"]
    with pytest.raises(SystemExit):
        main([*command.split(), *data, "--minutes", "0"])
    assert "argument --minutes: must be above 0 (got 0)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chat", "evaluate --data starter"])
@pytest.mark.parametrize(
    ("given", "gpu", "expected"),
    [
        ([], False, ("cpu", None)),
        ([], True, ("cuda", None)),
        (["--device", "cpu", "--dtype", "bfloat16"], True, ("cpu", torch.bfloat16)),
    ],
)
def test_where_a_model_runs(command, given, gpu, expected, monkeypatch):
    asked = []

    def load(path, *, dtype, device):
        asked.append((device, dtype))
        raise ValueError("that's enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(Recommender, "from_pretrained", load)
    assert main([*command.split(), "--model", "m", *given]) == 2
    assert asked == [expected]


def test_a_device_that_is_not_there(capsys):
    assert main(["chat", "--device", "nonsense"]) == 2
    assert "chat: --device must be one that PyTorch finds here" in capsys.readouterr().err


def test_evaluate_looks_for_its_splits_first(folder, tmp_path, capsys):
    for name in ("items.jsonl", "test.jsonl"):
        shutil.copy(folder / "data" / name, tmp_path)
    assert main(["evaluate", "--data", str(tmp_path), "--model", "nowhere"]) == 2
    assert "evaluate: dataset must have a split 'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--data", "nowhere", "--out", "x"], "crs-fast train: load_dataset"),
        (["evaluate", "--data", "starter", "--model", "nowhere"], "crs-fast evaluate: load_bundle"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert not list(tmp_path.iterdir())
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith(message)
