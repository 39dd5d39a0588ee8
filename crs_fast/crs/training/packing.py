"""Packs all instances of a dialogue into one sequence: a trunk, which is the longest context, and
one branch per response. A branch sees itself and the trunk up to the end of its own context, at the
position ids that it would have alone. So its loss and gradient are those of the separate instance,
at a fraction of the tokens. Packing mirrors the token tree of beam search.

    trunk    t0 t1 t2 t3 t4
    branch   response of the instance whose context is t0 t1 t2, at position ids 3, 4, ...

The last context token predicts the first response token, so it stands at the beginning of the
branch and not in the trunk: every token of a branch has a label, and no token of the trunk has one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from crs_fast.crs.sequence import Instance
from crs_fast.decode.lm.attention_kernels import attention_of_any_shape

IGNORE = -100
PAD = -1
Arrange = Callable[..., list["Packed"]]
Collate = Callable[..., dict[str, torch.Tensor]]


@dataclass(slots=True)
class Packed:
    """One sequence. `trunk` is the longest context; `branches` holds (context length, response) of
    each instance."""

    trunk: tuple[int, ...]
    branches: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of tokens that the model reads."""
        return len(self.trunk) - 1 + sum(len(response) for _, response in self.branches)


def pack(instances: Iterable[Instance], max_tokens: int | None = None) -> list[Packed]:
    """Put instances whose contexts are prefixes of one another into one sequence.

    A context that was cut off at its left end is no prefix of the others, so it gets a sequence of
    its own, and the loss stays exact.

    Args:
        instances: the instances of one dialogue; the result is right for any instances.
        max_tokens: a sequence takes no further branch beyond this length; None sets no limit.
    """
    packs: list[Packed] = []
    for instance in sorted(instances, key=lambda i: -len(i.context)):
        if not instance.context or not instance.response:
            raise ValueError(
                "pack: instances must have a context and a response (got an empty one)"
            )
        packed = next((p for p in packs if _takes(p, instance, max_tokens)), None)
        if packed is None:
            packed = Packed(instance.context)
            packs.append(packed)
        packed.branches.append((len(instance.context), instance.response))
    return packs


def _takes(packed: Packed, instance: Instance, max_tokens: int | None) -> bool:
    fits = max_tokens is None or len(packed) + len(instance.response) <= max_tokens
    return fits and packed.trunk[: len(instance.context)] == instance.context


def separate(instances: Iterable[Instance], max_tokens: int | None = None) -> list[Packed]:
    """Each instance as a sequence of its own, an ordinary causal one, whatever its length."""
    return [Packed(i.context, [(len(i.context), i.response)]) for i in instances]


def collate(packs: Sequence[Packed], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Packed sequences as one batch, padded on the left, so that labels stand together at the end.

    Returns:
        int64 [B, S] tensors. `input_ids` and `position_ids`; `branch`, 0 in the trunk, then 1, 2,
        ..., and -1 for padding; `visible`, the number of trunk tokens that a branch's token sees;
        `labels`, already shifted: `labels[b, s]` follows `input_ids[b, s]`, or is -100 if there is
        no loss.
    """
    fills = {"input_ids": pad_id, "position_ids": 0, "branch": PAD, "visible": 0, "labels": IGNORE}
    batch = _padding(packs, fills.values())
    for row, packed in enumerate(packs):
        batch[:, row, -len(packed) :] = _layout(packed)
    return dict(zip(fills, torch.from_numpy(batch), strict=True))


def collate_separate(packs: Sequence[Packed], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Sequences of one branch as an ordinary batch, padded on the right, for models that do not
    take a 4-D mask: int64 [B, S] `input_ids`, `attention_mask` and `labels` (shifted as in
    `collate`).

    Raises:
        ValueError: a sequence has several branches.
    """
    if any(len(packed.branches) != 1 for packed in packs):
        raise ValueError("collate_separate: packs must have one branch each")
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE}
    batch = _padding(packs, fills.values())
    for row, packed in enumerate(packs):
        tokens, *_, labels = _layout(packed)
        batch[0, row, : len(packed)] = tokens
        batch[1, row, : len(packed)] = 1
        batch[2, row, : len(packed)] = labels
    return dict(zip(fills, torch.from_numpy(batch), strict=True))


def _padding(packs: Sequence[Packed], fills: Iterable[int]) -> np.ndarray:
    """A batch that holds only padding, int64 [number of fills, B, S]."""
    padding = np.reshape([*fills], (-1, 1, 1))
    return np.repeat(np.repeat(padding, len(packs), 1), max(map(len, packs)), 2)


def note_labels(batch: dict[str, torch.Tensor]) -> None:
    """Add `label_at`, int64 [n], the positions of the labels in the flattened batch. Call it where
    the batch is made, on the CPU: on a GPU, finding them would wait for all work queued there."""
    batch["label_at"] = _places(batch["labels"].flatten())


def _places(labels: torch.Tensor) -> torch.Tensor:
    return (labels != IGNORE).nonzero().squeeze(1)


def reading(packed: bool) -> tuple[Arrange, Collate]:
    """The functions that make sequences of instances, and a batch of sequences: packed ones, or
    separate ones for a model that cannot read packed sequences."""
    return (pack, collate) if packed else (separate, collate_separate)


def drop_context(batch: dict[str, torch.Tensor], share: float, token: int) -> None:
    """Replace a random share of the context's tokens by `token`, in place, so that a model does not
    come to rely on single tokens (word dropout: Bowman et al. 2016, arXiv 1511.06349). Responses
    stay unchanged."""
    ids = batch["input_ids"]
    context = batch["labels"] == IGNORE
    ids.masked_fill_(context & (torch.rand(ids.shape, device=ids.device) < share), token)


class CodeSwap:
    """Replaces a random share of the responses' code tokens by another code of their level, in
    place, in the input and not in the labels. A model that saw wrong prefixes in training copes
    better with them in beam search (exposure bias: Bengio et al. 2015, arXiv 1506.03099).

    Args:
        codes: the tokens of each level's codes.
    """

    def __init__(self, share: float, codes: Sequence[torch.Tensor]) -> None:
        self.share = share
        self._levels = [level.sort().values for level in codes]

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        ids = batch["input_ids"]
        in_response = batch["labels"] != IGNORE
        # Copied by the first batch alone: a copy in each step would wait for the GPU.
        self._levels = [level.to(ids.device) for level in self._levels]
        for level in self._levels:
            drawn = torch.rand(ids.shape, device=ids.device) < self.share
            nearest = torch.searchsorted(level, ids)  # `torch.isin` would wait for a GPU
            is_code = level[nearest.clamp(max=len(level) - 1)] == ids
            other = torch.randint(len(level), ids.shape, device=ids.device)
            ids.copy_(torch.where(in_response & is_code & drawn, level[other], ids))


def _layout(packed: Packed) -> np.ndarray:
    """Token ids, position ids, branch numbers, visible trunk lengths and labels of one sequence,
    int64 [5, S]."""
    at = len(packed.trunk) - 1
    out = np.empty((5, len(packed)), dtype=np.int64)
    out[0, :at], out[1, :at] = packed.trunk[:at], np.arange(at)
    out[2:, :at] = [[0], [0], [IGNORE]]
    for number, (length, response) in enumerate(packed.branches, start=1):
        branch = out[:, at : at + len(response)]
        branch[0, 0], branch[0, 1:] = packed.trunk[length - 1], response[:-1]
        branch[1] = np.arange(length - 1, length - 1 + len(response))
        branch[2:4] = [[number], [length - 1]]
        branch[4] = response
        at += len(response)
    return out


def tree_mask(
    branch: torch.Tensor, visible: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """The attention mask, bool [B, 1, S, S], True where a query (row) may read a key (column).

    A query reads keys of its own branch that do not come after it. A query in a branch also reads
    trunk tokens at position ids below `visible`. Padding reads itself, so that no row is empty.
    """
    query, key = branch[:, :, None], branch[:, None, :]
    at_query, at_key = position_ids[:, :, None], position_ids[:, None, :]
    own = (query == key) & (query != PAD) & (at_key <= at_query)
    trunk = (key == 0) & (query > 0) & (at_key < visible[:, :, None])
    padding = torch.eye(branch.shape[1], dtype=torch.bool, device=branch.device)
    return (own | trunk | padding)[:, None]  # [B, 1, S, S]


def batches(
    packs: Sequence[Packed], tokens_per_batch: int, order: Sequence[int]
) -> list[list[Packed]]:
    """Group sequences of similar length, so that a padded batch holds at most `tokens_per_batch`
    tokens (or one sequence). `order`, a shuffled range, decides between sequences of equal
    length."""
    by_length = sorted(order, key=lambda i: len(packs[i]))
    out: list[list[Packed]] = []
    for index in by_length:
        if out and (len(out[-1]) + 1) * len(packs[index]) <= tokens_per_batch:
            out[-1].append(packs[index])
        else:
            out.append([packs[index]])
    return out


def next_token_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The summed cross-entropy of a batch from `collate` or `collate_separate`, and the number of
    its labels."""
    losses = token_losses(model, batch)
    return losses.sum(), losses.numel()


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The cross-entropy of each label of a batch in nats, [n], in the order of the flattened
    labels."""
    return F.cross_entropy(*label_logits(model, batch), reduction="none")


def label_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 logits [n, V] at the labels of a batch, and the labels [n], in flattened order.

    The head runs only at positions with a label: in a small model it costs more than all layers.
    """
    labels, at = _labels(batch)
    with _head_reads(model, lambda states: states.flatten(0, 1)[at][None]):
        logits = _forward(model, batch)
    if logits.shape[:2] != (1, len(at)):  # the model did not call the head that it names
        logits = logits.flatten(0, 1)[at][None]
    return logits[0].float(), labels[at]


class LabelStates(NamedTuple):
    """What the head reads at the labels of a batch.

    hidden [n, H], labels int64 [n]
    first_logits [V]: what the model makes of the first one
    autocast: the dtype of the autocast in which the model calls its head, or None
    """

    hidden: torch.Tensor
    labels: torch.Tensor
    first_logits: torch.Tensor
    autocast: torch.dtype | None


def label_states(
    model: Any, batch: dict[str, torch.Tensor], order: torch.Tensor | None = None
) -> LabelStates | None:
    """The hidden states at the labels of a batch, in flattened order or in `order`, int64 [n],
    without their logits. None if the model does not call the head that it names."""
    labels, at = _labels(batch)
    if order is not None:
        at = at[order]
    read: list[tuple[torch.Tensor, torch.dtype | None]] = []

    def keep(states: torch.Tensor) -> torch.Tensor:
        device = states.device.type
        has_autocast = torch.is_autocast_enabled(device)
        autocast = torch.get_autocast_dtype(device) if has_autocast else None
        read.append((states.flatten(0, 1)[at], autocast))
        # One position, since distributed training looks for all parameters in the model's outputs.
        return read[0][0][None, :1]

    with _head_reads(model, keep):
        logits = _forward(model, batch)
    if not read or logits.shape[:2] != (1, 1):
        return None
    hidden, autocast = read[0]
    return LabelStates(hidden, labels[at], logits[0, 0].detach(), autocast)


def _labels(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The flattened labels and the positions of those that count."""
    return batch["labels"].flatten(), label_places(batch)


def label_places(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The positions of the labels in the flattened batch, int64 [n]; see `note_labels`."""
    return batch["label_at"] if "label_at" in batch else _places(batch["labels"].flatten())


def _forward(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits [B, S, V], of a head that may read something else."""
    with attention_of_any_shape():
        return model(**_model_inputs(model, batch)).logits


@contextmanager
def _head_reads(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside this context, the head reads what `change` makes of the states [B, S, H], as a batch
    of shape [1, n]."""
    head = getattr(model, "module", model).get_output_embeddings()
    if head is None:
        yield
        return

    def pick(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (change(args[0]), *args[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def read_after(
    model: Any,
    contexts: Sequence[Sequence[int]],
    groups: Sequence[int],
    read: Callable[[torch.Tensor], torch.Tensor],
    tokens_per_batch: int = 8192,
    pad_id: int = 0,
) -> torch.Tensor:
    """The model's prediction after each context. Contexts of one group are packed on one trunk if
    the model can read packed sequences.

    Args:
        contexts: C token sequences.
        groups: the dialogue of each context, [C]; contexts of one dialogue are adjacent.
        read: maps logits [n, V] to what is kept of them, [n, ...].
        tokens_per_batch: see `batches`.

    Returns:
        [C, ...] on the CPU; row i belongs to context i.
    """
    largest_group = Counter(groups).most_common(1)
    probe = [
        Instance(0, None, tuple(context), (0,))
        for context, group in zip(contexts, groups, strict=True)
        if group == largest_group[0][0]
    ]
    longest = max(map(len, contexts), default=0)
    arrange, together = reading(packing_is_exact(model, probe, longest))
    packs: list[Packed] = []
    for _, members in itertools.groupby(range(len(contexts)), key=groups.__getitem__):
        # A response of one token is never an input, so its label can be the context's number.
        packs += arrange([Instance(i, None, tuple(contexts[i]), (i,)) for i in members])
    rows: dict[int, torch.Tensor] = {}
    for batch_packs in batches(packs, tokens_per_batch, range(len(packs))):
        batch = {k: v.to(model.device) for k, v in together(batch_packs, pad_id).items()}
        logits, numbers = label_logits(model, batch)
        rows |= dict(zip(numbers.tolist(), read(logits).cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(contexts))])


def _model_inputs(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
    if "branch" not in batch:
        return {**inputs, "attention_mask": batch["attention_mask"]}
    mask = tree_mask(batch["branch"], batch["visible"], batch["position_ids"])
    config = getattr(model, "module", model).config
    if getattr(config, "_attn_implementation", None) != "sdpa":
        # Only SDPA takes a bool mask as such; other attention adds the mask to the scores.
        zero = torch.zeros(mask.shape, device=mask.device)
        mask = zero.masked_fill_(~mask, torch.finfo(zero.dtype).min)
    return {**inputs, "attention_mask": mask, "position_ids": batch["position_ids"]}


@torch.no_grad()
def packing_is_exact(model: Any, instances: Sequence[Instance], max_length: int) -> bool:
    """Whether a model gives packed `instances` the loss of separate ones. The first four instances
    are tried. They should be of one dialogue, since instances of different dialogues are not packed
    together.

    The loss differs for models with relative positions by index (ALiBi), recurrent layers or flash
    attention. A 4-D mask overrides a sliding window, so the answer is no if the window is shorter
    than `max_length`.
    """
    window = getattr(model.config, "sliding_window", None)
    if window and window < max_length and getattr(model.config, "use_sliding_window", True):
        return False
    instances = instances[:4]
    device, training = model.device, model.training
    model.eval()
    try:
        losses = []
        for packed in (True, False):
            arrange, together = reading(packed)
            parts = [together([sequence]) for sequence in arrange(instances)]
            batches_ = [{k: v.to(device) for k, v in part.items()} for part in parts]
            losses.append(sum(float(next_token_loss(model, batch)[0]) for batch in batches_))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    finally:
        model.train(training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 2e-2
    return abs(losses[0] - losses[1]) <= tolerance * abs(losses[1])
