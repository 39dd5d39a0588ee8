"""Training: one pass (loss and gradients) over dialogues, instances apart and as branches; whole
steps of SmolLM2's shape in bfloat16, and the loss over its vocabulary."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data import load_dataset
from crs_fast.crs.sequence import Instance, SequenceBuilder
from crs_fast.crs.training.compiled import compile_layers, decoder_layers
from crs_fast.crs.training.label_loss import LabelLoss
from crs_fast.crs.training.packing import (
    PAD,
    Collate,
    Packed,
    batches,
    collate,
    collate_separate,
    note_labels,
    pack,
    separate,
)
from crs_fast.decode.lm.head import LOGITS_AT_ONCE
from crs_fast.trie import SidVocab

from .case import Case, Methods

SHAPES = {
    ("toy", "cpu"): dict(hidden_size=32, layers=1, heads=2, vocab_size=300),
    ("full", "cpu"): dict(hidden_size=256, layers=4, heads=4, vocab_size=4096),
    ("full", "cuda"): dict(hidden_size=576, layers=30, heads=9, vocab_size=4096),
}
DIALOGUES = {("toy", "cpu"): 2, ("full", "cpu"): 8, ("full", "cuda"): 256}
SMOLLM2 = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49_152 + 256 + 16,
    tie_word_embeddings=True,
)
STEP_TOKENS = 24_576
STEPS = 4


def training(size: str, device: str) -> tuple[str, Methods]:
    """ReDial's first training dialogues where `CRS_FAST_DATA` is set, else the starter's."""
    shape = SHAPES.get((size, device), SHAPES["toy", "cpu"])
    source, model, eos, groups = _instances(size, DIALOGUES.get((size, device), 2), shape)
    model.train().to(device)
    limit = 2048 if device == "cpu" else 32_768

    models = {}

    def add(name: str, model: Any, packs: list[Packed], together: Collate) -> None:
        # All methods batch instances of like lengths: padding is not what is compared.
        ready = _on_device(packs, together, limit, eos, device)
        models[name], methods[name] = model, lambda: _gradients(model, ready)

    apart = [p for group in groups for p in separate(group)]
    packed = [p for group in groups for p in pack(group, limit)]
    methods: Methods = {}
    add("separate instances", model, apart, collate_separate)
    add("trunk + branches", model, packed, collate)
    if (size, device) == ("full", "cpu"):  # compiling takes a minute
        add("trunk + branches, compiled", _compiled_copy(model), packed, collate)
    _check(models, methods)
    tokens = sum(map(len, apart)), sum(map(len, packed))
    instances = sum(map(len, groups))
    return (
        f"{len(groups)} {source} dialogues, {instances} instances, {tokens[0]} tokens apart, "
        f"{tokens[1]} as trunk + branches; {shape['layers']} layers x {shape['hidden_size']}",
        methods,
    )


def training_step(size: str, device: str) -> tuple[str, Methods]:
    """A few optimizer steps in bfloat16, eager and with compiled layers; random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = SHAPES["toy", "cpu"]
    source, toy, eos, groups = _instances(size, 2 if size == "toy" else 400, small)
    packs = [p for group in groups for p in pack(group, STEP_TOKENS)]
    model = toy if size == "toy" else LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    model.train().to(device)
    models = {"eager": model}
    if size == "full":
        models["compiled layers"] = _compiled_copy(model)
    ready = _on_device(packs, collate, STEP_TOKENS, eos, device)[-STEPS:]
    methods: Methods = {name: _stepper(each, ready, device) for name, each in models.items()}
    # The first call also makes the optimizer's state, which must not count as extra memory.
    losses = [float(run()) for run in methods.values()]
    if max(losses) > 1.01 * min(losses):
        raise AssertionError("training_step: the methods disagree, nothing was timed")
    tokens = sum(int((batch["branch"] != PAD).sum()) for batch in ready)
    goal = 1e3 * tokens / 250_000
    return (
        f"{len(ready)} steps on {tokens} tokens of {source} (250,000 tokens/s: {goal:.0f} ms)",
        methods,
    )


def label_loss(size: str, device: str) -> tuple[str, Methods]:
    """The loss and all gradients, with all logits at once and with some at a time."""
    workload, run = label_loss_pass(size, device)
    methods: Methods = {}
    for name in ("all logits", *(name for name in LOGITS_AT_ONCE.designs if name != "all logits")):

        def call(name: str = name) -> torch.Tensor:
            with LOGITS_AT_ONCE.using(name):
                return run()

        methods[name] = call
    wanted, *others = (call() for call in methods.values())
    for gradients in others:
        if (gradients - wanted).norm() > (1e-5 if device == "cpu" else 1e-2) * wanted.norm():
            raise AssertionError("label_loss: the methods disagree, nothing was timed")
    return workload, methods


def label_loss_pass(size: str, device: str) -> tuple[str, Callable[[], torch.Tensor]]:
    """A batch through one layer of SmolLM2's width and its head, forwards and backwards: what it
    is, and one call of it, which returns the gradient of the embedding, which is the head's too, as
    a share of its largest element."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = {"toy": 300, "full": 4096 if device == "cpu" else STEP_TOKENS}[size]
    source, toy, eos, groups = _instances(size, 2 if size == "toy" else 400, SHAPES["toy", "cpu"])
    packs = [p for group in groups for p in pack(group, tokens)]
    shape = SMOLLM2 | {"num_hidden_layers": 1}
    model = toy if size == "toy" else LlamaForCausalLM(LlamaConfig(**shape))
    model.train().to(device)
    ready = _on_device(packs, collate, tokens, eos, device)
    batch = max(ready, key=lambda batch: len(batch["label_at"]))
    loss = LabelLoss()

    def run() -> torch.Tensor:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            total, count = loss(model, batch)
        (total / count).backward()
        gradient = model.get_input_embeddings().weight.grad
        return gradient / gradient.abs().max()

    config = model.config
    return (
        f"{batch['labels'].numel()} tokens of {source}, {len(batch['label_at'])} labels, "
        f"{config.num_hidden_layers} layer x {config.hidden_size}, vocab {config.vocab_size}",
        run,
    )


def _instances(
    size: str, dialogues: int, shape: dict[str, int]
) -> tuple[str, Any, int, list[list[Instance]]]:
    """Where dialogues come from, a small model with tokens for their items, its end token and
    their instances."""
    source = "redial" if os.environ.get("CRS_FAST_DATA") and size == "full" else "starter"
    dataset = load_dataset(source)
    some = dataset.splits["train"][:dialogues]
    model, tokenizer = tiny_backbone([turn.text for d in some for turn in d.turns], **shape)
    vocab = SidVocab.extend(tokenizer, model, 4, 64, special=True)
    control = ControlTokens.extend(tokenizer, model)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(64, (len(dataset.items), 4), generator=generator).tolist()
    sids = {item.item_id: row for item, row in zip(dataset.items, codes, strict=True)}
    builder = SequenceBuilder(tokenizer, vocab, control, sids)
    return source, model, builder.eos, [builder.instances(dialogue) for dialogue in some]


def _on_device(
    packs: list[Packed],
    together: Collate,
    limit: int,
    eos: int,
    device: str,
) -> list[dict[str, torch.Tensor]]:
    ready = [together(some, eos) for some in batches(packs, limit, range(len(packs)))]
    for batch in ready:
        note_labels(batch)
    return [{k: v.to(device) for k, v in batch.items()} for batch in ready]


def _gradients(model: Any, ready: Sequence[dict[str, torch.Tensor]]) -> float:
    """The summed loss of all batches; gradients pile up in the parameters."""
    model.zero_grad()
    total, label_loss = 0.0, LabelLoss()
    for batch in ready:
        loss, _ = label_loss(model, batch)
        loss.backward()
        total += float(loss.detach())
    return total


def _stepper(
    model: Any, ready: Sequence[dict[str, torch.Tensor]], device: str
) -> Callable[[], torch.Tensor]:
    """Optimizer steps on all batches, with an optimizer of its own; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    label_loss = LabelLoss()

    def steps() -> torch.Tensor:
        for batch in ready:
            with torch.autocast(device, torch.bfloat16):
                total, count = label_loss(model, batch)
            loss = total / count
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return steps


def _compiled_copy(model: Any) -> Any:
    """A copy whose layers run compiled from now on."""
    model = copy.deepcopy(model)
    compile_layers(decoder_layers(model))
    return model


def _check(models: dict[str, Any], methods: Methods) -> None:
    losses, gradients = [], []
    for name, run in methods.items():
        losses.append(run())
        gradients.append(torch.cat([p.grad.flatten() for p in models[name].parameters()]))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        apart = (gradient - gradients[0]).norm()
        if abs(loss - losses[0]) > 1e-5 * losses[0] or apart > 1e-4 * gradients[0].norm():
            raise AssertionError("training: the methods disagree, nothing was timed")


CASES = [
    Case("training", training, ("training",), ("cpu", "cuda")),
    Case("label_loss", label_loss, ("training",), ("cpu", "cuda"), counts_memory=True),
    Case("training_step", training_step, ("training",), ("cuda",)),
]
