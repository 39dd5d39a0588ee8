"""`crs-fast quickstart`: the whole system on the embedded starter data, on two CPU cores."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crs_fast.crs.data.dialogue import RECOMMENDER, CrsDataset
from crs_fast.crs.evaluation.baselines import bm25_ranking, dense_ranking
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.sequence import REC
from crs_fast.decode import left_pad

from .arguments import above_zero

TEST_DIALOGUES = 200
TRAIN_DIALOGUES = 8000
SHAPE = dict(hidden_size=192, layers=1, heads=4, vocab_size=2048)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "quickstart", help="the whole system on embedded data, in minutes on a CPU"
    )
    parser.add_argument("--out", default="crs_fast_quickstart", help="where artefacts go")
    parser.add_argument("--minutes", type=above_zero, default=3.6, help="training time")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=lambda args: run(args.out, args.minutes, args.seed))


def run(out: str, minutes: float, seed: int) -> int:
    """Encode, quantize, train, evaluate, show a conversation, time the constraint; JSON last."""
    start = time.perf_counter()
    folder = Path(out)

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {text}", flush=True)

    import torch

    from crs_fast.crs.backbones import tiny_backbone
    from crs_fast.crs.data.starter import load_starter

    dataset = load_starter(seed=seed, train=TRAIN_DIALOGUES, test=TEST_DIALOGUES)
    say(
        f"starter data (SIMULATED dialogues about {len(dataset.items)} real films): "
        f"{len(dataset.splits['train'])} to train on, {len(dataset.splits['test'])} held out"
    )
    # A model this small is faster on one thread, and by far where cores are shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    texts = [turn.text for d in dataset.splits["train"] for turn in d.turns]
    backbone = tiny_backbone(texts, **SHAPE, seed=seed)
    _train(dataset, backbone, folder, minutes, seed, say)
    recommender = Recommender.from_pretrained(folder / "model")
    say("evaluating on held-out dialogues, whose sentence templates were never trained on")
    evaluation, free_invalid = _evaluate(recommender, dataset)
    evaluation.save(folder / "evaluation")
    print(evaluation.markdown())
    say("one held-out conversation, the recommender's turns written by the model")
    print(conversation(recommender, dataset, 0))
    say("the same constrained beam search, three ways")
    torch.set_num_threads(threads)
    timing = _time(recommender, dataset)
    summary = {
        **headline(evaluation),
        "invalid_items": evaluation.text["invalid items"] + free_invalid,
        "constraint": timing,
        "out": str(folder),
        "seconds": round(time.perf_counter() - start, 1),
    }
    say(f"done; talk to it: crs-fast chat --model {folder / 'model'}")
    print(json.dumps(summary))
    return 0


def _train(
    dataset: CrsDataset, backbone: Any, folder: Path, minutes: float, seed: int, say: Any
) -> None:
    from crs_fast.crs.training.embedding_init import init_word_rows
    from crs_fast.crs.training.pipeline import SidConfig, make_catalogue, train_recommender
    from crs_fast.crs.training.train import TrainConfig
    from crs_fast.quantize import encode_texts

    sids = SidConfig(levels=2, codes=32, method="rqkmeans", seed=seed)
    say("encoding the films' texts and quantizing them to semantic IDs")
    catalogue = make_catalogue(dataset, sids)
    say(f"semantic IDs: {catalogue.report}")
    model, tokenizer = backbone
    words = [tokenizer.decode([i]).strip() or " " for i in range(len(tokenizer))]
    init_word_rows(model, encode_texts(words), seed)
    parameters = sum(p.numel() for p in model.parameters())
    say(f"training a {parameters / 1e6:.1f} M parameter model from scratch for {minutes} minutes")
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
        dataset, backbone, folder / "model", sids=sids, training=training, catalogue=catalogue
    )
    say(
        f"{result.steps} steps, {result.tokens} tokens at {result.tokens_per_second:.0f} tokens/s, "
        f"loss {result.losses[0]['loss']:.2f} -> {result.losses[-1]['loss']:.2f}"
    )


def _evaluate(recommender: Recommender, dataset: CrsDataset):
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
    found = []
    for dialogue in dataset.splits["test"]:
        messages: list[dict[str, Any]] = []
        for turn in dialogue.turns:
            if turn.role == RECOMMENDER and messages:
                found.append(list(messages))
            messages.append({"role": turn.role, "content": turn.text})
    return found


def headline(evaluation: Any) -> dict[str, float]:
    """The figures of the summary, by the paper's protocol, and new-only beside them."""
    paper, new = evaluation.recommendation["paper"], evaluation.recommendation["new-only"]

    def recall(methods: dict[str, Any], names: Sequence[str], k: int = 10) -> float:
        return round(max(methods[name][f"recall@{k}"] for name in names), 4)

    retrieval = ("BM25", "MiniLM cosine")
    return {
        "targets": paper["crs_fast"]["n"],
        "recall@1": recall(paper, ["crs_fast"], 1),
        "recall@10": recall(paper, ["crs_fast"]),
        "popularity_recall@10": recall(paper, ["popularity"]),
        "copy_recall@10": recall(paper, ["copy"]),
        "retrieval_recall@10": recall(paper, retrieval),
        "new_only_recall@10": recall(new, ["crs_fast"]),
        "new_only_popularity_recall@10": recall(new, ["popularity"]),
        "new_only_retrieval_recall@10": recall(new, retrieval),
        "mode_accuracy": round(evaluation.mode["accuracy"], 4),
    }


def conversation(recommender: Recommender, dataset: CrsDataset, number: int) -> str:
    """A held-out dialogue's seeker, answered by the model."""
    lines = []
    messages: list[dict[str, Any]] = []
    for turn in dataset.splits["test"][number].turns:
        if turn.role == RECOMMENDER:
            continue
        lines.append(f"  seeker:      {turn.text}")
        messages.append({"role": turn.role, "content": turn.text})
        answer = recommender.respond(messages, num_items=3, max_new_tokens=32)
        messages.append({"role": RECOMMENDER, "content": answer.text})
        lines.append(f"  model ({answer.mode}): {answer.text}")
        for rank, (_, title, score) in enumerate(answer.items, 1):
            lines.append(f"      {rank}. {title}  {score:.2f}")
    return "\n".join(lines)


def _time(recommender: Recommender, dataset: CrsDataset) -> dict[str, Any]:
    from .bench import compare, show

    bundle = recommender.bundle
    prompts = [
        bundle.builder.context(recommender.turns(messages)) + bundle.builder.prefix(REC)
        for messages in _contexts(dataset)[:4]
    ]
    ids, mask = left_pad(prompts, bundle.builder.eos)
    result = compare(bundle.model, ids, mask.long(), bundle.trie, bundle.vocab, num_beams=50)
    show(result)
    return result
