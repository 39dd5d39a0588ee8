"""Metrics computed from plain numbers or strings, without a model or a data set."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

DEFAULT_KS = (1, 5, 10, 20, 50)

# A placeholder such as `<movie>` is one token, and so is a word with an apostrophe inside.
_TOKEN = re.compile(r"<\w+>|\w+(?:['’]\w+)*|[^\w\s]")
_PLACEHOLDER = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Means over `n` targets by list length k, each in [0, 1]; `hits[k]` counts ranks within k."""

    n: int
    hits: dict[int, int]
    recall: dict[int, float]
    ndcg: dict[int, float]
    mrr: dict[int, float]

    def to_dict(self) -> dict[str, float]:
        """A flat dict for JSON: `n`, `hits@k`, `recall@k`, `ndcg@k`, `mrr@k`."""
        flat: dict[str, float] = {"n": self.n}
        for name in ("hits", "recall", "ndcg", "mrr"):
            flat |= {f"{name}@{k}": value for k, value in getattr(self, name).items()}
        return flat


def target_values(ranks: ArrayLike, k: int, metric: str = "recall") -> np.ndarray:
    """A metric's value for each target, where the target is the only relevant item of its list.

        recall: 1;   ndcg: 1 / log2(rank + 1);   mrr: 1 / rank;   all are 0 if rank is 0 or > k

    Args:
        ranks: int [n], 1 is best, 0 means not ranked.
        k: length of the list, at least 1.
        metric: "recall", "ndcg" or "mrr".

    Returns:
        float64 [n].

    Raises:
        ValueError: a rank is negative, k < 1, or the metric is unknown.
    """
    ranks = np.asarray(ranks, dtype=np.int64).reshape(-1)
    if ranks.size and ranks.min() < 0:
        raise ValueError(f"target_values: ranks must be >= 0 (got {ranks.min()})")
    if k < 1:
        raise ValueError(f"target_values: k must be at least 1 (got {k})")
    hit = (ranks > 0) & (ranks <= k)
    place = np.where(hit, ranks, 1).astype(np.float64)
    if metric == "recall":
        return hit.astype(np.float64)
    if metric == "ndcg":
        return np.where(hit, 1 / np.log2(place + 1), 0.0)
    if metric == "mrr":
        return np.where(hit, 1 / place, 0.0)
    raise ValueError(f"target_values: metric must be recall, ndcg or mrr (got {metric!r})")


def ranking_metrics(ranks: ArrayLike, ks: Sequence[int] = DEFAULT_KS) -> RankingMetrics:
    """R@k, NDCG@k and MRR@k of ranked lists with one relevant item each.

    Args:
        ranks: int [n], the ranks of the targets; 1 is best, 0 means not ranked.
        ks: list lengths.

    Raises:
        ValueError: there is no target, a rank is negative, or a k is below 1.
    """
    ranks = np.asarray(ranks, dtype=np.int64).reshape(-1)
    if not ranks.size:
        raise ValueError("ranking_metrics: ranks must hold at least one target (got none)")

    def means(metric: str) -> dict[int, float]:
        return {k: float(target_values(ranks, k, metric).mean()) for k in ks}

    hits = {k: int(target_values(ranks, k).sum()) for k in ks}
    return RankingMetrics(ranks.size, hits, means("recall"), means("ndcg"), means("mrr"))


def bootstrap_interval(
    values: ArrayLike,
    dialogues: ArrayLike,
    seed: int = 0,
    samples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over targets. It resamples whole dialogues, because
    the targets of one dialogue are not independent.

    Args:
        values: float [n], one value per target.
        dialogues: [n], the dialogue of each target.
        seed: seed of the resampling.
        samples: number of resamples.
        level: coverage, in (0, 1).

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: there is no value, the lengths differ, or the level is outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    dialogues = np.asarray(dialogues).reshape(-1)
    if not values.size or values.shape != dialogues.shape:
        raise ValueError(
            "bootstrap_interval: values and dialogues must be equally long and not empty "
            f"(got {values.size} and {dialogues.size})"
        )
    if not 0 < level < 1 or samples < 1:
        raise ValueError(
            "bootstrap_interval: level must lie in (0, 1) and samples be at least 1 "
            f"(got {level} and {samples})"
        )
    _, group = np.unique(dialogues, return_inverse=True)
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)  # [D]
    counts = _resamples(len(sums), seed, samples)
    means = (counts @ sums) / (counts @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(groups: int, seed: int, samples: int) -> np.ndarray:
    """How often each group occurs in each resample, float64 [samples, groups]."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(groups, size=groups) for _ in range(samples))
    return np.stack([np.bincount(row, minlength=groups) for row in drawn]).astype(np.float64)


def tokens(text: str) -> list[str]:
    """The tokens that Distinct-n counts, in lower case: words, punctuation marks, and placeholders
    such as `<movie>`."""
    return _TOKEN.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The number of distinct n-grams divided by that of all n-grams of the corpus, in [0, 1]; 0.0
    if the corpus has no n-gram.

    An n-gram does not cross from one text to the next. UniCRS and CRSLab divide by the number of
    sentences instead, which can exceed 1, so the two must not stand in one table.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"distinct_n: n must be at least 1 (got {n})")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = tokens(text)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def sacre_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU in [0, 100], by the `sacrebleu` library with its defaults (13a tokens, exp
    smoothing) and one reference per hypothesis. A placeholder such as `<movie>` is one token here;
    13a would split it into three, so that each match would add two easy bigrams.

    Raises:
        ValueError: there is no hypothesis, or not one reference per hypothesis.
        ImportError: `sacrebleu` is missing.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            "sacre_bleu: hypotheses must not be empty and have one reference each "
            f"(got {len(hypotheses)} and {len(references)} references)"
        )
    # 13a splits at ASCII brackets only.
    ours, gold = (
        [_PLACEHOLDER.sub(r" ⟨\1⟩ ", text) for text in texts] for texts in (hypotheses, references)
    )
    return float(_sacrebleu().corpus_bleu(ours, [gold]).score)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("sacre_bleu needs sacrebleu: pip install sacrebleu") from error
    return sacrebleu


def perplexity(sum_nll: float, num_tokens: int) -> float:
    """exp(sum of negative log-likelihoods in nats / number of tokens), over a whole corpus. If this
    overflows, it is infinite.

    Raises:
        ValueError: num_tokens is below 1.
    """
    if num_tokens < 1:
        raise ValueError(f"perplexity: num_tokens must be at least 1 (got {num_tokens})")
    try:
        return math.exp(sum_nll / num_tokens)
    except OverflowError:
        return math.inf
