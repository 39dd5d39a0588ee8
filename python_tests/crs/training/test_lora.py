"""Adapters beside a head of one's own, and going on from checkpoints that must fit."""

import shutil
from dataclasses import replace

import pytest
import torch

from benchmarks.recommendation.arms.retrieval import RetrievalHead
from crs_fast.crs.backbones import merge_lora
from crs_fast.crs.control_tokens import new_tokens
from crs_fast.crs.sequence import Instance
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.lora import add_lora
from crs_fast.crs.training.train import train_instances

from ..tiny_system import ITEMS, dialogues, system

CONFIG = TrainConfig(
    epochs=2, learning_rate=3e-3, tokens_per_batch=400, lora_rank=4, logging_steps=1, save_steps=2
)


def retrieval():
    """A retrieval head and its instances, which are answered by a place in the catalogue."""
    torch.manual_seed(0)  # new rows are drawn too
    model, _, _, vocab, control, builder = system()
    head = RetrievalHead(model, torch.randn(len(ITEMS), 16))
    index = {item.item_id: n for n, item in enumerate(ITEMS)}
    groups = [
        [
            Instance(i.turn_index, i.item_id, i.context, (index[i.item_id],))
            for i in builder.instances(d)
            if i.item_id
        ]
        for d in dialogues(16)
    ]
    return head, groups, new_tokens(vocab, control), builder.eos


def fit(folder, config=CONFIG, **more):
    head, groups, new, pad = retrieval()
    return train_instances(
        head, groups, new_rows=new, pad_id=pad, output_dir=folder, config=config,
        whole=("head",), progress=False, **more,
    )  # fmt: skip


def test_the_head_trains_whole_beside_lora(tmp_path):
    before, _, new, _ = retrieval()
    result = fit(tmp_path, replace(CONFIG, epochs=8))
    after = result.model
    assert type(after) is RetrievalHead
    start, end = dict(before.named_parameters()), dict(after.named_parameters())
    assert start.keys() == end.keys()  # the adapter is merged and gone
    for name, weight in end.items():
        moved = not torch.equal(weight, start[name])
        assert moved == ("norm" not in name), name
    old = torch.ones(len(start["backbone.embed_tokens.weight"]), dtype=torch.bool)
    old[new] = False
    name = "backbone.embed_tokens.weight"
    assert torch.equal(end[name][old], start[name][old])
    change = end["backbone.layers.0.mlp.up_proj.weight"] - start[
        "backbone.layers.0.mlp.up_proj.weight"
    ]  # fmt: skip
    assert torch.linalg.matrix_rank(change, atol=1e-6) <= 4
    losses = [entry["loss"] for entry in result.losses]
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.5  # two batches an epoch


def test_recomputing_activations_changes_nothing(tmp_path):
    losses = [
        [x["loss"] for x in fit(tmp_path / str(on), replace(CONFIG, **more)).losses]
        for on in (False, True)
        for more in [{"gradient_checkpointing": on, "lora_dropout": 0.0}]
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_merging_keeps_the_answers():
    head, groups, new, _ = retrieval()
    tuned = add_lora(head, new, 4, whole=("head",)).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        ids = torch.tensor([groups[0][0].context])
        expected = tuned(input_ids=ids).logits
        merged = merge_lora(tuned)
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert merge_lora(merged) is merged


def test_the_retrieval_head_resumes(tmp_path):
    config = replace(CONFIG, epochs=4)
    whole = fit(tmp_path, config)
    _, last = sorted((tmp_path / "training").glob("checkpoint-*"))
    shutil.rmtree(last)
    again = fit(tmp_path, config, resume=True)
    assert 0 < again.tokens < whole.tokens
    for name, weight in whole.model.head.named_parameters():
        torch.testing.assert_close(again.model.head.get_parameter(name), weight, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rank": 8}, "lora_rank must be that of the checkpoints in .*, 4, .*got 8"),
        ({"embedding_lr_ratio": 10}, r"embedding_lr_ratio must be that of .*, 1\.0, .*got 10"),
        ({"lora_alpha": 16}, "lora_alpha must be .*, 32, .*got 16"),
        ({"lora_dropout": 0.5}, "lora_dropout must be"),
        ({"lora_rank": None}, "lora_rank must be .*, 4, .*got None"),
    ],
)
def test_another_adapter_can_not_go_on(tmp_path, change, message):
    fit(tmp_path, replace(CONFIG, epochs=1))
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, replace(CONFIG, **change), resume=True)
    fit(tmp_path, replace(CONFIG, **change))  # from the start it may be anything
