"""Computes all figures that follow from predictions and a data set, without a model.

The paper's protocol stands beside the protocols that the paper lacks. Every figure comes with n,
hits and a bootstrap interval over dialogues, and beside baselines without a model on the same
targets.

If a catalogue has several items for one film (they share an IMDb id), every protocol has a second
line by film. There any item of a target's film is a hit, a film counts once in a ranking, and a
target is new, or unseen, only if its film is. Searches still filter by item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Item
from crs_fast.crs.evaluation.baselines import (
    Rankings,
    copy_ranking,
    copy_then_popularity_ranking,
    popularity_ranking,
)
from crs_fast.crs.evaluation.metrics import (
    DEFAULT_KS,
    bootstrap_interval,
    distinct_n,
    perplexity,
    ranking_metrics,
    sacre_bleu,
    target_values,
)
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.targets import RecTurn, recommendation_targets

Baseline = Callable[[Sequence[RecTurn], Sequence[Dialogue], bool], Rankings]
BY_FILM = "by film"
PROTOCOLS = ("paper", "new-only", "free", "unseen", "unseen, new-only")


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one protocol. `ranks[i]` is the rank of target i, 1 at best and 0 if it is not
    ranked; `dialogues[i]` is its dialogue; `keys[i]` is its (dialogue, turn, item)."""

    ranks: np.ndarray
    dialogues: np.ndarray
    keys: list[tuple[int, int, str]]


def recommendation_figures(
    dataset: CrsDataset,
    split: str,
    predictions: Sequence[Prediction],
    more: dict[str, Baseline] | None = None,
    name: str = "crs_fast",
) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of a system, and of baselines on the same targets.

    Returns a dict of protocol -> method -> figures. The figures are `n`, `hits@k`, `recall@k`,
    `ndcg@k`, `mrr@k` and 95 % intervals of recall. If the catalogue has a film twice, the same
    figures stand again under "by film".

    The protocols are:
        "paper": the mode is forced to the gold one.
        "new-only": targets not named before; named items are filtered out of the search.
        "free": the system chooses its mode, a wrong CHAT is a miss, and baselines recommend at
            every turn. It is left out if the system chooses no mode.
        "unseen": targets that no training dialogue names.
        "unseen, new-only": both.

    Args:
        dataset: the data set; popularity and unseen items are counted on its "train" split.
        split: the split of the predictions.
        predictions: predictions for whole dialogues of the split.
        more: further rankings to compare with, by name.
        name: the system's name in the tables.

    Raises:
        ValueError: there is no target.
    """
    rec = [p for p in predictions if p.gold_items]
    if not rec:
        raise ValueError("evaluate: the split must hold a recommendation (got none)")
    dialogues = dataset.splits[split]
    answered = {(p.dialogue, p.turn) for p in rec}
    turns = [t for t in recommendation_targets(dialogues) if (t.dialogue, t.turn) in answered]
    train = recommendation_targets(dataset.splits["train"])
    baselines = {
        new: baseline_predictions(dataset.items, dialogues, turns, train, more or {}, new)
        for new in (False, True)
    }
    seen, films = named_items(dataset.splits["train"]), same_films(dataset.items)
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for protocol in PROTOCOLS:
        if protocol == "free" and all(p.mode is None for p in rec):
            continue
        answers = {name: predictions, **baselines[protocol.endswith("new-only")]}
        figures[protocol] = {
            label: target_figures(protocol_targets(p, protocol, seen))
            for label, p in answers.items()
        }
        for label, p in answers.items() if films else ():
            by_film = target_figures(protocol_targets(p, protocol, seen, films))
            figures[protocol][label][BY_FILM] = by_film
    return figures


def baseline_predictions(
    items: Sequence[Item],
    dialogues: Sequence[Dialogue],
    turns: Sequence[RecTurn],
    train: Sequence[RecTurn],
    more: Mapping[str, Baseline],
    new: bool,
) -> dict[str, list[Prediction]]:
    """The predictions of each baseline; with `new`, named items are left out of the rankings."""
    rankings: dict[str, Rankings] = {
        "popularity": popularity_ranking(turns, items, train, 50, new),
        "copy": copy_ranking(turns, 50),
        "copy, then popularity": copy_then_popularity_ranking(turns, items, train, 50, new),
        **{label: rank(turns, dialogues, new) for label, rank in more.items()},
    }
    return {
        label: [
            Prediction(
                t.dialogue, t.turn, "", list(t.targets), list(t.named), ranking=r, new_ranking=r
            )
            for t, r in zip(turns, found, strict=True)
        ]
        for label, found in rankings.items()
    }


def named_items(dialogues: Sequence[Dialogue]) -> set[str]:
    """The ids of all items that a turn of either role names."""
    return {m.item_id for d in dialogues for turn in d.turns for m in turn.mentions}


def same_films(items: Iterable[Item]) -> dict[str, str]:
    """For each item that is not the first of its film: its id -> the id of the film's first
    item."""
    first: dict[str, str] = {}
    films = {i.item_id: first.setdefault(i.imdb_id, i.item_id) for i in items if i.imdb_id}
    return {item: film for item, film in films.items() if item != film}


def protocol_targets(
    predictions: Sequence[Prediction],
    protocol: str,
    seen: set[str] | None = None,
    films: Mapping[str, str] | None = None,
) -> Targets:
    """The rank of each target of a protocol (see `recommendation_figures`).

    Args:
        seen: the items that training dialogues name, for the "unseen" protocols.
        films: see `same_films`; if given, everything counts by film, and ranks are among distinct
            films.
    """
    new, unseen = protocol.endswith("new-only"), protocol.startswith("unseen")

    def distinct(items: Iterable[str]) -> list[str]:
        return list(dict.fromkeys((films or {}).get(item, item) for item in items))

    known = set(distinct(seen or ())) if unseen else set()
    ranks, keys = [], []
    for p in predictions:
        ranking = p.without_named() if new else p.ranking or []
        if protocol == "free" and p.mode == CHAT:
            ranking = []
        place = {film: rank for rank, film in enumerate(distinct(ranking), 1)}
        named = set(distinct(p.named)) if new else set()
        for item in p.gold_items:
            (film,) = distinct([item])
            if film not in named and film not in known:
                ranks.append(place.get(film, 0))
                keys.append((p.dialogue, p.turn, item))
    return Targets(np.array(ranks, dtype=np.int64), np.array([k[0] for k in keys]), keys)


def target_figures(targets: Targets) -> dict[str, Any]:
    """`n`, `hits@k`, `recall@k`, `ndcg@k`, `mrr@k`, and 95 % intervals of recall."""
    if not targets.keys:
        return {"n": 0}
    return {**ranking_metrics(targets.ranks).to_dict(), **recall_intervals([targets])}


def recall_intervals(runs: Sequence[Targets]) -> dict[str, tuple[float, float]]:
    """`recall@k interval`: 95 % intervals by bootstrap over dialogues, of several runs (seeds) on
    the same targets. A target counts by the share of the runs that hit it."""
    return {
        f"recall@{k} interval": bootstrap_interval(_hit_shares(runs, k), runs[0].dialogues)
        for k in DEFAULT_KS
    }


def _hit_shares(runs: Sequence[Targets], k: int) -> np.ndarray:
    """For each target, the share of the runs that hit it within k."""
    return np.mean([target_values(run.ranks, k) for run in runs], 0)


def paired_difference(
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction],
    protocol: str = "paper",
    ks: Sequence[int] = (1, 10),
    seen: set[str] | None = None,
) -> dict[str, Any]:
    """The difference between two systems on the same targets: `n` and, for each k, `difference@k`
    in recall with its 95 % interval by paired bootstrap over dialogues, and `ratio@k`, which is
    None if the other system hits nothing.

    Raises:
        ValueError: the two systems do not answer the same turns.
    """
    one, two = (protocol_targets(p, protocol, seen) for p in (ours, theirs))
    return paired_runs([one], [two], ks)


def paired_runs(
    ours: Sequence[Targets], theirs: Sequence[Targets], ks: Sequence[int] = (1, 10)
) -> dict[str, Any]:
    """`paired_difference` with several runs (seeds) per system. A target counts by the share of the
    runs that hit it."""
    runs = [*ours, *theirs]
    odd = next((run for run in runs if run.keys != runs[0].keys), None)
    if odd is not None:
        raise ValueError(
            f"paired_difference: both must answer the same targets (got {len(runs[0].keys)} and "
            f"{len(odd.keys)}, {len(set(runs[0].keys) & set(odd.keys))} of them in common)"
        )
    out: dict[str, Any] = {"n": len(runs[0].keys)}
    if not runs[0].keys:
        return out
    for k in ks:
        a, b = _hit_shares(ours, k), _hit_shares(theirs, k)
        out[f"difference@{k}"] = float((a - b).mean())
        out[f"difference@{k} interval"] = bootstrap_interval(a - b, runs[0].dialogues)
        out[f"ratio@{k}"] = float(a.sum() / b.sum()) if b.any() else None
    return out


def mode_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The gold mode against the chosen mode over all turns (2 x 2 counts), accuracy, the base rate
    of REC, its precision, recall and F1, and item precision. A system that chooses no mode counts
    as recommending at every turn."""
    table = {f"{g} -> {c}": 0 for g in ("chat", "rec") for c in ("chat", "rec")}
    for p in predictions:
        table[f"{'rec' if p.gold_items else 'chat'} -> {p.mode or REC}"] += 1
    n, both = len(predictions), table["rec -> rec"]
    named, gold = both + table["chat -> rec"], both + table["rec -> chat"]
    hits = sum(p.ranking[0] in p.gold_items for p in predictions if p.mode != CHAT and p.ranking)
    return {
        **table,
        "n": n,
        "accuracy": (table["chat -> chat"] + both) / n,
        "rec base rate": gold / n,
        "rec precision": both / named if named else 0.0,
        "rec recall": both / gold if gold else 0.0,
        "rec f1": 2 * both / (named + gold) if named + gold else 0.0,
        # The share of the turns where the system recommends whose top item is a gold one.
        "item precision": hits / named if named else 0.0,
    }


def intent_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Over the turns with a gold intent: accuracy, macro F1 (the mean over all intents that are
    gold or chosen somewhere), and the share of the most frequent gold intent. {} if the system
    chooses no intents or no turn has a gold one."""
    pairs = [(p.gold_intent, p.intent) for p in predictions if p.gold_intent and p.intent]
    if not pairs:
        return {}
    gold, chosen, right = (
        Counter(values) for values in (*zip(*pairs, strict=True), [g for g, c in pairs if g == c])
    )
    names = gold | chosen
    return {
        "n": len(pairs),
        "intents": len(names),
        "accuracy": right.total() / len(pairs),
        "macro f1": sum(2 * right[i] / (gold[i] + chosen[i]) for i in names) / len(names),
        "most frequent": max(gold.values()) / len(pairs),
    }


def text_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """SacreBLEU, Distinct-1..4, invalid items, and the share of REC replies that name the system's
    own top item. With `gold_nll`, also the gold replies' perplexity given the gold mode and item,
    and given the system's own. {} if there are no replies."""
    written = [p for p in predictions if p.reply is not None]
    if not written:
        return {}
    replies = [p.reply or "" for p in written]
    figures: dict[str, Any] = {
        "n": len(replies),
        "bleu": sacre_bleu(replies, [p.gold_reply for p in written]),
        "invalid items": sum(p.invalid_items for p in written),
    }
    figures |= {f"distinct-{n}": distinct_n(replies, n) for n in (1, 2, 3, 4)}
    rec = [p for p in written if p.gold_items]
    if any(p.ranking for p in rec):
        mentioned = sum(p.ranking[0] in p.reply_items for p in rec if p.ranking)
        figures["replies that name the top item"] = mentioned / len(rec)
    scored = [p.gold_nll for p in written if p.gold_nll]
    for name in ("gold", "own"):
        words = sum(nll[name][1] for nll in scored)
        if words:
            nats = sum(nll[name][0] for nll in scored)
            figures[f"perplexity given {name} mode and item"] = perplexity(nats, words)
            figures["word tokens"] = words
    return figures
