"""The experiment's command on a small data set: what it writes, and that it goes on where it was
cut off."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.recommendation import answering, joined, reply_decoding
from benchmarks.recommendation import reproduce as module
from benchmarks.recommendation.arms.generative import GenerativeArm, extended
from benchmarks.recommendation.cli import main
from benchmarks.recommendation.reproduce import Plan, make_setting, reproduce
from benchmarks.recommendation.results import read_runs, seed_figures
from crs_fast.crs.data import load_dataset, write_dialogues, write_items
from crs_fast.crs.evaluation.fusion import fused_by_odds, fused_by_ranks, repeat_odds
from crs_fast.crs.evaluation.metrics import bootstrap_interval
from crs_fast.crs.evaluation.predictions import read_predictions
from crs_fast.crs.evaluation.score import paired_runs, protocol_targets
from crs_fast.crs.evaluation.targets import recommendation_targets
from crs_fast.crs.sequence import GCRS
from crs_fast.crs.training import backbone, train
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import SidConfig, load_catalogue
from crs_fast.crs.training.trainer import PackedTrainer
from crs_fast.quantize import encode_texts
from python_tests.crs.tiny_system import DIALOGUE, ITEMS, dialogues
from python_tests.remembered_encoder import remember_texts

SHAPE = dict(hidden_size=32, layers=1, heads=2, vocab_size=300)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(backbone, "TINY_SHAPE", SHAPE)
    remember_texts(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    twins = (replace(item, imdb_id="tt1") for item in ITEMS[6:])
    write_items(folder / "items.jsonl", (*ITEMS[:6], *twins))
    write_dialogues(folder / "train.jsonl", dialogues(16))
    write_dialogues(folder / "valid.jsonl", dialogues(4))
    write_dialogues(folder / "test.jsonl", (replace(DIALOGUE, dialogue_id="t"), *dialogues(3)))
    return folder


def plan(data, **changes):
    basis = Plan(
        str(data),
        "tiny",
        ("copy", "gcrs", "resp"),
        1000,
        replies=False,
        num_beams=8,
        max_new_tokens=4,
        sids=SidConfig(3, 4, "rqkmeans"),
        training=TrainConfig(lora_rank=None, tokens_per_batch=300, save_steps=2, logging_steps=1),
    )
    return replace(basis, **changes)


def test_results_and_resuming(data, tmp_path):
    said = []
    reproduce(plan(data), tmp_path, said.append)
    found = json.loads((tmp_path / "results.json").read_text())
    methods = ["copy", "gcrs", "resp (own words)", "resp", "gcrs (named items filtered)"]
    assert set(found["recommendation"]["paper"]) == set(methods)
    assert set(found["recommendation"]["free"]) == set(methods[:-1])
    for name in ("copy", "resp"):  # no mode of their own: always REC
        free, forced = (found["recommendation"][p][name] for p in ("free", "paper"))
        assert free == forced
        assert found["mode"][name]["rec recall"] == 1.0
    assert found["differences"]["paper"]["gcrs − copy"]["n"] == 7
    assert abs(found["runs"]["gcrs/seed0"]["tokens"] - 1000) <= 300
    assert (tmp_path / "results.png").read_bytes()[:4] == b"\x89PNG"
    for text in ("gcrs", "copy, by film", "New-only", "[95 %", "tokens read"):
        assert text in (tmp_path / "results.md").read_text()
    assert not list(tmp_path.glob("runs/*/*/training/checkpoint-*"))
    assert not list(tmp_path.glob("runs/*/*/parts"))
    assert found["runs"]["gcrs/seed0"]["versions"]["torch"] == torch.__version__
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tokens"] == 1000
    assert {"torch", "crs_fast", "device"} <= config["versions"].keys()
    catalogue = load_catalogue(tmp_path / "catalogue/text", "rqkmeans")
    assert catalogue.sids.shape == (8, 3)
    setting = make_setting(plan(data), load_dataset(str(data)), out=tmp_path)
    other = setting.catalogue(("text",), (2, 5))
    assert other.sids.shape == (8, 2)
    assert other.quantizer.codebooks.shape[:2] == (2, 5)
    assert (tmp_path / "catalogue/text-2x5/sids.safetensors").is_file()
    assert setting.catalogue(("text",), None).sids.equal(catalogue.sids)

    # Nothing is run twice; a second seed and a further arm join what is there.
    before = {f: f.read_bytes() for f in tmp_path.glob("runs/**/*.jsonl")}
    more = plan(data, arms=("copy", "gcrs", "resp", "popularity"), seeds=2)
    reproduce(more, tmp_path, said.append)
    assert all(f.read_bytes() == content for f, content in before.items())
    log = [json.loads(line) for line in (tmp_path / "test_log.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["seed"]) for line in log] == [
        ("copy", 0), ("gcrs", 0), ("resp", 0), ("popularity", 0), ("gcrs", 1), ("resp", 1)
    ]  # fmt: skip
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["recommendation"]["paper"]["gcrs"]["seeds"] == 2
    # Tables that the last call didn't come to are made by the next; the config keeps all arms.
    (tmp_path / "results.json").unlink()
    reproduce(plan(data, arms=("copy",)), tmp_path, said.append)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["arms"], config["seeds"]) == (["copy", "gcrs", "resp", "popularity"], 2)
    with pytest.raises(ValueError, match="another tokens"):
        reproduce(plan(data, tokens=2000), tmp_path, said.append)


def test_validation_is_answered_without_a_look_at_the_test_split(data, tmp_path):
    on_valid = plan(data, arms=("popularity", "gcrs+copy"), split="valid", hold_out=0.5)
    reproduce(on_valid, tmp_path, lambda text: None)
    valid = load_dataset(str(data)).splits["valid"]
    for arm in ("popularity", "gcrs", "gcrs+copy"):
        file = tmp_path / "runs" / arm / "seed0" / "predictions.jsonl"
        answered = [json.loads(line)["dialogue"] for line in file.read_text().splitlines()]
        assert list(dict.fromkeys(answered)) == [d.dialogue_id for d in valid]
    assert not (tmp_path / "test_log.jsonl").exists()
    assert json.loads((tmp_path / "results.json").read_text())["split"] == "valid"
    assert ", valid\n" in (tmp_path / "results.md").read_text()
    with pytest.raises(ValueError, match="another split: 'valid' there, 'test' here"):
        reproduce(replace(on_valid, split="test"), tmp_path, lambda text: None)


def test_a_fused_arm_is_made_of_its_bases_answers(data, tmp_path, monkeypatch):
    one = plan(data, arms=("resp",))
    reproduce(one, tmp_path, lambda text: None)
    monkeypatch.setattr(GenerativeArm, "fit", None)  # nothing is trained again
    reproduce(replace(one, arms=("resp+copy", "resp+copy-odds")), tmp_path, lambda text: None)
    dataset = load_dataset(str(data))
    runs = read_runs(tmp_path, dataset)
    names = ["resp", "resp+copy", "resp+copy-odds"]
    assert list(runs) == [name + way for name in names for way in (" (own words)", "")]
    odds = repeat_odds(recommendation_targets(dataset.splits["train"]))
    rules = {"copy": fused_by_ranks, "copy-odds": lambda p: fused_by_odds(p, odds)}
    for way, (rule, fuse) in itertools.product(("", " (own words)"), rules.items()):
        for base, fused in zip(runs[f"resp{way}"][0], runs[f"resp+{rule}{way}"][0], strict=True):
            again = fuse(base)
            assert (fused.ranking, fused.new_ranking) == (again.ranking, again.new_ranking)
    assert any(p.ranking and p.ranking[0] in p.named for p in runs["resp+copy"][0])
    log = [json.loads(line) for line in (tmp_path / "test_log.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in log] == names
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["runs"]["resp+copy/seed0"] == found["runs"]["resp/seed0"]


def test_a_run_that_was_cut_off_goes_on(data, tmp_path, monkeypatch):
    one = plan(data, arms=("gcrs",))
    reproduce(one, tmp_path / "whole", lambda text: None)

    class Cut(Exception):
        pass

    asked, fit = [], GenerativeArm.fit

    def counted(*args):
        fitted = fit(*args)

        def answer(dialogues, replies):
            asked.append(*(dialogue.dialogue_id for dialogue in dialogues))
            if len(asked) == 3:
                raise Cut
            return fitted.answer(dialogues, replies)

        return replace(fitted, answer=answer)

    monkeypatch.setattr(answering, "PART", 1)
    monkeypatch.setattr(GenerativeArm, "fit", counted)
    run = tmp_path / "cut/runs/gcrs/seed0"
    with pytest.raises(Cut):
        reproduce(one, tmp_path / "cut", lambda text: None)
    assert list(run.glob("training/checkpoint-*"))
    assert not (run / "predictions.jsonl").exists()
    reproduce(one, tmp_path / "cut", lambda text: None)
    dataset = load_dataset(str(data))
    a, b, c, d = (dialogue.dialogue_id for dialogue in dataset.splits["test"])
    assert asked == [a, b, c, c, d]
    assert sorted(entry.name for entry in run.iterdir()) == [
        "done.json", "predictions.jsonl", "training"
    ]  # fmt: skip
    cut, whole = (read_runs(tmp_path / name, dataset)["gcrs"][0] for name in ("cut", "whole"))
    for one, two in zip(cut, whole, strict=True):
        assert (one.ranking, one.new_ranking) == (two.ranking, two.new_ranking)
        assert one.rec_probability == pytest.approx(two.rec_probability, abs=1e-5)
    assert len((tmp_path / "cut/test_log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, r"seeds must be at least 1 \(got 0\)"),
        ({"limit": -3}, r"limit must be at least 1 \(got -3\)"),
        ({"tokens": 0}, r"tokens must be at least 1 \(got 0\)"),
        ({"learning_rates": ()}, r"learning_rates must be at least 1 \(got 0\)"),
        ({"arms": ("copy", "gcsr")}, "arms must be among.*'gcsr'"),
    ],
)
def test_refused_plans(data, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(data, **changes)
    assert plan(data, arms=("copy",), tokens=0).tokens == 0


def test_what_is_missing_is_said_before_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == "sacrebleu" else name)
    with pytest.raises(ImportError, match="sacrebleu"):
        reproduce(plan(data, replies=True), tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_rates_are_chosen_on_validation(data, tmp_path, monkeypatch):
    said, out, steps = [], tmp_path / "rates", []
    rates = (1e-9, 1e-2)
    step = PackedTrainer.training_step

    def counted(*args, **kwargs):
        steps.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(PackedTrainer, "training_step", counted)
    reproduce(plan(data, arms=("gcrs",), learning_rates=rates), out, said.append)
    tried = [line for line in said if "validation" in line]
    assert len(tried) == 2
    assert any("at the grid's edge" in line for line in said)  # of two rates either is
    done = json.loads((out / "runs/gcrs/seed0/done.json").read_text())
    assert done["learning_rate"] in rates
    assert len(steps) == len(rates) * done["steps"]  # the run itself takes none
    assert len((out / "test_log.jsonl").read_text().splitlines()) == 1
    assert not list(out.glob("runs/gcrs/*/training/checkpoint-*"))

    # The chosen rate's trial is the run: what it answers is what a run at that rate alone would.
    alone = plan(data, arms=("gcrs",), learning_rates=(done["learning_rate"],))
    reproduce(alone, tmp_path / "alone", said.append)
    again = json.loads((tmp_path / "alone/runs/gcrs/seed0/done.json").read_text())
    for key in ("tokens", "steps", "loss"):
        assert done[key] == again[key]
    file = "runs/gcrs/seed0/predictions.jsonl"
    assert (out / file).read_text() == (tmp_path / "alone" / file).read_text()


def test_a_seed_starts_everything_anew(data):
    """Words and items of every seed lie in one space, each seed's in another; all else that starts
    at random differs too."""
    setting = make_setting(plan(data), load_dataset(str(data)))
    starts = []
    for seed in (0, 1, 1):
        config = replace(setting.training, seed=seed)
        bundle = extended(setting, config, setting.catalogue(("text",), None), GCRS)
        starts.append(bundle.model.state_dict())
        tokens = [str(bundle.tokenizer.decode([i])).strip() or " " for i in range(256)]
        texts = encode_texts(tokens)
        rows = bundle.model.get_input_embeddings().weight[:256]
        generator = torch.Generator().manual_seed(seed)
        drawn = texts[:256] @ torch.randn(texts.shape[1], rows.shape[1], generator=generator)
        cosine = torch.cosine_similarity(rows - rows.mean(0), drawn - drawn.mean(0))
        assert cosine.mean() > 0.95
    first, second, again = starts
    assert all(second[name].equal(again[name]) for name in second)
    layer = "model.layers.0.self_attn.q_proj.weight"
    assert not first[layer].equal(second[layer])


def test_seeds_are_averaged_and_paired(data, tmp_path):
    reproduce(plan(data, arms=("copy", "gcrs"), seeds=2), tmp_path, lambda text: None)
    runs = read_runs(tmp_path, load_dataset(str(data)))
    targets = {name: [protocol_targets(p, "paper") for p in r] for name, r in runs.items()}
    figures = seed_figures(targets["gcrs"])
    one, two = ((t.ranks == 1).mean() for t in targets["gcrs"])
    assert figures["recall@1"] == pytest.approx((one + two) / 2)
    assert figures["recall@1 sd"] == pytest.approx(abs(one - two) / 2**0.5)
    shares = np.mean([t.ranks == 1 for t in targets["gcrs"]], 0)
    expected = bootstrap_interval(shares, targets["gcrs"][0].dialogues)
    assert figures["recall@1 interval"] == expected
    paired = paired_runs(targets["gcrs"], targets["copy"])
    copied = (targets["copy"][0].ranks == 1).mean()
    assert paired["difference@1"] == pytest.approx((one + two) / 2 - copied)


def test_command(data, tmp_path, capsys):
    command = ["--data", str(data), "--model", "tiny", "--arms", "copy,sid-only"]
    command += ["--method", "rqkmeans", "--levels", "3", "--codes", "4", "--out", str(tmp_path)]
    assert main(command) == 2  # no budget
    assert "--tokens or --minutes" in capsys.readouterr().err
    command += ["--tokens-per-batch", "300"]
    baselines = [a if a != "copy,sid-only" else "copy,popularity" for a in command]
    assert main(baselines) == 0  # they need none, and none is settled by them
    assert json.loads((tmp_path / "config.json").read_text())["tokens"] == 0
    assert main([*command, "--minutes", "0.01"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["recommendation"]["paper"]["sid-only"]["n"] == 7
    assert json.loads((tmp_path / "config.json").read_text())["tokens"] > 0


NAMES = ("beams alone", "source alone", "mixture, 0", "mixture, 1")


def test_held_out_items_have_tables_of_their_own(data, tmp_path, capsys):
    held = plan(data, arms=("gcrs", "popularity"), hold_out=0.5)
    reproduce(held, tmp_path, lambda text: None, keep_models=True)
    found = json.loads((tmp_path / "results.json").read_text())["recommendation"]
    n = found["held out"]["gcrs"]["n"]
    assert 0 < n < found["paper"]["gcrs"]["n"]
    # Every item is reachable: with as many beams as items all are ranked.
    assert found["held out"]["gcrs"]["recall@10"] == 1.0

    # The kept model answers the same, and its beams can be joined by what another method ranked.
    own = tmp_path / "runs/gcrs/seed0/predictions.jsonl"
    joined.main(["--out", str(tmp_path), "--source", str(own), "--share", "0", "1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    new, paper = (found[protocol]["gcrs"] for protocol in ("held out, new-only", "paper"))
    alone, source, *both = ([row for row in rows if row[0] == f"| {name}"] for name in NAMES)
    assert [alone[0][1:3], alone[-1][1:3]] == [
        ["held out, new", str(new["n"])],
        ["all, paper's protocol", str(paper["n"])],
    ]
    for row, figures in ((alone[0], new), (alone[-1], paper)):
        hits = [int(cell.split()[0]) for cell in row[3:5]]
        assert hits == [figures["hits@1"], figures["hits@10"]]
    for other in (source, *both):
        assert [row[1:6] for row in other] == [row[1:6] for row in alone]
        assert all(cell.strip(" |") == "+0.0 [+0.0, +0.0]" for row in other for cell in row[6:])
    log = (tmp_path / "test_log.jsonl").read_text().splitlines()
    assert len(log) == 5

    # Its replies can be written in other ways; those that are there are not written again.
    for _ in range(2):
        reply_decoding.main(["--out", str(tmp_path), "--decoding", "sample:1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == 2 * [lines[0].split(" | ")[0], lines[1],
                                                           "| greedy", "| sample:1"]  # fmt: skip
    assert (tmp_path / "decodings.md").read_text().splitlines()[2:] == lines[4:]
    log = (tmp_path / "test_log.jsonl").read_text().splitlines()
    assert len(log) == 7
    answers = read_predictions(
        tmp_path / "decodings/gcrs/greedy.jsonl", load_dataset(str(data)).splits["test"], ITEMS
    )
    assert all(answer.reply is not None for answer in answers)


@pytest.mark.parametrize(("missing", "rates"), [("test", (1e-3,)), ("valid", (1e-3, 1e-2))])
def test_missing_splits_are_found_before_anything_is_written(data, missing, rates, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, folder)
    (folder / f"{missing}.jsonl").unlink()
    with pytest.raises(ValueError, match=f"reproduce: dataset must have a split '{missing}'"):
        reproduce(plan(folder, learning_rates=rates), out, str)
    assert not out.exists()


def test_an_experiment_from_before_a_switch_goes_on(data, tmp_path):
    """A setting that its config.json does not know yet counts as left at its default."""
    copying = plan(data, arms=("copy",))
    reproduce(copying, tmp_path, str)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config["training"].pop("qlora") is False
    assert config["sids"].pop("signals") == ["text"]
    assert config.pop("bf16_answers") is False
    file.write_text(json.dumps(config))
    reproduce(copying, tmp_path, str)
    qlora = TrainConfig(lora_rank=4, qlora=True)
    for other in (replace(copying, training=qlora), replace(copying, bf16_answers=True)):
        with pytest.raises(ValueError, match="same experiment"):
            module._write_config(other, tmp_path)


# As `small`, and with an encoder that is there at once.
WORKER = f"""
import torch
from benchmarks.recommendation import reproduce
from benchmarks.recommendation.cli import main
from crs_fast.crs.training import backbone

def encode_texts(texts, encoder=None):
    counts = [[text.count(letter) for letter in "abcdefghijklmnop"] for text in texts]
    return torch.nn.functional.normalize(torch.tensor(counts).float() + 0.1, dim=-1)

backbone.TINY_SHAPE = {SHAPE}
reproduce.encode_texts = encode_texts
raise SystemExit(main())
"""


def test_two_processes(data, tmp_path):
    """All train, one writes, and the budget is that of both together."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = ["torchrun", "--standalone", "--nproc-per-node=2", str(tmp_path / "worker.py"),
               "--data", str(data), "--model", "tiny", "--arms", "copy,gcrs,resp", "--tokens",
               "1500", "--tokens-per-batch", "300", "--lr", "1e-3", "2e-3", "--no-replies",
               "--levels", "3", "--codes", "4", "--method", "rqkmeans",
               "--out", str(tmp_path)]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = [json.loads(line) for line in (tmp_path / "test_log.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in log] == ["copy", "gcrs", "resp"]
    found = json.loads((tmp_path / "results.json").read_text())
    assert abs(found["runs"]["gcrs/seed0"]["tokens"] - 1500) <= 600
    # Half the steps that one process takes, as each step has a batch of both.
    assert found["runs"]["gcrs/seed0"]["steps"] <= 1500 / 300
