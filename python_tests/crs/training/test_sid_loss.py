"""The loss on semantic IDs, against sums written out label by label."""

import pytest
import torch

from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.packing import collate, label_logits, note_labels, pack, token_losses
from crs_fast.crs.training.sid_loss import SidLoss
from crs_fast.crs.training.train import train, train_instances

from ..tiny_system import ITEMS, dialogues, say, system

TWICE = Dialogue(
    "twice",
    (
        say(SEEKER, "hello"),
        say(RECOMMENDER, "try Film 2 or Film 3", "i2", "i3"),
        say(SEEKER, "no"),
        say(RECOMMENDER, "how are you"),
    ),
)


def batch_of(builder, sid_loss):
    packs = [p for d in (TWICE, *dialogues(3)) for p in pack(builder.instances(d))]
    batch = collate(packs, builder.eos)
    note_labels(batch)
    sid_loss.note(batch)
    return batch


@pytest.mark.parametrize(("weight", "smoothing"), [(1.0, 0.0), (4.0, 0.0), (1.0, 0.2), (0.5, 0.7)])
def test_loss_of_each_label(weight, smoothing):
    model, _, trie, vocab, _, builder = system()
    sid_loss = SidLoss([builder.item(i.item_id)[:-1] for i in ITEMS], weight, smoothing)
    batch = batch_of(builder, sid_loss)
    with torch.no_grad():
        plain = token_losses(model, batch).tolist()
        logits, labels = label_logits(model, batch)
        got = sid_loss(logits, labels, batch).tolist()
    rows = [[int(vocab.token_ids[n][c]) for n, c in enumerate(sid)] for sid in trie.sids().tolist()]
    nll, codes, depth = -logits.log_softmax(-1), 0, None
    for n, label in enumerate(labels.tolist()):
        expected = plain[n]
        if depth is not None and depth < vocab.num_levels:
            prefix = labels[n - depth : n].tolist()
            siblings = {row[depth] for row in rows if row[:depth] == prefix}
            assert label in siblings
            mean = sum(float(nll[n, s]) for s in siblings) / len(siblings)
            expected = weight * ((1 - smoothing) * plain[n] + smoothing * mean)
            codes += 1
        depth = 0 if label == vocab.begin else None if depth is None else depth + 1
        assert got[n] == pytest.approx(expected, abs=1e-5)
    assert codes >= 4 * vocab.num_levels


def test_settings_reach_the_training(tmp_path):
    losses = {}
    changes = {"plain": {}, "weight": {"sid_weight": 4.0}, "smoothing": {"sid_smoothing": 0.9}}
    for name, settings in changes.items():
        model, tokenizer, trie, vocab, control, _ = system()
        config = TrainConfig(
            lora_rank=None, max_tokens=300, tokens_per_batch=300, logging_steps=1, **settings
        )
        result = train(
            (model, tokenizer), dialogues(6), trie, vocab, control, output_dir=tmp_path / name,
            config=config, progress=False,
        )  # fmt: skip
        losses[name] = result.losses[0]["loss"]
    assert losses["weight"] > 1.2 * losses["plain"]
    assert abs(losses["smoothing"] - losses["plain"]) > 1e-3


@pytest.mark.parametrize("settings", [{"sid_weight": 2.0}, {"sid_smoothing": 0.1}])
def test_settings_need_sids(settings, tmp_path):
    with pytest.raises(ValueError, match="sids must be given with sid_weight or sid_smoothing"):
        train_instances(
            system()[0], [], new_rows=[], pad_id=0, output_dir=tmp_path / "out",
            config=TrainConfig(lora_rank=None, **settings),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_bad_settings():
    with pytest.raises(ValueError, match="sid_weight must be above 0"):
        TrainConfig(sid_weight=0)
    with pytest.raises(ValueError, match="sid_smoothing must be in"):
        TrainConfig(sid_smoothing=1)
