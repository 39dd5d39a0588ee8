"""The public standard: figures counted by hand, the published counts, and its tables."""

import gzip
import json

import pytest

from crs_fast.cli import main
from crs_fast.crs.data import load_dataset, write_dialogues, write_items
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.messages import recommending_messages
from crs_fast.crs.evaluation.predictions import (
    MessageRanking,
    blank_predictions,
    write_predictions,
)
from crs_fast.crs.evaluation.sigir_standard import NAIVE, PUBLISHED, standard_figures
from crs_fast.crs.evaluation.standard_report import standard_markdown

from ..tiny_system import ITEMS, dialogues
from .test_messages import DIALOGUES

LIKED, SEEN = {"i1": "liked", "i3": "liked", "i4": "disliked"}, ("i1", "i2", "i4")
TEST = (Dialogue("a", DIALOGUES[0].turns, LIKED, SEEN), DIALOGUES[1])
DATASET = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(2)), "test": TEST})


def answers():
    """Instances: i2 | i1 i2 i3 (i3 is fresh) | i4 (not fresh) | i2, of another dialogue."""
    predictions = blank_predictions(TEST)
    _, second, last, other = predictions
    second.ranking, second.new_ranking = ["i1", "i2"], ["i2", "i3"]
    second.messages[2] = MessageRanking(["i2", "i5", "i1"], ["i2", "i3", "i6"])
    last.ranking = ["i4"]
    last.messages[1] = MessageRanking(["i4", "i1"])
    other.ranking = ["i2"]
    return predictions


def test_figures_by_hand():
    figures = standard_figures(DATASET, "test", {"mine": answers()})
    assert figures["stand-ins"] == {"mine": 0}
    all_, fresh, filtered = (figures[v]["mine"] for v in ("all", "fresh", "fresh, filtered"))
    # Targets i2 | i1 i2 i3 | i4 | i2 stand at 2 | 3 1 - | 1 | 1.
    assert (all_["n"], all_["instances"]) == (6, 4)
    assert [all_[f"hits@{k}"] for k in (1, 10, 50)] == [3, 5, 5]
    # Fresh ones, i2 | i3 | i2, stand at 2 | - | 1, and at 1 | 1 | 1 without what was named: the
    # third instance's filter holds i2 too, which the search had not been told of.
    assert (fresh["n"], fresh["instances"]) == (3, 3)
    assert [fresh[f"hits@{k}"] for k in (1, 10, 50)] == [1, 2, 2]
    assert [filtered[f"hits@{k}"] for k in (1, 10, 50)] == [3, 3, 3]
    # Top items: i1 liked, i2 seen, i4 seen and disliked; nothing is known of the other dialogue.
    assert (all_["sr"], all_["rdl"]) == (0.5, (1.0 + 0.5 + 0.5) / 3 / 2)
    # Fresh: i1 and i2 were named before and earn nothing.
    assert (fresh["sr"], fresh["rdl"]) == (0.0, 0.0)
    assert (filtered["sr"], filtered["rdl"]) == (0.5, (0.5 + 1.0) / 2 / 2)
    for one in (all_, fresh, filtered):
        for name in ("recall@1", "recall@10", "recall@50", "sr", "rdl"):
            low, high = one[f"{name} interval"]
            assert low <= one[name] <= high
    naive = [figures[v][NAIVE] for v in ("all", "fresh", "fresh, filtered")]
    assert [n["hits@50"] for n in naive] == [3, 0, 0]  # i1 and i2 again, and i4
    assert naive[0]["hits@1"] == 2  # i2 after i2, i4 after i4


def test_a_turns_own_ranking_stands_in():
    predictions = answers()
    predictions[1].messages[2] = MessageRanking()
    figures = standard_figures(DATASET, "test", {"mine": predictions, "other": answers()})
    assert figures["stand-ins"] == {"mine": 1, "other": 0}
    assert figures["all"]["mine"]["hits@50"] == 5  # i1 and i2 at 1 and 2 of the turn's ranking
    # i2 was named between the turn's beginning and the message, so it leaves.
    assert figures["fresh, filtered"]["mine"]["hits@1"] == 3
    text = standard_markdown("tiny", "test", figures)
    assert "stands in, which has read less: mine 1." in text


def test_no_forms_no_instances_no_figures():
    bare = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(2)), "test": DIALOGUES})
    figures = standard_figures(bare, "test", {"crs_fast": answers()})
    assert "sr" not in figures["all"]["crs_fast"]
    assert "SR" not in standard_markdown("tiny", "test", figures)
    assert standard_figures(bare, "test", {"crs_fast": []}) == {}
    assert standard_markdown("tiny", "test", {}) == ""


def test_published_rows_stand_beside_redials_test_alone_and_say_what_they_are():
    figures = standard_figures(DATASET, "test", {"mine": answers()})
    text = standard_markdown("redial", "test", figures)
    for name in PUBLISHED:
        assert text.count(f"| {name} (claimed) |") == 2
    assert "| UniCRS (claimed) | .049 | .213 | .421 | – | – |" in text
    assert "| ECR (claimed) | .026 | .181 | .337 | .063 | .033 |" + " – |" * 5 in text
    assert "| mine | .500 (3) [" in text
    for other in (("redial", "valid"), ("inspired", "test")):
        assert "claimed" not in standard_markdown(*other, figures)


def test_score_command_prints_it(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write_items(data / "items.jsonl", ITEMS)
    for split, held in DATASET.splits.items():
        write_dialogues(data / f"{split}.jsonl", held)
    write_predictions(tmp_path / "p.jsonl", answers())
    assert main(["score", str(tmp_path / "p.jsonl"), "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    expected = standard_figures(DATASET, "test", {"system": answers()})
    assert figures["standard"] == json.loads(json.dumps(expected))
    assert figures["labels"] == {}
    assert "Public standard (SIGIR 2026)" in printed


@pytest.mark.data
def test_redials_published_counts(data_root):
    """From the reader, and once more from the file's own strings as the definition has them."""
    data = load_dataset("redial", data_root)
    instances = recommending_messages(data.splits["test"])
    counts = [(len(i.targets), sum(i.new), sum(x in i.named for x in i.targets)) for i in instances]
    assert (len(counts), sum(n for n, *_ in counts)) == (4198, 4975)
    assert (sum(new > 0 for _, new, _ in counts), sum(new for _, new, _ in counts)) == (3838, 4472)
    assert sum(bool(i.message) for i in instances) == 1108

    found = []
    packed = (data_root / "redial" / "test_data.jsonl.gz").read_bytes()
    for line in gzip.decompress(packed).splitlines():
        record, named = json.loads(line), set()
        for number, message in enumerate(record["messages"]):
            ids = [i for i in record["movieMentions"] if f"@{i}" in message["text"]]
            recommender = message["senderWorkerId"] == record["respondentWorkerId"]
            if recommender and ids and number:
                found.append((len(ids), len(set(ids) - named), len(set(ids) & named)))
            named |= set(ids)
    assert found == counts


@pytest.mark.data
def test_naive_on_redial(data_root):
    """.042 / .101 / .101: all 503 targets named before, of 4,975. The paper prints .043 / .090 /
    .090, which no ranking of a whole context can give where 4,472 of 4,975 targets are fresh."""
    data = load_dataset("redial", data_root)
    blank = blank_predictions(data.splits["test"])
    figures = standard_figures(data, "test", {"blank": blank})
    assert figures["stand-ins"] == {"blank": 1108}
    naive = figures["all"][NAIVE]
    assert [naive[f"hits@{k}"] for k in (1, 10, 50)] == [208, 503, 503]
    assert naive["hits@50"] == 4975 - 4472
    for variant in ("fresh", "fresh, filtered"):
        assert figures[variant][NAIVE]["hits@50"] == 0
        assert (figures[variant][NAIVE]["n"], figures[variant][NAIVE]["instances"]) == (4472, 3838)
