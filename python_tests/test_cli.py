"""The command line end to end, on a tiny dataset in the package's own format."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from crs_fast.cli import main, quickstart, quickstart_report
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.checkpoint import MANIFEST
from crs_fast.crs.data import write_dialogues, write_items
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Item, Mention, Turn
from crs_fast.crs.evaluation.evaluate import Evaluation
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.recommender import Recommender
from python_tests.crs.tiny_system import ITEMS, TEXTS, dialogues
from python_tests.remembered_encoder import remember_texts


@pytest.fixture(autouse=True)
def _texts_are_encoded_once(monkeypatch):
    remember_texts(monkeypatch)


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


@pytest.fixture
def small_quickstart(monkeypatch):
    """The quickstart in seconds: few dialogues, a smaller model, one timed round."""
    monkeypatch.setattr(quickstart, "TRAIN_DIALOGUES", 30)
    monkeypatch.setattr(quickstart, "TEST_DIALOGUES", 6)
    monkeypatch.setattr(quickstart, "COMPARE_SECONDS", 0)
    shape = dict(hidden_size=32, layers=1, heads=2, vocab_size=400)
    monkeypatch.setattr(quickstart, "SHAPE", shape)


def test_quickstart_twice_in_one_folder(small_quickstart, tmp_path, capsys, monkeypatch):
    argv = ["quickstart", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    gain, done = said.index("crs_fast.recommend"), said.index("s] done")
    assert gain < said.index("s] training")
    end = said[done:].splitlines()[1:]
    assert len(end) <= 25
    assert f"look at   {tmp_path / 'recall.png'}" in end
    assert "items named that do not exist: 0" in end
    assert (tmp_path / "recall.png").stat().st_size > 1000
    conversation = (tmp_path / "conversation.txt").read_text()
    assert conversation.strip() in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    figures = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    for name, share in summary["recall@10"].items():
        assert share == figures["recommendation"]["paper"][name]["recall@10"]
    assert summary["failed"] == []
    assert summary["constraint"] == json.loads((tmp_path / "constraint.json").read_text())
    assert summary["constraint"]["mask_speedup"] > 0

    # The picture fails: all else is done again, and no picture of the first run stays behind, but
    # what the command did not write does.
    (tmp_path / "evaluation" / "notes.txt").write_text("mine")

    def fails(methods, path):
        raise ImportError("no matplotlib")

    monkeypatch.setattr(quickstart_report, "plot_recall", fails)
    assert main(argv) == 1
    failure = "the picture: ImportError: no matplotlib"
    assert f"left out {failure}" in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "summary.json").read_text())["failed"] == [failure]
    assert not (tmp_path / "recall.png").exists()
    assert (tmp_path / "conversation.txt").is_file()
    assert (tmp_path / "evaluation" / "notes.txt").is_file()
    assert Recommender.from_pretrained(tmp_path / "model").titles["f001"] == "Star Wars (1977)"


def test_quickstart_replaces_no_folder_of_others(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "quickstart: out/model must be empty or hold a bundle" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_conversation_shows_the_gold_films_and_their_ranks():
    films = [Item(f"i{n}", f"Film {n}", 2000 + n) for n in range(5)]

    def told(number, *turns):
        return Dialogue(str(number), tuple(turns))

    seeker = Turn("seeker", "A comedy?")
    gold = Turn("recommender", "Film 2!", (Mention("i2", 0, 6),))
    dataset = CrsDataset(
        "d", tuple(films), {"test": (told(0, seeker, gold), told(1, seeker, gold))}
    )
    best = [f"x{n}" for n in range(10)]
    predictions = [
        Prediction(0, 1, "0", ["i2"], [], ranking=[*best, "i2"], reply="See <movie>."),
        Prediction(1, 1, "1", ["i2"], [], ranking=["i4", "i2"], reply="See <movie>."),
    ]
    predictions[1].reply_items = ["i4"]
    evaluation = Evaluation("d", "test", 0.0, {}, {}, {}, {}, predictions)
    lines = quickstart_report.conversation(evaluation, dataset).splitlines()
    assert "The first of 1 (out of 2)" in lines[0]
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "seeker A comedy?",
        "gold reply Film 2!",
        "model See Film 4 (2004).",
        "1. Film 4 (2004) 2. Film 2 (2002)",
        "gold item Film 2 (2002): rank 2 of 5",
    ]


@pytest.mark.parametrize("command", ["chat", "evaluate"])
@pytest.mark.parametrize(
    ("given", "gpu", "expected"),
    [
        ([], False, ("cpu", None)),
        ([], True, ("cuda", None)),
        (["--device", "cpu", "--dtype", "bfloat16"], True, ("cpu", torch.bfloat16)),
    ],
)
def test_where_a_model_runs(command, given, gpu, expected, folder, monkeypatch):
    asked = []

    def load(path, *, dtype, device, trust_remote_code):
        assert not trust_remote_code
        asked.append((device, dtype))
        raise ValueError("that's enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(Recommender, "from_pretrained", load)
    data = ["--data", str(folder / "data")] if command == "evaluate" else []
    assert main([*command.split(), *data, "--model", "m", *given]) == 2
    assert asked == [expected]


@pytest.mark.parametrize("given", [[], ["--trust-remote-code"]], ids=["", "trusted"])
@pytest.mark.parametrize("command", ["evaluate", "chat", "serve", "train --out x", "predict"])
def test_code_beside_a_model_runs_only_if_the_caller_says_so(
    command, given, folder, tmp_path, monkeypatch
):
    trusted = []
    (tmp_path / MANIFEST).touch()

    def load(path, *, trust_remote_code, **_):
        trusted.append(trust_remote_code)
        raise ValueError("that's enough")

    monkeypatch.setattr(Recommender, "from_pretrained", load)
    monkeypatch.setattr("crs_fast.crs.training.backbone.load_backbone", load)
    data = ["--data", str(folder / "data")] if command[0] in "et" else []
    if command == "predict":
        data = [str(folder / "data" / "test.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*command.split(), *data, "--model", str(tmp_path), *given]) == 2
    assert trusted == [bool(given)]


@pytest.mark.parametrize(("given", "expected"), [([], None), (["--join", "0.2"], 0.2)])
@pytest.mark.parametrize("command", ["evaluate", "chat", "serve", "predict"])
def test_what_joins_the_beams(command, given, expected, folder, tmp_path, monkeypatch):
    shares = []
    (tmp_path / MANIFEST).touch()

    class Loaded:
        def with_join(self, join):
            shares.append(join)
            raise ValueError("that's enough")

    monkeypatch.setattr(Recommender, "from_pretrained", lambda *_, **__: Loaded())
    data = ["--data", str(folder / "data")] if command == "evaluate" else []
    if command == "predict":
        data = [str(folder / "data" / "test.jsonl"), "--out", str(tmp_path / "out")]
    assert main([command, *data, "--model", str(tmp_path), *given]) == 2
    assert shares == [expected]


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


def test_help_is_quick():
    """Parsing loads no torch, so that `crs-fast --help` answers at once."""
    code = (
        "import sys; from crs_fast.cli import _parser; _parser(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
