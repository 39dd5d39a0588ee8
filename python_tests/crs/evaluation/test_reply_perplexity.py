"""Perplexity against plain forward passes over each turn alone."""

import math

import pytest
import torch

from crs_fast.crs.control_tokens import CHAT, REC, new_tokens
from crs_fast.crs.evaluation.predictions import (
    blank_predictions,
    read_predictions,
    write_predictions,
)
from crs_fast.crs.evaluation.reply_perplexity import note_gold_nll
from crs_fast.crs.evaluation.score import text_figures
from crs_fast.crs.sequence import GCRS, Layout

from ..tiny_system import ITEMS
from .test_predict import MODELS, SPLIT, bundle

LAYOUTS = [GCRS, Layout(mode=False, item=False), Layout(item=False)]


def answered(layout):
    """Predictions whose mode is now right and now wrong; a layout without items ranks only where
    its own words name one."""
    predictions = blank_predictions(SPLIT)
    for n, p in enumerate(predictions):
        p.mode, p.reply = CHAT if n % 3 else REC, "words"
        p.ranking = [f"i{n % 8}"] if layout.item or (p.gold_items and n % 2) else None
    assert {(bool(p.gold_items), p.chooses_rec) for p in predictions} == {
        (gold, own) for gold in (True, False) for own in (True, False)
    }
    return predictions


def response(builder, turn, mode, item):
    """Spelled out, without `SequenceBuilder.prefix`."""
    layout, control = builder.layout, builder.control
    out = [control.rec if mode == REC else control.chat] if layout.mode else []
    out += builder.item(item) if layout.item and mode == REC else []
    out += [control.resp] if layout.mode or layout.item else []
    return out + builder.utterance(turn)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["gcrs", "resp", "mode-resp"])
@pytest.mark.parametrize("architecture", MODELS)
def test_gold_replies_cost_what_plain_forwards_say(tmp_path, architecture, layout):
    system = bundle(architecture, layout=layout)
    builder, predictions = system.builder, answered(layout)
    note_gold_nll(system, SPLIT, predictions, progress=False)
    special = torch.tensor([*new_tokens(system.vocab, system.control), builder.eos])
    totals = {"gold": [0.0, 0], "own": [0.0, 0]}
    for p in predictions:
        turns = SPLIT[p.dialogue].turns
        context = builder.context(turns[: p.turn])
        for name in totals:
            item = (
                next(iter(p.gold_items), None)
                if name == "gold"
                else next(iter(p.ranking or ()), "")
            )
            rec = bool(p.gold_items) if name == "gold" else p.chooses_rec
            reply = torch.tensor(response(builder, turns[p.turn], REC if rec else CHAT, item))
            with torch.no_grad():
                logits = system.model(torch.tensor([[*context, *reply]])).logits[0]
            losses = -logits[len(context) - 1 : -1].log_softmax(1).gather(1, reply[:, None])[:, 0]
            words = ~torch.isin(reply, special)
            expected = float(losses[words].sum()), int(words.sum())
            nats, count = p.gold_nll[name]
            assert count == expected[1]
            assert nats == pytest.approx(expected[0], rel=1e-4)
            totals[name][0] += nats
            totals[name][1] += count

    # Perplexity is the whole corpus's, and survives the file.
    write_predictions(tmp_path / "p.jsonl", predictions)
    read = read_predictions(tmp_path / "p.jsonl", SPLIT, ITEMS)
    figures = text_figures(read)
    for name, (nats, count) in totals.items():
        found = figures[f"perplexity given {name} mode and item"]
        assert found == pytest.approx(math.exp(nats / count))
    assert figures["word tokens"] == totals["own"][1]
