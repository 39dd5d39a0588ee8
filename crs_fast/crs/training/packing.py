"""All instances of a dialogue in one sequence: a trunk (the longest context) and a branch for
each response. A branch sees the trunk up to its own context's end and itself, at the positions it
would have alone, so its loss and gradient are those of the separate instance at a fraction of the
tokens. It mirrors the token tree of beam search.

    trunk    t0 t1 t2 t3 t4
    branch   response of the instance whose context is t0 t1 t2, at positions 3, 4, ...

The last context token predicts the first response token, so it stands at the branch's head and
not in the trunk: every token of a branch has a label, and no token of the trunk.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from crs_fast.crs.sequence import Instance
from crs_fast.crs.training.attention import attention_of_any_shape

IGNORE = -100
PAD = -1
Arrange = Callable[..., list["Packed"]]
Collate = Callable[..., dict[str, torch.Tensor]]


@dataclass(slots=True)
class Packed:
    """`trunk`: the longest context. `branches`: (context length, response) of each instance."""

    trunk: tuple[int, ...]
    branches: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens the model reads."""
        return len(self.trunk) - 1 + sum(len(response) for _, response in self.branches)


def pack(instances: Iterable[Instance], max_tokens: int | None = None) -> list[Packed]:
    """Put instances whose contexts are prefixes of one another into one sequence.

    A truncated context is no prefix of the others, so it stands alone and the loss stays exact.

    Args:
        instances: of one dialogue; any instances give a right result.
        max_tokens: a sequence takes no further branch past this length; None for no limit.
    """
    packs: list[Packed] = []
    for instance in sorted(instances, key=lambda i: -len(i.context)):
        if not instance.context or not instance.response:
            raise ValueError(
                "pack: instances must have a context and a response (got an empty one)"
            )
        home = next((p for p in packs if _takes(p, instance, max_tokens)), None)
        if home is None:
            home = Packed(instance.context)
            packs.append(home)
        home.branches.append((len(instance.context), instance.response))
    return packs


def _takes(packed: Packed, instance: Instance, max_tokens: int | None) -> bool:
    fits = max_tokens is None or len(packed) + len(instance.response) <= max_tokens
    return fits and packed.trunk[: len(instance.context)] == instance.context


def separate(instances: Iterable[Instance], max_tokens: int | None = None) -> list[Packed]:
    """Every instance as a sequence of its own, whatever its length: ordinary causal sequences."""
    return [Packed(i.context, [(len(i.context), i.response)]) for i in instances]


def collate(packs: Sequence[Packed], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Packed sequences as one batch, padded on the left so that labels stand together at the end.

    Returns:
        int64 [B, S] tensors: `input_ids`; `position_ids`; `branch` (0 trunk, then 1, 2, ...; -1
        padding); `visible`, the number of trunk tokens a token of a branch sees; `labels`, already
        shifted: `labels[b, s]` follows `input_ids[b, s]`, -100 where there is no loss.
    """
    names = {"input_ids": pad_id, "position_ids": 0, "branch": PAD, "visible": 0, "labels": IGNORE}
    batch = _padding(packs, names.values())
    for row, packed in enumerate(packs):
        batch[:, row, -len(packed) :] = _layout(packed)
    return dict(zip(names, torch.from_numpy(batch), strict=True))


def collate_separate(packs: Sequence[Packed], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Sequences of one branch as an ordinary batch, padded on the right, for models that take no
    4-D mask: int64 [B, S] `input_ids`, `attention_mask` and `labels` (shifted, see `collate`).

    Raises:
        ValueError: a sequence has several branches.
    """
    if any(len(packed.branches) != 1 for packed in packs):
        raise ValueError("collate_separate: packs must have one branch each")
    names = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE}
    batch = _padding(packs, names.values())
    for row, packed in enumerate(packs):
        tokens, *_, labels = _layout(packed)
        batch[0, row, : len(packed)] = tokens
        batch[1, row, : len(packed)] = 1
        batch[2, row, : len(packed)] = labels
    return dict(zip(names, torch.from_numpy(batch), strict=True))


def _padding(packs: Sequence[Packed], fills: Iterable[int]) -> np.ndarray:
    """An empty batch: int64 [fills, B, S]."""
    padding = np.reshape([*fills], (-1, 1, 1))
    return np.repeat(np.repeat(padding, len(packs), 1), max(map(len, packs)), 2)


def note_labels(batch: dict[str, torch.Tensor]) -> None:
    """Add `label_at`, int64 [n]: the flat positions of the labels. To be called where the batch is
    made: a GPU that is asked for them would have to finish all its work first."""
    batch["label_at"] = _places(batch["labels"].flatten())


def _places(labels: torch.Tensor) -> torch.Tensor:
    return (labels != IGNORE).nonzero().squeeze(1)


def reading(packed: bool) -> tuple[Arrange, Collate]:
    """How instances become sequences, and sequences a batch, for a model that reads them packed or
    one that can't."""
    return (pack, collate) if packed else (separate, collate_separate)


def drop_context(batch: dict[str, torch.Tensor], share: float, token: int) -> None:
    """Replace a random share of the context's tokens by `token`, in place, so that a model learns
    to do without any one of them (word dropout: Bowman et al. 2016, arXiv 1511.06349). Responses
    stay whole."""
    ids = batch["input_ids"]
    context = batch["labels"] == IGNORE
    ids.masked_fill_(context & (torch.rand(ids.shape) < share), token)


def swap_codes(batch: dict[str, torch.Tensor], share: float, codes: Sequence[torch.Tensor]) -> None:
    """Replace a random share of the responses' code tokens, as inputs and not as labels, by another
    code of their level, in place: a model that saw wrong prefixes forgives them in beam search
    (exposure bias: Bengio et al. 2015, arXiv 1506.03099)."""
    ids = batch["input_ids"]
    fed = batch["labels"] != IGNORE
    for level in codes:
        level = level.to(ids.device)
        hit = fed & torch.isin(ids, level) & (torch.rand(ids.shape, device=ids.device) < share)
        other = torch.randint(len(level), ids.shape, device=ids.device)
        ids.copy_(torch.where(hit, level[other], ids))


def _layout(packed: Packed) -> np.ndarray:
    """Tokens, positions, branch numbers, visible trunk lengths and labels of one sequence, int64
    [5, S]."""
    at = len(packed.trunk) - 1
    out = np.empty((5, len(packed)), dtype=np.int64)
    out[0, :at], out[1, :at] = packed.trunk[:at], np.arange(at)
    out[2:, :at] = [[0], [0], [IGNORE]]
    for number, (length, response) in enumerate(packed.branches, start=1):
        columns = out[:, at : at + len(response)]
        columns[0, 0], columns[0, 1:] = packed.trunk[length - 1], response[:-1]
        columns[1] = np.arange(length - 1, length - 1 + len(response))
        columns[2:4] = [[number], [length - 1]]
        columns[4] = response
        at += len(response)
    return out


def tree_mask(
    branch: torch.Tensor, visible: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """Who sees whom: bool [B, 1, S, S], True where query (row) may read key (column).

    A query reads keys of its own branch at no later position and, if it stands in a branch, trunk
    tokens at positions below `visible`. Padding reads itself, so no row is empty.
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
    """Group sequences of like length so that a batch, padded, holds at most `tokens_per_batch`
    tokens (or one sequence). `order` breaks ties of length: pass a shuffled range."""
    by_length = sorted(order, key=lambda i: len(packs[i]))
    out: list[list[Packed]] = []
    for index in by_length:
        if out and (len(out[-1]) + 1) * len(packs[index]) <= tokens_per_batch:
            out[-1].append(packs[index])
        else:
            out.append([packs[index]])
    return out


def next_token_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy of a batch of `collate` or `collate_separate`, and its label count."""
    losses = token_losses(model, batch)
    return losses.sum(), losses.numel()


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each label of a batch, in nats: [n], in the order of
    `batch["labels"] != -100` by rows."""
    return F.cross_entropy(*label_logits(model, batch), reduction="none")


def label_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 logits [n, V] at the labels of a batch, and the labels [n], by rows.

    The head runs where there is a label only: on a small model it costs more than all layers.
    """
    labels = batch["labels"].flatten()
    at = batch["label_at"] if "label_at" in batch else _places(labels)
    with _head_at(model, at), attention_of_any_shape():
        logits = model(**_model_inputs(model, batch)).logits
    if logits.shape[:2] != (1, len(at)):  # its head is not the module it says, or is none
        logits = logits.flatten(0, 1)[at][None]
    return logits[0].float(), labels[at]


@contextmanager
def _head_at(model: Any, at: torch.Tensor) -> Iterator[None]:
    """Inside, the head reads the states at the flat positions `at` [n] alone, as one row [1, n]."""
    head = getattr(model, "module", model).get_output_embeddings()
    if head is None:
        yield
        return

    def pick(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].flatten(0, 1)[at][None], *args[1:])

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
    """What a model expects after each context, contexts of one group on one trunk where the model
    can read them so.

    Args:
        contexts: C token sequences.
        groups: which of them belong to one dialogue, [C]; a group's stand together.
        read: logits [n, V] to what is kept of them, [n, ...].
        tokens_per_batch: see `batches`.

    Returns:
        [C, ...] on the CPU, row i for context i.
    """
    most = Counter(groups).most_common(1)
    few = [
        Instance(0, None, tuple(context), (0,))
        for context, group in zip(contexts, groups, strict=True)
        if group == most[0][0]
    ]
    longest = max(map(len, contexts), default=0)
    arrange, together = reading(packing_is_exact(model, few, longest))
    packs: list[Packed] = []
    for _, members in itertools.groupby(range(len(contexts)), key=groups.__getitem__):
        # A response of one token is only a label, so it can carry the context's number.
        packs += arrange([Instance(i, None, tuple(contexts[i]), (i,)) for i in members])
    rows: dict[int, torch.Tensor] = {}
    for some in batches(packs, tokens_per_batch, range(len(packs))):
        batch = {k: v.to(model.device) for k, v in together(some, pad_id).items()}
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
        # Only SDPA reads a bool mask as one; other attention adds it to the scores.
        zero = torch.zeros(mask.shape, device=mask.device)
        mask = zero.masked_fill_(~mask, torch.finfo(zero.dtype).min)
    return {**inputs, "attention_mask": mask, "position_ids": batch["position_ids"]}


@torch.no_grad()
def packing_is_exact(model: Any, instances: Sequence[Instance], max_length: int) -> bool:
    """Whether a model gives packed `instances` the loss of separate ones. The first four are tried;
    they should be of one dialogue, for alone they are packed as they stand.

    Models with relative positions by index (ALiBi), recurrent layers or flash attention don't; a
    sliding window shorter than `max_length` is ignored by a 4-D mask, so it counts as no.
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
