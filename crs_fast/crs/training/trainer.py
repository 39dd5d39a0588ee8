"""Hugging Face's `Trainer` for packed dialogues. It imports transformers at once, so import this
module only for training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from crs_fast._files import replacing
from crs_fast.crs.data.lines import write_lines
from crs_fast.crs.training.label_loss import LabelLoss
from crs_fast.crs.training.packing import PAD
from crs_fast.crs.training.resume import begin_checkpoint, drop_old, mark_whole
from crs_fast.crs.training.sid_loss import SidLoss

KEPT_CHECKPOINTS = 2


class Clock(TrainerCallback):
    """Measures the time spent training, with the earlier calls of a resumed training, and stops
    training at the time limit.

    Args:
        limit: seconds after which training stops, or None.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.spent = 0.0
        self.tokens = 0  # tokens read by earlier calls
        self.started = time.perf_counter()

    def seconds(self) -> float:
        return self.spent + time.perf_counter() - self.started

    def share(self) -> float:
        """The share of the time limit that is used up; 0 without a limit."""
        return self.seconds() / self.limit if self.limit else 0.0

    def go_on_from(self, state: TrainerState) -> None:
        """Start measuring now, after the earlier calls whose log `state` holds."""
        self.spent = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self.tokens = int(max((entry.get("tokens", 0) for entry in state.log_history), default=0))
        self.started = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.go_on_from(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        out_of_time = self.share() >= 1
        if out_of_time:
            control.should_training_stop = True
        if out_of_time or state.global_step >= state.max_steps:
            control.should_log = True
            control.should_save = args.save_strategy != "no"


def losses_of(state: TrainerState) -> list[dict[str, float]]:
    """The logged entries that hold a loss."""
    return [entry for entry in state.log_history if "loss" in entry]


class LossFile(TrainerCallback):
    """Writes `loss.jsonl`, one line per log entry. The whole file is written each time, so that a
    resumed training leaves no duplicates."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, float]] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.history = losses_of(state)
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(self.path, self.history)


class LossBar(ProgressCallback):
    """Shows the loss in the progress bar, instead of printing a line per log entry."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            minutes = f"{logs['seconds'] / 60:.1f}"
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", minutes=minutes)


class PackedTrainer(Trainer):
    """`Trainer` over prepared batches, so that one sample of its data set is one batch.

    The loss is the mean over all labels of a step. The learning rate rises linearly over `warmup`
    and then falls to zero along a cosine, by the larger of the shares of steps and of time that are
    done. For the parameters in `rows` it is multiplied by `rows_ratio`. `sid_loss`, if given, takes
    the place of the cross-entropy. `disturb` changes a batch in place just before it is read: its
    random draws belong to the step, so that a resumed training repeats them.
    """

    def __init__(
        self,
        *args: Any,
        clock: Clock,
        loss_file: LossFile,
        warmup: float,
        rows: Sequence[torch.nn.Parameter] = (),
        rows_ratio: float = 1.0,
        sid_loss: SidLoss | None = None,
        disturb: Callable[[dict[str, torch.Tensor]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.clock, self.loss_file, self.warmup = clock, loss_file, warmup
        self.label_loss, self.disturb = LabelLoss(sid_loss), disturb
        self.rows, self.rows_ratio = {id(row) for row in rows}, rows_ratio
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels of a step
        self._loss_shifts_labels = False  # they are shifted already: the first one counts too
        self.tokens_read: torch.Tensor | int = 0
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.add_callback(LossBar())
        self.add_callback(clock)
        self.add_callback(loss_file)

    def train_from(self, checkpoint: str | None) -> None:
        """Train what is left after a checkpoint, or from the start if it is None. If the checkpoint
        is of the last step, nothing is trained, whereas `Trainer.train` would take one more
        step."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            self.clock.go_on_from(state)
            if state.global_step >= self.last_step() or self.clock.share() >= 1:
                self._load_from_checkpoint(checkpoint)
                self.state = state
                self.loss_file.history = losses_of(state)
                return
        self.train(resume_from_checkpoint=checkpoint)
        self._give_back()

    def _give_back(self) -> None:
        """Remove Accelerate's wrapper from the model's forward pass. With its autocast left on, a
        float32 model would answer in bfloat16. Accelerate's own function for this would also remove
        transformers' decorators."""
        model: Any = self.model
        original = vars(model).pop("_original_forward", None)
        if original is not None:
            model.forward = original

    def last_step(self) -> int:
        """How many steps the whole run has."""
        batches = len(self.get_train_dataloader())
        an_epoch = math.ceil(batches / self.args.gradient_accumulation_steps)
        return math.ceil(self.args.num_train_epochs * an_epoch)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.disturb is not None:
            self.disturb(inputs)
        branch = inputs.get("branch")
        read = branch != PAD if branch is not None else inputs["attention_mask"] > 0
        self.tokens_read += read.sum()
        total, count = self.label_loss(model, inputs)
        if num_items_in_batch is None:
            return total / count
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total / num_items_in_batch * processes

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.rows_ratio != 1:
            self._part_rows(optimizer)
        return optimizer

    def _part_rows(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the rows into parameter groups of their own."""
        for group in list(optimizer.param_groups):
            rows = [p for p in group["params"] if id(p) in self.rows]
            if rows:
                group["params"] = [p for p in group["params"] if id(p) not in self.rows]
                rate = group["lr"] * self.rows_ratio
                optimizer.add_param_group({**group, "params": rows, "lr": rate})

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        def factor(step: int) -> float:
            done = min(max((step + 0.5) / num_training_steps, self.clock.share()), 1.0)
            if done < self.warmup:
                return done / self.warmup
            return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, mark it when all processes have written their parts, and only then
        delete old ones. (`save_total_limit` would delete them before the mark.)"""
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoint = Path(self._get_output_dir(trial=trial)) / name
        if self.is_world_process_zero():
            begin_checkpoint(checkpoint)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark_whole(checkpoint)
            drop_old(checkpoint, KEPT_CHECKPOINTS)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["seconds"] = round(self.clock.seconds(), 3)
            logs["tokens"] = self.clock.tokens + self.tokens_of_all()
        super().log(logs, *args, **kwargs)

    def tokens_of_all(self) -> int:
        """The tokens that all processes read in this call. Every process must call this."""
        own = torch.as_tensor(self.tokens_read, device=self.args.device)
        return int(self.accelerator.reduce(own))


def save_loss_curve(history: list[dict[str, float]], path: Path) -> None:
    """Plot the training loss over the steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([entry["step"] for entry in history], [entry["loss"] for entry in history])
    axes.set(xlabel="step", ylabel="training loss (nats per token)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
