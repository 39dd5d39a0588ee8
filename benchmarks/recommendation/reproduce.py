"""The experiment in one call: encode, quantize, train every method, evaluate, write the results.

    <out>/config.json                             all settings, and the versions of packages
    <out>/catalogue/                              embeddings, SIDs and quantizer
    <out>/runs/<arm>/seed<k>/<decoding>.jsonl     predictions of a run, one file per decoding
    <out>/runs/<arm>/rate<r>/validation.jsonl     predictions of each learning rate, if there are
                                                  several; the best one's training is seed 0's
    <out>/runs/<arm>/seed<k>/done.json            budget, tokens read, seconds, learning rate, loss,
                                                  versions
    <out>/test_log.jsonl                          one line for each time that a run began on the
                                                  test split or went on with it
    <out>/results.json, results.md, *.png         written again after every run

An arm is a method (see `arms/__init__.py`). A run that is done is not run again. A run that was cut
off goes on from its newest checkpoint, or from the part of the split that it was at.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.recommendation.answering import answer_in_parts, forget_parts
from benchmarks.recommendation.arms import Arm, FusedArm, Setting, choose_arms
from benchmarks.recommendation.arms.joint import join
from benchmarks.recommendation.arms.setting import Shape, Signals
from benchmarks.recommendation.cold_start import hold_out, without
from benchmarks.recommendation.results import write_results
from crs_fast._files import write_text
from crs_fast._version import __version__
from crs_fast.crs.backbones import TINY
from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import CrsDataset, need_splits
from crs_fast.crs.evaluation.evaluate import log_test
from crs_fast.crs.evaluation.metrics import ranking_metrics
from crs_fast.crs.evaluation.predictions import read_predictions, write_predictions
from crs_fast.crs.evaluation.score import protocol_targets
from crs_fast.crs.training.backbone import starting_backbone
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import (
    Catalogue,
    SidConfig,
    item_texts,
    load_catalogue,
    make_catalogue,
    save_catalogue,
)
from crs_fast.crs.training.processes import (
    first_alone,
    first_process,
    join_processes,
    several_processes,
    wait_for_all,
)
from crs_fast.crs.training.train import require
from crs_fast.quantize import encode_texts

MAY_CHANGE = ("arms", "seeds", "versions")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare, and with which budget.

    Args:
        data, root: see `load_dataset`.
        model: "smollm2", "tiny" (from scratch, for machines without a GPU), a path or a hub name.
        arms: names of methods (see `benchmarks.recommendation.arms`).
        seeds: number of runs per method, with the seeds 0, 1, ...
        tokens: training tokens per run, the same for every method; 0 if no method trains.
        learning_rates: if there are several, they are compared on validation with seed 0.
        split: the dialogues to answer; "valid" to choose by, "test" for the final table.
        limit: answer only the first so many dialogues of that split (and of validation).
        hold_out: share of the items that are targets of that split to hold out of training (see
            `cold_start.py`).
        replies: also write replies (for BLEU, Distinct and invalid items).
        bf16_answers: answer with the trained backbone in bfloat16, as it would be served. Ranks
            differ by rounding.
        training: all other settings of training.

    Raises:
        ValueError: a method is unknown, or a number is out of range.
    """

    data: str
    model: str
    arms: tuple[str, ...]
    tokens: int
    root: str | None = None
    seeds: int = 1
    learning_rates: tuple[float, ...] = (1e-3,)
    split: str = "test"
    limit: int | None = None
    hold_out: float = 0.0
    replies: bool = True
    bf16_answers: bool = False
    num_beams: int = 50
    max_new_tokens: int = 40
    sids: SidConfig = field(default_factory=SidConfig)
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(lora_rank=None, save_steps=100)
    )

    def __post_init__(self) -> None:
        trains = any(arm.trains for arm in choose_arms(",".join(self.arms)))
        for name, value, least in (
            ("tokens", self.tokens, int(trains)),
            ("seeds", self.seeds, 1),
            ("limit", self.limit, 1),
            ("num_beams", self.num_beams, 1),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("learning_rates", len(self.learning_rates), 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"reproduce: {name} must be at least {least} (got {value})")


def reproduce(plan: Plan, out: str | Path, say: Say = print, keep_models: bool = False) -> Path:
    """Run what is missing of a plan, and write the results.

    Raises:
        ValueError: `out` holds another experiment, or the data set or its split does not exist.
        ImportError: a package that the tables will need is missing.
    """
    out = Path(out)
    arms = choose_arms(",".join(plan.arms))
    # Checked now and not after hours of training.
    require("reproduce", ["matplotlib", *(["sacrebleu"] if plan.replies else [])])
    join_processes()
    if not first_process():
        say = _silent
    dataset, held = plan_data(plan)
    with first_alone():
        _write_config(plan, out)
    setting = make_setting(plan, dataset, held, out)
    missing = [
        (seed, arm, folder)
        for seed in range(plan.seeds)
        for arm in arms
        if (arm.trains or not seed)
        and not ((folder := out / "runs" / arm.name / f"seed{seed}") / "done.json").is_file()
    ]
    wait_for_all()  # no process may finish a run before all have listed what is missing
    for seed, arm, folder in missing:
        say(f"{arm.name}, seed {seed}: {arm.about}")
        if isinstance(arm, FusedArm):
            _fuse(plan, dataset, arm, seed, folder, out)
            continue
        _run(plan, setting, arm, seed, folder, out, say, keep_models)
        if first_process():
            write_results(out, dataset, held, plan.split)  # the next run may take hours
        wait_for_all()
    # Fused methods are not in the tables yet, and an earlier call may have been cut off before it
    # wrote them.
    if first_process() and (not missing or isinstance(missing[-1][1], FusedArm)):
        write_results(out, dataset, held, plan.split)
    return out


def _silent(text: str) -> None:
    """All processes but the first print nothing."""


def plan_data(plan: Plan) -> tuple[CrsDataset, frozenset[str]]:
    """The data set of a plan, and the ids of the items that it holds out of training."""
    dataset = load_dataset(plan.data, plan.root)
    tries = len(plan.learning_rates) > 1
    need_splits(dataset, "reproduce", ["train", plan.split, *(["valid"] if tries else [])])
    if not plan.hold_out:
        return dataset, frozenset()
    return hold_out(dataset, plan.hold_out, split=plan.split)


def make_setting(
    plan: Plan, dataset: CrsDataset, held: frozenset[str] = frozenset(), out: Path | None = None
) -> Setting:
    """What every method of a plan shares. SIDs are kept in `out` and made once."""
    four_bit = plan.training.qlora
    if four_bit and plan.model == TINY:
        raise ValueError("reproduce: model must be a path or a hub name with qlora (got 'tiny')")

    def made(data: CrsDataset, prefix: str, signals: Signals, shape: Shape) -> Catalogue:
        sids, name = replace(plan.sids, signals=signals), prefix + "+".join(signals)
        if shape:
            levels, codes = shape
            sids, name = replace(sids, levels=levels, codes=codes), f"{name}-{levels}x{codes}"

        def make() -> Catalogue:
            texts = _encoded(tuple(item_texts(data)), sids.encoder)
            return make_catalogue(data, sids, held=held, texts=texts)

        if out is None:
            return make()
        folder = out / "catalogue" / name
        with first_alone():
            if not (folder / "sids.safetensors").is_file():
                save_catalogue(folder, make())
        return load_catalogue(folder, sids.method)

    @cache
    def catalogue(signals: Signals, shape: Shape) -> Catalogue:
        return made(dataset, "", signals, shape)

    @cache
    def joint(signals: Signals, shape: Shape) -> tuple[CrsDataset, Catalogue]:
        both = join(dataset, load_dataset("redial", plan.root))
        splits = {name: without(dialogues, held) for name, dialogues in both.splits.items()}
        both = replace(both, splits=splits)
        return both, made(both, "joint-", signals, shape)

    def backbone(seed: int) -> Any:
        model, tokenizer = starting_backbone(
            plan.model,
            dataset,
            four_bit=four_bit,
            seed=seed,
            encode=lambda words: _encoded(tuple(words)),
        )
        if four_bit:
            return model, tokenizer  # a model in 4 bits is on its GPU already
        module: Any = model
        return module.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer

    return Setting(
        dataset,
        catalogue,
        backbone,
        plan.training,
        joint,
        pretrained=plan.model != TINY,
        split=plan.split,
        held=held,
        num_beams=plan.num_beams,
        max_new_tokens=plan.max_new_tokens,
        bf16_answers=plan.bf16_answers,
    )


@cache
def _encoded(texts: tuple[str, ...], encoder: str | None = None) -> torch.Tensor:
    return encode_texts(list(texts), encoder)


def tokens_for(plan: Plan, minutes: float) -> int:
    """How many tokens a run may train on so that all training takes about `minutes`, estimated from
    a few steps of the first method that trains.

    Raises:
        ValueError: there are several processes, which would each estimate another number.
    """
    if several_processes():
        raise ValueError("reproduce: tokens must be given with several processes (got minutes)")
    setting = make_setting(plan, *plan_data(plan))
    arms = choose_arms(",".join(plan.arms))
    training = [arm for arm in arms if arm.trains and not isinstance(arm, FusedArm)]
    if not training:
        return 1
    four_batches = 4 * plan.training.tokens_per_batch
    # Compiling would take longer than these few steps.
    config = replace(plan.training, max_tokens=four_batches, save_steps=0, compile_layers=False)
    with tempfile.TemporaryDirectory() as folder:
        result = training[0].fit(setting, Path(folder), config).training
    assert result is not None
    runs = len(training) * (plan.seeds - 1 + len(plan.learning_rates))
    return int(result.tokens_per_second * 60 * minutes / runs)


def _run(
    plan: Plan,
    setting: Setting,
    arm: Arm,
    seed: int,
    folder: Path,
    out: Path,
    say: Say,
    keep_models: bool,
) -> None:
    config, work = plan.training, folder
    if arm.trains:
        rate = _rate(plan, setting, arm, out, say)
        config = _config(plan, seed, rate)
        if seed == 0 and len(plan.learning_rates) > 1:
            work = _trial(out, arm, rate)  # seed 0 was trained there already
    fitted = arm.fit(setting, work, config)
    if not first_process():
        return
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    _log(plan, out, arm, seed)
    answer_in_parts(
        lambda dialogues: fitted.answer(dialogues, plan.replies),
        setting.dataset.splits[plan.split][: plan.limit],
        folder,
    )
    seconds = {"train": 0.0, "answer": round(time.perf_counter() - start, 1)}
    done: dict[str, Any] = {"seed": seed, "seconds": seconds}
    if fitted.training is not None:
        last = fitted.training.losses[-1]
        seconds["train"] = round(last["seconds"], 1)
        done |= {
            "budget": plan.tokens,
            "tokens": last["tokens"],
            "steps": fitted.training.steps,
            "learning_rate": config.learning_rate,
            "loss": last["loss"],
        }
        if not keep_models:
            _forget_checkpoints(work)
    say(f"  {json.dumps(done)}")
    write_text(folder / "done.json", json.dumps(done | {"versions": _versions()}, indent=1) + "\n")
    forget_parts(folder)


def _fuse(
    plan: Plan, dataset: CrsDataset, arm: FusedArm, seed: int, folder: Path, out: Path
) -> None:
    """Write the predictions of a fused method from the answers of its base."""
    if not first_process():
        return
    _log(plan, out, arm, seed)
    base = out / "runs" / arm.base.name / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    dialogues = dataset.splits[plan.split][: plan.limit]
    for file in base.glob("*.jsonl"):
        predictions = read_predictions(file, dialogues, dataset.items)
        write_predictions(folder / file.name, arm.fuse(dataset, predictions))
    write_text(folder / "done.json", (base / "done.json").read_text())


def _log(plan: Plan, out: Path, arm: Arm | FusedArm, seed: int) -> None:
    if plan.split == "test":
        log_test(out, arm=arm.name, seed=seed)


def _config(plan: Plan, seed: int, rate: float) -> TrainConfig:
    return replace(plan.training, seed=seed, learning_rate=rate, max_tokens=plan.tokens)


def _rate(plan: Plan, setting: Setting, arm: Arm, out: Path, say: Say) -> float:
    """The learning rate with the best R@10 (then MRR@10) on validation, where all are tried with
    seed 0. Only the checkpoints of the best one are kept, and the last of them is seed 0's model.
    With `save_steps` 0 there is no checkpoint, and seed 0 is trained again."""
    if len(plan.learning_rates) == 1:
        return plan.learning_rates[0]
    tried: dict[float, tuple[float, float]] = {}
    dialogues = setting.dataset.splits["valid"][: plan.limit]
    for rate in plan.learning_rates:
        folder = _trial(out, arm, rate)
        file = folder / "validation.jsonl"
        if not file.is_file():
            fitted = arm.fit(setting, folder, _config(plan, 0, rate))
            if first_process():
                write_predictions(file, fitted.answer(dialogues, False)[""])
            wait_for_all()
        predictions = read_predictions(file, dialogues, setting.dataset.items)
        targets = protocol_targets(predictions, "paper")
        metrics = ranking_metrics(targets.ranks)
        tried[rate] = (metrics.recall[10], metrics.mrr[10])
        say(f"  learning rate {rate:g}: validation R@10 {100 * tried[rate][0]:.2f}")
    best = max(tried, key=tried.__getitem__)
    if best in (min(tried), max(tried)):
        say(f"  the best rate, {best:g}, is at the grid's edge; a rate beyond may be better")
    if first_process():
        for rate in tried:
            if rate != best:
                _forget_checkpoints(_trial(out, arm, rate))
    return best


def _trial(out: Path, arm: Arm, rate: float) -> Path:
    """The folder in which a learning rate is tried."""
    return out / "runs" / arm.name / f"rate{rate:g}"


def _forget_checkpoints(folder: Path) -> None:
    for checkpoint in folder.rglob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _write_config(plan: Plan, out: Path) -> None:
    config = json.loads(json.dumps(asdict(plan) | {"versions": _versions()}))
    file = out / "config.json"
    if file.is_file():
        old = json.loads(file.read_text())
        # A setting that did not exist when the experiment began counts as its default.
        old = {f.name: f.default for f in fields(Plan) if f.default is not MISSING} | old
        for name, defaults in (("training", TrainConfig()), ("sids", SidConfig())):
            old[name] = json.loads(json.dumps(asdict(defaults))) | old[name]
        if not old["tokens"]:  # nothing has trained yet
            old["tokens"] = config["tokens"]
        changed = [k for k in config if k not in MAY_CHANGE and config[k] != old.get(k)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"reproduce: {out} must be empty or hold the same experiment "
                f"(got another {name}: {old.get(name)!r} there, {config[name]!r} here)"
            )
        config["arms"] = list(dict.fromkeys([*old["arms"], *config["arms"]]))
        config["seeds"] = max(old["seeds"], config["seeds"])
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(config, indent=1) + "\n")


def _versions() -> dict[str, str]:
    versions = {"crs_fast": __version__}
    for name in ("torch", "transformers", "numpy", "accelerate", "sentence-transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return versions | {"device": device, "threads": str(torch.get_num_threads())}
