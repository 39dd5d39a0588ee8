"""Rankings without a trained model, to compare every figure with.

Each function returns one ranking per turn: at most k item ids, best first. `exclude_named` leaves
out the items that earlier turns named, as in the new-only protocol. Ties go to the lower catalogue
index.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import ArrayLike

from crs_fast.crs.data.dialogue import Dialogue, Item
from crs_fast.crs.evaluation.targets import RecTurn

Rankings = list[list[str]]
TextEncoder = Callable[[list[str]], ArrayLike]

_WORD = re.compile(r"\w+")
_BATCH = 256


def _take(ranked: Iterable[str], turn: RecTurn, k: int, exclude_named: bool) -> list[str]:
    named = set(turn.named) if exclude_named else set()
    return list(islice((item for item in ranked if item not in named), k))


def _check_k(op: str, k: int) -> None:
    if k < 1:
        raise ValueError(f"{op}: k must be at least 1 (got {k})")


def _by_popularity(items: Sequence[Item], train: Sequence[RecTurn]) -> list[str]:
    counts = Counter(target for turn in train for target in turn.targets)
    return sorted((item.item_id for item in items), key=lambda item_id: -counts[item_id])


def popularity_ranking(
    turns: Sequence[RecTurn],
    items: Sequence[Item],
    train: Sequence[RecTurn],
    k: int = 50,
    exclude_named: bool = False,
) -> Rankings:
    """The items that were most often a target in `train`.

    Raises:
        ValueError: k below 1.
    """
    _check_k("popularity_ranking", k)
    ranked = _by_popularity(items, train)
    return [_take(ranked, turn, k, exclude_named) for turn in turns]


def recent_first(named: Sequence[str]) -> list[str]:
    """The distinct items of `named`, which is in order of mention; the most recent one first."""
    return list(dict.fromkeys(reversed(named)))


def copy_ranking(turns: Sequence[RecTurn], k: int = 50) -> Rankings:
    """The items that earlier turns named, most recently named first, and nothing else.

    Raises:
        ValueError: k below 1.
    """
    _check_k("copy_ranking", k)
    return [recent_first(turn.named)[:k] for turn in turns]


def copy_then_popularity_ranking(
    turns: Sequence[RecTurn],
    items: Sequence[Item],
    train: Sequence[RecTurn],
    k: int = 50,
    exclude_named: bool = False,
) -> Rankings:
    """`copy_ranking`, filled up with `popularity_ranking`; with `exclude_named` it equals the
    latter.

    Raises:
        ValueError: k below 1.
    """
    _check_k("copy_then_popularity_ranking", k)
    ranked = _by_popularity(items, train)
    rankings = []
    for turn in turns:
        popular = ranked[: k + len(turn.named)]  # enough, even if all named items are among them
        both = dict.fromkeys(chain(recent_first(turn.named), popular))
        rankings.append(_take(both, turn, k, exclude_named))
    return rankings


def context_text(turn: RecTurn, dialogues: Sequence[Dialogue]) -> str:
    """The text of all earlier turns, oldest first, one line per turn."""
    return "\n".join(said.text for said in dialogues[turn.dialogue].turns[: turn.turn])


def _rank_by_score(
    scores: np.ndarray, turn: RecTurn, ids: Sequence[str], k: int, exclude_named: bool
) -> list[str]:
    wanted = k + len(set(turn.named)) if exclude_named else k
    if wanted < len(scores):
        # Keep every item that ties with the last one, so that the sort decides ties by index.
        least = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
        kept = np.flatnonzero(scores >= least)
    else:
        kept = np.arange(len(scores))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    return _take((ids[i] for i in order), turn, k, exclude_named)


def bm25_ranking(
    turns: Sequence[RecTurn],
    items: Sequence[Item],
    dialogues: Sequence[Dialogue],
    k: int = 50,
    exclude_named: bool = False,
) -> Rankings:
    """Rank the item texts by BM25 for the context's words, each as often as it was said.

    The variant is Lucene's, which Elasticsearch, Pyserini and `bm25s` use too, with k1 = 1.5 and
    b = 0.75. Its weight of a word, log(1 + (N - n + 0.5) / (n + 0.5)), is positive even for a word
    that most of the N items have, so it needs none of the floors of older variants.

    Args:
        turns: targets of `dialogues`.
        items: the catalogue; `Item.text()` is the document.
        dialogues: the dialogues of the turns.
        k: length of a ranking.
        exclude_named: leave out items named before.

    Raises:
        ValueError: k is below 1.
        ImportError: `bm25s` is missing.
    """
    _check_k("bm25_ranking", k)
    try:
        from bm25s import BM25
    except ImportError as error:
        raise ImportError("bm25_ranking needs bm25s: pip install bm25s") from error
    # In float64 equal texts get equal scores, and the ties are decided by the catalogue index.
    bm25 = BM25(k1=1.5, b=0.75, method="lucene", dtype="float64")
    bm25.index([_WORD.findall(item.text().lower()) for item in items], show_progress=False)
    ids = [item.item_id for item in items]
    rankings = []
    for turn in turns:
        words = _WORD.findall(context_text(turn, dialogues).lower())
        scores = bm25.get_scores_from_ids(bm25.get_tokens_ids(words))  # [N]
        rankings.append(_rank_by_score(scores, turn, ids, k, exclude_named))
    return rankings


def _unit_rows(op: str, x: ArrayLike, rows: int) -> np.ndarray:
    vectors = np.asarray(x, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise ValueError(
            f"{op}: encode must return one vector a text, [{rows}, D] (got {vectors.shape})"
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def dense_ranking(
    turns: Sequence[RecTurn],
    items: Sequence[Item],
    dialogues: Sequence[Dialogue],
    encode: TextEncoder,
    k: int = 50,
    exclude_named: bool = False,
) -> Rankings:
    """Rank items by the cosine between the embeddings of the item's text and of the context.

    Args:
        turns: targets of `dialogues`.
        items: the catalogue; `Item.text()` is embedded.
        dialogues: the dialogues of the turns.
        encode: maps n texts to an array or CPU tensor, float [n, D].
        k: length of a ranking.
        exclude_named: leave out items named before.

    Raises:
        ValueError: k is below 1, or `encode` returns another shape.
    """
    _check_k("dense_ranking", k)
    catalogue = _unit_rows("dense_ranking", encode([i.text() for i in items]), len(items))
    ids = [item.item_id for item in items]
    rankings = []
    for start in range(0, len(turns), _BATCH):
        batch = turns[start : start + _BATCH]
        texts = [context_text(turn, dialogues) for turn in batch]
        queries = _unit_rows("dense_ranking", encode(texts), len(texts))
        scores = queries @ catalogue.T  # [n, N]
        rankings += [
            _rank_by_score(row, turn, ids, k, exclude_named)
            for row, turn in zip(scores, batch, strict=True)
        ]
    return rankings
