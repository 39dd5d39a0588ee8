"""`crs-fast quickstart`: the whole system on the embedded starter data, on two CPU cores."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crs_fast._files import write_text

from .arguments import above_zero

if TYPE_CHECKING:
    from crs_fast.crs.data.dialogue import CrsDataset
    from crs_fast.crs.evaluation.evaluate import Evaluation
    from crs_fast.crs.recommender import Recommender
    from crs_fast.crs.training.pipeline import Catalogue

TEST_DIALOGUES = 200
TRAIN_DIALOGUES = 8000
SHAPE = dict(hidden_size=192, layers=1, heads=4, vocab_size=3072)
LEVELS, CODES = 2, 32
COMPARE_SECONDS = 10
# What a run writes beside `model/`; an earlier run's must not stand beside a new model.
RESULTS = (
    *(f"evaluation/{name}" for name in ("evaluation.json", "evaluation.md", "predictions.jsonl")),
    "recall.png",
    "conversation.txt",
    "summary.json",
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "quickstart", help="the whole system on embedded data, in minutes on a CPU"
    )
    parser.add_argument("--out", default="crs_fast_quickstart", help="where artefacts go")
    parser.add_argument("--minutes", type=above_zero, default=2.5, help="training time")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=lambda args: run(args.out, args.minutes, args.seed))


def run(out: str, minutes: float, seed: int) -> int:
    """Time the constraint, train, evaluate, show a conversation, sum up.

    Every step writes its files before the next begins, so that what was done stays if a later one
    fails; the steps that nothing else needs are left out then, and the exit status is 1.
    """
    from crs_fast.crs.checkpoint import check_folder
    from crs_fast.crs.recommender import Recommender

    from .quickstart_report import conversation, headline, plot_recall, summary_lines

    folder, model = Path(out), Path(out) / "model"
    check_folder("quickstart: out/model", model)
    folder.mkdir(parents=True, exist_ok=True)
    say, attempt, failed = _steps()
    summary: dict[str, Any] = {"out": str(folder), "failed": failed}
    with _quiet():
        catalogue = _catalogue(seed, say)
        with _one_thread():
            with attempt("the comparison of constraints"):
                summary["constraint"] = _time_constraint(catalogue, seed, say)
                write_text(folder / "constraint.json", json.dumps(summary["constraint"]) + "\n")
            dataset = _dialogues(seed, say)
            summary["training"] = _train(dataset, catalogue, folder, minutes, seed, say)
            _remove_results(folder)
            with attempt("the evaluation"):
                say("evaluating on the held-out dialogues")
                evaluation, invalid = _evaluate(Recommender.from_pretrained(model), dataset)
                evaluation.save(folder / "evaluation")
                summary |= headline(evaluation, invalid)
        if "recall@10" in summary:
            with attempt("the picture"):
                plot_recall(evaluation.recommendation["paper"], folder / "recall.png")
            with attempt("the conversation"):
                text = conversation(evaluation, dataset)
                write_text(folder / "conversation.txt", text + "\n")
                say("one held-out conversation")
                print(text)
    summary["seconds"] = round(say.seconds(), 1)
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    say("done")
    print("\n".join(summary_lines(summary, folder)))
    return 1 if failed else 0


class _Clock:
    """Prints lines with the seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds():4.0f} s] {text}", flush=True)


def _steps() -> tuple[_Clock, Callable[[str], Any], list[str]]:
    """A clock, a context manager in which a step may fail, and the list of those that did."""
    say, failed = _Clock(), []

    @contextmanager
    def attempt(name: str):
        try:
            yield
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
            say(f"left out {failed[-1]}")

    return say, attempt, failed


@contextmanager
def _quiet():
    """Without the progress bars and notes of other packages."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    level = logging.getLogger("sacrebleu").level
    transformers_logging.disable_progress_bar()
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("sacrebleu").setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _one_thread():
    """A model this small is faster on one thread, and by far where cores are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _catalogue(seed: int, say: _Clock) -> Catalogue:
    from crs_fast.crs.data.starter import load_starter
    from crs_fast.crs.training.pipeline import SidConfig, make_catalogue

    items = load_starter(seed=seed, train=0, valid=0, test=0)
    catalogue = make_catalogue(items, SidConfig(LEVELS, CODES, "rqkmeans", seed=seed))
    report = catalogue.report
    say(
        f"{report['items']} real films have semantic IDs of {LEVELS} codes; "
        f"{100 * report['collision_rate']:.0f} % collided, none does now"
    )
    return catalogue


def _time_constraint(catalogue: Catalogue, seed: int, say: _Clock) -> dict[str, Any]:
    """The same constrained beam search, three ways, by an untrained model of the same shape."""
    from crs_fast.crs.backbones import tiny_backbone
    from crs_fast.crs.data.starter import load_starter
    from crs_fast.decode import left_pad
    from crs_fast.trie import SidTrie, SidVocab

    from .constraint_timing import compare, show

    say("what a native constraint gains: an untrained model of the same shape, one thread")
    dataset = load_starter(seed=seed, train=300, valid=0, test=4)
    model, tokenizer = tiny_backbone(_texts(dataset), **SHAPE, seed=seed)
    vocab = SidVocab.extend(tokenizer, model, LEVELS, CODES)
    prompts = [
        tokenizer(" ".join(turn.text for turn in dialogue.turns))["input_ids"]
        for dialogue in dataset.splits["test"]
    ]
    ids, mask = left_pad(prompts, tokenizer.eos_token_id)
    trie = SidTrie.from_sids(catalogue.sids)
    result = compare(
        model.eval(), ids, mask.long(), trie, vocab, num_beams=50, max_seconds=COMPARE_SECONDS
    )
    show(result)
    return result


def _dialogues(seed: int, say: _Clock) -> CrsDataset:
    from crs_fast.crs.data.starter import load_starter

    dataset = load_starter(seed=seed, train=TRAIN_DIALOGUES, valid=0, test=TEST_DIALOGUES)
    say(
        f"{TRAIN_DIALOGUES} SIMULATED dialogues to train on, {TEST_DIALOGUES} held out, with "
        "sentence templates of their own"
    )
    return dataset


def _texts(dataset: CrsDataset) -> list[str]:
    return [turn.text for dialogue in dataset.splits["train"] for turn in dialogue.turns]


def _train(
    dataset: CrsDataset,
    catalogue: Catalogue,
    folder: Path,
    minutes: float,
    seed: int,
    say: _Clock,
) -> dict[str, float]:
    from crs_fast.crs.backbones import tiny_backbone
    from crs_fast.crs.training.embedding_init import init_word_rows
    from crs_fast.crs.training.pipeline import train_recommender
    from crs_fast.crs.training.train import TrainConfig
    from crs_fast.quantize import encode_texts

    backbone = tiny_backbone(_texts(dataset), **SHAPE, seed=seed)
    model, tokenizer = backbone
    words = [str(tokenizer.decode([i])).strip() or " " for i in range(len(tokenizer))]
    init_word_rows(model, encode_texts(words), seed)
    parameters = sum(p.numel() for p in model.parameters())
    say(f"training {parameters / 1e6:.1f} M parameters from scratch for {minutes:g} minutes")
    training = TrainConfig(
        epochs=40,
        max_minutes=minutes,
        learning_rate=4e-3,
        lora_rank=None,
        tokens_per_batch=1024,
        weight_decay=0.05,
        context_dropout=0.2,
        max_length=512,
        seed=seed,
    )
    result = train_recommender(
        dataset,
        backbone,
        folder / "model",
        training=training,
        catalogue=catalogue,
        progress=sys.stderr.isatty(),
    )
    first, last = result.losses[0]["loss"], result.losses[-1]["loss"]
    say(
        f"{result.steps} steps, {result.tokens_per_second:.0f} tokens/s, "
        f"loss {first:.2f} -> {last:.2f}"
    )
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "loss": last,
    }


def _remove_results(folder: Path) -> None:
    """Of an earlier run in the same folder, whose model has just been replaced."""
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)


def _evaluate(recommender: Recommender, dataset: CrsDataset) -> tuple[Evaluation, int]:
    """The evaluation, and the invalid items of replies whose mode the model chose itself."""
    from crs_fast.crs.evaluation.baselines import bm25_ranking, dense_ranking
    from crs_fast.crs.evaluation.evaluate import evaluate
    from crs_fast.quantize import encode_texts

    def bm25(turns, dialogues, exclude_named):
        return bm25_ranking(turns, dataset.items, dialogues, 50, exclude_named)

    def dense(turns, dialogues, exclude_named):
        return dense_ranking(turns, dataset.items, dialogues, encode_texts, 50, exclude_named)

    evaluation = evaluate(
        recommender,
        dataset,
        baselines={"BM25": bm25, "MiniLM cosine": dense},
        max_new_tokens=32,
        progress=sys.stderr.isatty(),
    )
    return evaluation, free_mode_fragments(recommender, dataset, 64)


def free_mode_fragments(recommender: Recommender, dataset: CrsDataset, turns: int) -> int:
    """SID fragments that are no item, in replies whose mode the model chose itself."""
    contexts = _contexts(dataset)[:turns]
    invalid = 0
    for at in range(0, len(contexts), 16):
        batch = contexts[at : at + 16]
        invalid += sum(turn.invalid_items for turn in recommender.respond(batch, max_new_tokens=32))
    return invalid


def _contexts(dataset: CrsDataset) -> list[list[dict[str, Any]]]:
    """Messages before each recommender turn of the held-out dialogues."""
    from crs_fast.crs.data.dialogue import RECOMMENDER

    contexts = []
    for dialogue in dataset.splits["test"]:
        messages: list[dict[str, Any]] = []
        for turn in dialogue.turns:
            if turn.role == RECOMMENDER and messages:
                contexts.append(list(messages))
            messages.append({"role": turn.role, "content": turn.text})
    return contexts
