"""One pass of training (loss and gradients) over dialogues: instances apart, and as branches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.datasets import load_dataset
from crs_fast.crs.packing import (
    Packed,
    batches,
    collate,
    collate_separate,
    next_token_loss,
    pack,
    separate,
)
from crs_fast.crs.sequence import ControlTokens, SequenceBuilder
from crs_fast.trie import SidVocab

from .case import Case, Ways

SHAPES = {
    ("toy", "cpu"): dict(hidden_size=32, layers=1, heads=2, vocab_size=300),
    ("full", "cpu"): dict(hidden_size=256, layers=4, heads=4, vocab_size=4096),
    ("full", "cuda"): dict(hidden_size=576, layers=30, heads=9, vocab_size=4096),
}
DIALOGUES = {("toy", "cpu"): 2, ("full", "cpu"): 8, ("full", "cuda"): 256}


def training(size: str, device: str) -> tuple[str, Ways]:
    """ReDial's first training dialogues where `CRS_FAST_DATA` is set, else the starter's."""
    source = "redial" if os.environ.get("CRS_FAST_DATA") and size == "full" else "starter"
    dataset = load_dataset(source)
    dialogues = dataset.splits["train"][: DIALOGUES.get((size, device), 2)]
    shape = SHAPES.get((size, device), SHAPES["toy", "cpu"])
    texts = [turn.text for d in dialogues for turn in d.turns]
    model, tokenizer = tiny_backbone(texts, **shape)
    vocab, control = (
        SidVocab.extend(tokenizer, model, 4, 64),
        ControlTokens.extend(tokenizer, model),
    )
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(64, (len(dataset.items), 4), generator=generator).tolist()
    sids = {item.item_id: row for item, row in zip(dataset.items, codes, strict=True)}
    builder = SequenceBuilder(tokenizer, vocab, control, sids)
    groups = [builder.instances(dialogue) for dialogue in dialogues]
    model.train().to(device)
    limit = 2048 if device == "cpu" else 32_768

    def way(packs: list[Packed], together: Callable[..., dict[str, torch.Tensor]]) -> Any:
        # Like lengths together in both ways: padding is not what is compared.
        ready = [
            {k: v.to(device) for k, v in together(b, builder.eos).items()}
            for b in batches(packs, limit, range(len(packs)))
        ]
        return lambda: _gradients(model, ready)

    apart = [p for group in groups for p in separate(group)]
    packed = [p for group in groups for p in pack(group, limit)]
    ways: Ways = {
        "separate instances": way(apart, collate_separate),
        "trunk + branches": way(packed, collate),
    }
    _check(model, ways)
    tokens = sum(map(len, apart)), sum(map(len, packed))
    instances = sum(map(len, groups))
    return (
        f"{len(dialogues)} {source} dialogues, {instances} instances, {tokens[0]} tokens apart, "
        f"{tokens[1]} as trunk + branches; {shape['layers']} layers x {shape['hidden_size']}",
        ways,
    )


def _gradients(model: Any, ready: Sequence[dict[str, torch.Tensor]]) -> float:
    """The summed loss of all batches; gradients pile up in the parameters."""
    model.zero_grad()
    total = 0.0
    for batch in ready:
        loss, _ = next_token_loss(model, batch)
        loss.backward()
        total += float(loss.detach())
    return total


def _check(model: Any, ways: Ways) -> None:
    losses, gradients = [], []
    for run in ways.values():
        losses.append(run())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    one, two = gradients
    if abs(losses[0] - losses[1]) > 1e-5 * losses[0] or (one - two).norm() > 1e-4 * one.norm():
        raise AssertionError("training: the ways disagree, nothing was timed")


CASES = [Case("training", training, ("cpu", "cuda"))]
