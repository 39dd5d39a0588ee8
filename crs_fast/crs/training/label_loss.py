"""The training loss of a batch's labels, without the logits of all labels at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from crs_fast.crs.training.packing import (
    LabelStates,
    label_logits,
    label_places,
    label_states,
    next_token_loss,
)
from crs_fast.crs.training.sid_loss import SidLoss
from crs_fast.decode.lm.head import LOGITS_AT_ONCE, LmHead
from crs_fast.decode.lm.stand_in import acts_outside

logger = logging.getLogger(__name__)


class LabelLoss:
    """The summed loss of a batch's labels, and their number.

        for some labels at a time:  logits = head(states of these labels)
                                    loss += sum of their losses; gradients += theirs

    Logits, of which a label has one per token of the vocabulary, take more memory than anything
    else in the training of a small model. Here the gradients of the head and of its input are
    computed in the forward pass, while some labels' logits are there. So no product is computed
    twice, and the gradients of the head's weights are added up in float32.

    A model gets this if it is one of transformers, of PEFT, or one of these within
    DistributedDataParallel, and if its logits are what `LmHead` makes of its head's; the first
    batch with labels shows this. The logits of all others are computed at once.

    Args:
        sid_loss: if given, takes the place of the cross-entropy; it must have seen the batches.

    Source: Hsu et al. 2024, "Liger Kernel" (arXiv 2410.10989), FusedLinearCrossEntropy.
    """

    def __init__(self, sid_loss: SidLoss | None = None) -> None:
        self.sid_loss = sid_loss
        self._is_known: bool | None = None  # whether `LmHead` makes the model's logits

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        most = LOGITS_AT_ONCE.now
        # A batch without labels decides nothing. Its loss is 0, by a graph of empty logits:
        # distributed training waits for a gradient of each parameter.
        has_labels = len(label_places(batch)) > 0
        inner = self._inner(model, batch) if most is not None and has_labels else None
        states = None
        if inner is not None:
            order = None if self.sid_loss is None else batch["code_first"]
            states = label_states(model, batch, order)
        if most is None or states is None:
            return self._of_all_logits(model, batch)
        head = _Head(inner, states)

        def summed(part: torch.Tensor, first: int) -> torch.Tensor:
            labels = states.labels[first : first + len(part)]
            logits = head(part).float()
            losses = F.cross_entropy(logits, labels, reduction="none")
            if self.sid_loss is not None:
                siblings = batch["siblings"][first : first + len(part)]
                losses = self.sid_loss.of_first(logits, labels, losses, siblings)
            return losses.sum()

        at_once = max(1, most // states.first_logits.shape[-1])
        with head.autocast:
            if len(states.labels) <= at_once:
                return summed(states.hidden, 0), len(states.labels)
            total = _SumOverParts.apply(states.hidden, summed, at_once, *head.trained(states))
        return total, len(states.labels)

    def _inner(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
        """The model whose head is to be called for some labels at a time, or None."""
        if self._is_known is None:
            reason = _why_all_logits(model, batch)
            self._is_known = reason is None
            what = "some labels' logits at a time"
            if reason is not None:
                what = f"all labels' logits at once, as {reason}"
            logger.info(f"train: the loss takes {what}")
        return _whole(model) if self._is_known else None

    def _of_all_logits(
        self, model: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, int]:
        if self.sid_loss is None:
            return next_token_loss(model, batch)
        losses = self.sid_loss(*label_logits(model, batch), batch)
        return losses.sum(), losses.numel()


def _whole(model: Any) -> Any:
    """The model of transformers or PEFT that is to be trained; None where its weights may not be
    in place outside of its forward pass (FSDP, DeepSpeed), or where it is another module."""
    from transformers import PreTrainedModel

    inner = model.module if isinstance(model, DistributedDataParallel) else model
    # Asked of the class: wrappers pass on what their models have.
    base = inner.get_base_model() if hasattr(type(inner), "get_base_model") else inner
    sharded = any(hasattr(weight, "device_mesh") for weight in base.parameters())
    is_whole = isinstance(base, PreTrainedModel) and acts_outside(inner) is None and not sharded
    return base if is_whole else None


def _why_all_logits(model: Any, batch: dict[str, torch.Tensor]) -> str | None:
    """Why the model's logits are to be computed at once; None if they are the head's after
    `LmHead.scaled`, by those of the batch's first label.

    Waits for the device, and leaves the random state as it was. Gradients are not turned off:
    layers would be compiled once more.
    """
    inner = _whole(model)
    if inner is None:
        return f"{type(model).__name__} is no whole model of transformers or PEFT"
    devices = [batch["labels"].device] if batch["labels"].is_cuda else []
    with torch.random.fork_rng(devices):
        # DistributedDataParallel would wait for a backward pass.
        states = label_states(getattr(model, "module", model), batch)
        if states is None:
            return "the model does not call its head"
        head = _Head(inner, states)
        with torch.no_grad(), head.autocast:
            own = head(states.hidden[:1])[0].float()
    is_exact = states.hidden.dtype == torch.float32 and states.autocast is None
    tolerance = 1e-4 if is_exact else 2e-2
    if torch.allclose(own, states.first_logits.float(), tolerance, tolerance):
        return None
    return "the model's logits are not its head's"


class _Head:
    """A model's head in the model's own training mode, with what the model does after it."""

    def __init__(self, model: Any, states: LabelStates) -> None:
        self._module = model.get_output_embeddings()
        self._scaled = LmHead(model).scaled
        device = states.hidden.device.type
        self.autocast: AbstractContextManager[Any] = torch.autocast(
            device, states.autocast, enabled=states.autocast is not None
        )

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, H] -> logits [n, V]."""
        return self._scaled(self._module(hidden[None])[0])

    def trained(self, states: LabelStates) -> list[torch.Tensor]:
        """The parameters that the logits depend on and that take gradients; those of PEFT's
        adapters may belong to another module."""
        if not torch.is_grad_enabled():
            return []
        waiting = [self(states.hidden[:1].detach()).grad_fn]
        seen, parameters = set(waiting), []
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            if hasattr(node, "variable"):
                parameters.append(node.variable)
            following = {before for before, _ in node.next_functions} - seen
            seen |= following
            waiting += following
        return parameters


class _SumOverParts(torch.autograd.Function):
    """summed(hidden[0:k], 0) + summed(hidden[k:2k], k) + …, of which one part's graph exists at a
    time: each part's gradients are taken at once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        summed: Callable[[torch.Tensor, int], torch.Tensor],
        at_once: int,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        takes_gradient = ctx.needs_input_grad[0]
        of_hidden = torch.empty_like(hidden) if takes_gradient else None
        of_parameters = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        total = hidden.new_zeros((), dtype=torch.float32)
        for first in range(0, len(hidden), at_once):
            part = hidden[first : first + at_once].detach()
            with torch.enable_grad():
                loss = summed(part.requires_grad_(takes_gradient), first)
            total += loss.detach()
            sources = [*([part] if takes_gradient else []), *parameters]
            with _hooks_off(parameters):
                gradients = list(torch.autograd.grad(loss, sources)) if sources else []
            if of_hidden is not None:
                of_hidden[first : first + at_once] = gradients.pop(0)
            for added, gradient in zip(of_parameters, gradients, strict=True):
                added += gradient
        ctx.save_for_backward(of_hidden, *of_parameters)
        ctx.dtypes = [p.dtype for p in parameters]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, *of_parameters = ctx.saved_tensors
        # In place: a second backward pass is refused, as that of any graph that was freed.
        of_hidden = None if of_hidden is None else of_hidden.mul_(gradient)
        scaled = [g.mul_(gradient).to(d) for g, d in zip(of_parameters, ctx.dtypes, strict=True)]
        return of_hidden, None, None, *scaled


@contextmanager
def _hooks_off(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside this context, the parameters' gradient hooks do not run. They run in the outer
    backward pass, which hands them the gradient of all parts."""
    # Emptied in place: a handle removes its hook from the very dict that the hook was added to.
    dicts = [p._backward_hooks for p in parameters if p._backward_hooks]
    copies = [dict(hooks) for hooks in dicts]
    for hooks in dicts:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, copy in zip(dicts, copies, strict=True):
            hooks.update(copy)
