"""Metrics against values worked out by hand."""

import math
import sys

import numpy as np
import pytest
import sacrebleu

from crs_fast.crs.evaluation.metrics import (
    bootstrap_interval,
    distinct_n,
    perplexity,
    ranking_metrics,
    sacre_bleu,
    target_values,
    tokens,
)


def test_ranking_metrics_by_hand():
    got = ranking_metrics([1, 3, 0, 11], ks=(1, 10, 20))
    assert got.n == 4
    assert got.hits == {1: 1, 10: 2, 20: 3}
    assert got.recall == {1: 0.25, 10: 0.5, 20: 0.75}
    # 1/log2(2) = 1, 1/log2(4) = 0.5, 1/log2(12) = 0.27894
    assert got.ndcg[1] == 0.25
    assert got.ndcg[10] == pytest.approx(1.5 / 4)
    assert got.ndcg[20] == pytest.approx((1.5 + 0.278943) / 4, abs=1e-6)
    assert got.mrr[10] == pytest.approx((1 + 1 / 3) / 4)
    assert got.mrr[20] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)
    flat = got.to_dict()
    assert flat["n"] == 4
    assert flat["hits@20"] == 3
    assert flat["mrr@1"] == 0.25
    assert set(ranking_metrics([1]).recall) == {1, 5, 10, 20, 50}


def test_what_ranking_metrics_refuse():
    with pytest.raises(ValueError, match="at least one target"):
        ranking_metrics([])
    with pytest.raises(ValueError, match="ranks must be >= 0"):
        ranking_metrics([1, -1])
    with pytest.raises(ValueError, match="k must be at least 1"):
        ranking_metrics([1], ks=(0,))
    with pytest.raises(ValueError, match="metric must be"):
        target_values([1], 1, "precision")


def test_bootstrap_resamples_dialogues():
    # Two dialogues, one all hits and one all misses: every resampled mean is 0, 0.5 or 1.
    values, dialogues = [1, 1, 1, 0, 0, 0], [4, 4, 4, 9, 9, 9]
    assert bootstrap_interval(values, dialogues) == (0.0, 1.0)
    assert bootstrap_interval([1.0] * 6, dialogues) == (1.0, 1.0)
    # A dialogue counts by its targets: half the resamples draw both, whose mean is 1/4.
    assert bootstrap_interval([1, 0, 0, 0], [0, 1, 1, 1], level=0.3) == (0.25, 0.25)


def test_bootstrap_interval_has_the_textbook_width():
    hits = np.random.default_rng(1).random(2000) < 0.3
    low, high = bootstrap_interval(hits, np.arange(2000), seed=3)
    assert (low, high) == bootstrap_interval(hits, np.arange(2000), seed=3)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 2000)
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert low < hits.mean() < high
    # The same targets in pairs that agree carry half the information.
    paired = bootstrap_interval(np.repeat(hits, 2), np.repeat(np.arange(2000), 2), seed=3)
    assert paired == pytest.approx((low, high))
    assert bootstrap_interval(hits, np.arange(2000), seed=3, level=0.5)[0] > low


def test_what_bootstrap_refuses():
    with pytest.raises(ValueError, match="equally long and not empty"):
        bootstrap_interval([1, 0], [1])
    with pytest.raises(ValueError, match="equally long and not empty"):
        bootstrap_interval([], [])
    with pytest.raises(ValueError, match="level must lie in"):
        bootstrap_interval([1], [1], level=1.0)


def test_distinct_n_by_hand():
    assert tokens("Don't see <movie>, OK!") == ["don't", "see", "<movie>", ",", "ok", "!"]
    texts = ["a b a", "A b"]
    assert distinct_n(texts, 1) == 2 / 5
    assert distinct_n(texts, 2) == 2 / 3
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n(texts, 4) == 0.0
    with pytest.raises(ValueError, match="n must be at least 1"):
        distinct_n(texts, 0)


def test_sacre_bleu():
    assert sacre_bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
    # Precisions 4/5, 3/4, 2/3, 1/2 and no brevity penalty.
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert sacre_bleu(["a b c d x"], ["a b c d e"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="one reference each"):
        sacre_bleu(["a"], [])
    with pytest.raises(ValueError, match="not be empty"):
        sacre_bleu([], [])


def test_a_placeholder_is_one_token_of_bleu():
    """As one made-up word would be, whatever stands beside it, and not as the word in it."""
    replies = ["have you seen <movie>, or <movie>?", "i liked that movie a lot"]
    gold = ["i have seen <movie>, it is good", "i liked <movie> a lot more"]
    words, others = ([t.replace("<movie>", "qqq") for t in texts] for texts in (replies, gold))
    library = sacrebleu.corpus_bleu(words, [others]).score
    assert sacre_bleu(replies, gold) == pytest.approx(library)
    assert sacre_bleu(replies, gold) < sacrebleu.corpus_bleu(replies, [gold]).score


def test_sacre_bleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match="pip install sacrebleu"):
        sacre_bleu(["a"], ["a"])


def test_perplexity():
    assert perplexity(4 * math.log(7), 4) == pytest.approx(7)
    assert perplexity(1e9, 1) == math.inf
    with pytest.raises(ValueError, match="num_tokens must be at least 1"):
        perplexity(1.0, 0)
