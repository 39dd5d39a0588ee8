"""Training with Hugging Face's `Trainer` on packed dialogues: of a LoRA adapter or of all
weights."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.crs.backbones import in_four_bits, merge_lora
from crs_fast.crs.control_tokens import ControlTokens, new_tokens
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, need_splits
from crs_fast.crs.sequence import Instance, SequenceBuilder, trie_sids
from crs_fast.crs.training.compiled import compiled, decoder_layers
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.embedding_init import freeze_old_rows, trained_rows
from crs_fast.crs.training.lora import add_lora
from crs_fast.crs.training.mentions import with_mentions
from crs_fast.crs.training.packing import (
    CodeSwap,
    Collate,
    Packed,
    batches,
    drop_context,
    note_labels,
    packing_is_exact,
    reading,
)
from crs_fast.crs.training.processes import several_processes
from crs_fast.crs.training.resume import newest_checkpoint, note_weights
from crs_fast.crs.training.sid_loss import SidLoss
from crs_fast.trie import SidTrie, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from crs_fast.crs.backbones import Backbone
    from crs_fast.crs.training.trainer import PackedTrainer

logger = logging.getLogger(__name__)

FEW_STEPS = 50
WORKERS = 2  # processes that make batches for a GPU


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a training run.

    losses: one dict per log entry, with step, loss, learning_rate, seconds and tokens; the last two
        count from the start of the run, over earlier calls too
    tokens: the tokens that the model read in this call, without padding
    seconds: the duration of this call's steps
    """

    model: PreTrainedModel
    losses: list[dict[str, float]] = field(repr=False)
    steps: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


def train(
    backbone: Backbone,
    dialogues: CrsDataset | Sequence[Dialogue],
    trie: SidTrie,
    vocab: Vocabulary,
    control: ControlTokens,
    *,
    output_dir: str | Path,
    config: TrainConfig | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Teach a language model to choose a mode, an item and the words (GCRS, section 3.3).

    Args:
        backbone: model and tokenizer, extended by `SidVocab.extend(..., special=True)` and
            `ControlTokens.extend`. `init_sid_rows` starts the new rows from the items' embeddings.
            The model is trained in place; a LoRA adapter is merged into it at the end.
        dialogues: a data set (its "train" split is used) or dialogues.
        trie: a `SidTrie` with the SID of every item that the dialogues name.
        vocab, control: the new tokens.
        output_dir: `training/` is written here, with checkpoints, `loss.jsonl` and `loss.png`.
            `save_bundle` saves the model itself.
        resume: go on from the newest checkpoint in `output_dir`, if there is one; the parameters
            become those of an uninterrupted run.

    Raises:
        ValueError: there is no instance to train on, `config.qlora` is set and the backbone is not
            in 4 bits, the backbone is in 4 bits without LoRA, or the checkpoint is of another kind
            of training.
        ImportError: accelerate, peft (for LoRA) or matplotlib is missing.
    """
    config = config or TrainConfig()
    model, tokenizer = backbone
    if config.qlora and not in_four_bits(model):
        raise ValueError("train: the backbone must be in 4 bits with qlora (got plain weights)")
    sids = trie_sids(trie, vocab)
    builder = SequenceBuilder(tokenizer, vocab, control, sids, config.max_length)
    return train_instances(
        model,
        _instances(builder, dialogues, config.every_mention),
        new_rows=new_tokens(vocab, control),
        pad_id=builder.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        output_dir=output_dir,
        config=config,
        codes=[ids[ids >= 0] for ids in vocab.token_ids],
        sids=[builder.item(item_id)[:-1] for item_id in sids],
        resume=resume,
        progress=progress,
    )


def train_instances(
    model: Any,
    groups: Sequence[Sequence[Instance]],
    *,
    new_rows: list[int],
    pad_id: int,
    output_dir: str | Path,
    config: TrainConfig,
    codes: Sequence[torch.Tensor] = (),
    sids: Iterable[Sequence[int]] = (),
    whole: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Like `train`, but on given instances, and for any model that `token_losses` takes.

    Args:
        model: it is trained in place.
        groups: the instances of each dialogue.
        new_rows: token ids whose embedding rows are new.
        pad_id: the id of a token for padding.
        codes: for `config.code_noise`, the tokens of each level's codes.
        sids: needed for `config.sid_weight` and `config.sid_smoothing`, see `SidLoss`.
        whole: names of modules that train all their weights even with LoRA.

    Raises:
        ValueError: the checkpoint holds other weights than `config` trains, a time limit is given
            with several processes (each has its own clock), there are no layers to compile, or
            `config` changes the loss on SIDs and `sids` is empty.
    """
    require("train", ["accelerate", "matplotlib", *(["peft"] if config.lora_rank else [])])
    if in_four_bits(model) and not config.lora_rank:
        raise ValueError("train: lora_rank must be set for a model in 4 bits (got None)")
    if config.max_minutes and several_processes():
        raise ValueError(
            f"train: max_minutes must be None with several processes (got {config.max_minutes})"
        )
    sids = list(sids)
    changes_sid_loss = config.sid_weight != 1 or config.sid_smoothing > 0
    if changes_sid_loss and not sids:
        raise ValueError("train: sids must be given with sid_weight or sid_smoothing (got none)")
    from transformers import set_seed

    from crs_fast.crs.training.trainer import save_loss_curve

    folder = Path(output_dir) / "training"
    checkpoint = newest_checkpoint(folder, config) if resume else None
    set_seed(config.seed)
    layers = decoder_layers(model) if config.compile_layers else []
    packed = config.packed and packing_is_exact(model, max(groups, key=len), config.max_length)
    if config.packed and not packed:
        logger.warning("train: this model can't read packed dialogues; instances stay separate")
    arrange, together = reading(packed)
    packs = [p for group in groups for p in arrange(group, config.tokens_per_batch)]
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained, frozen = model, None
    if config.lora_rank:
        trained = add_lora(
            model, new_rows, config.lora_rank, config.lora_alpha, config.lora_dropout, whole
        )
    elif config.embeddings == "new":
        frozen = freeze_old_rows(model, new_rows)
    disturb = _disturbance(config, pad_id, codes)
    sid_loss = None
    if changes_sid_loss:
        sid_loss = SidLoss(sids, config.sid_weight, config.sid_smoothing)
    trainer = _trainer(
        trained, packs, together, pad_id, disturb, sid_loss, folder, config, progress
    )
    if trainer.is_world_process_zero():
        note_weights(folder, config)
        _say_if_short(trainer)
    start = time.perf_counter()
    with compiled(layers):
        trainer.train_from(checkpoint)
    seconds = time.perf_counter() - start
    if trainer.is_world_process_zero():
        save_loss_curve(trainer.loss_file.history, folder / "loss.png")
    model = merge_lora(trained)
    for hook in frozen or ():
        hook.remove()
    return TrainResult(
        model.eval(),
        trainer.loss_file.history,
        trainer.state.global_step,
        trainer.tokens_of_all(),
        seconds,
    )


def _say_if_short(trainer: PackedTrainer) -> None:
    """A model that has seen next to nothing answers at random; better said before than after."""
    steps = trainer.last_step()
    if steps < FEW_STEPS:
        logger.warning(
            f"train: this run takes {steps} step{'s' if steps > 1 else ''}, and in fewer than "
            f"{FEW_STEPS} a model learns little; more epochs, a smaller tokens_per_batch "
            "(--tokens-per-batch) or more dialogues make it longer"
        )


def _disturbance(
    config: TrainConfig, pad_id: int, codes: Sequence[torch.Tensor]
) -> Callable[[dict[str, torch.Tensor]], None]:
    swap_codes = CodeSwap(config.code_noise, codes)

    def disturb(batch: dict[str, torch.Tensor]) -> None:
        if config.context_dropout:
            drop_context(batch, config.context_dropout, pad_id)
        if config.code_noise:
            swap_codes(batch)

    return disturb


def _instances(
    builder: SequenceBuilder, dialogues: CrsDataset | Sequence[Dialogue], every_mention: bool
) -> list[list[Instance]]:
    if isinstance(dialogues, CrsDataset):
        need_splits(dialogues, "train", ["train"])
        dialogues = dialogues.splits["train"]
    instances = with_mentions if every_mention else SequenceBuilder.instances
    groups = [group for dialogue in dialogues if (group := instances(builder, dialogue))]
    if not groups:
        raise ValueError("train: dialogues must hold a recommender turn (got none)")
    return groups


def require(caller: str, packages: Sequence[str]) -> None:
    """Check that packages are installed.

    Raises:
        ImportError: a package is missing; the message says how to install it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{caller}: needs {', '.join(missing)}; install with `pip install {' '.join(missing)}`"
        )


@dataclass(frozen=True, slots=True)
class Preparation:
    """Makes a batch of its sequences, with everything that can be computed on the CPU ahead of the
    step. It draws nothing at random, and a process of its own may run it."""

    together: Collate
    pad_id: int
    sid_loss: SidLoss | None

    def __call__(self, samples: list[list[Packed]]) -> dict[str, torch.Tensor]:
        batch = self.together(samples[0], self.pad_id)
        note_labels(batch)
        if self.sid_loss is not None:
            self.sid_loss.note(batch)
        return batch


def _trainer(
    model: Any,
    packs: list[Packed],
    together: Collate,
    pad_id: int,
    disturb: Callable[[dict[str, torch.Tensor]], None],
    sid_loss: SidLoss | None,
    folder: Path,
    config: TrainConfig,
    progress: bool,
) -> PackedTrainer:
    from crs_fast.crs.training.trainer import Clock, LossFile, PackedTrainer

    order = list(range(len(packs)))
    random.Random(config.seed).shuffle(order)
    if config.max_tokens:
        config = replace(config, epochs=config.max_tokens / sum(map(len, packs)))

    return PackedTrainer(
        model=model,
        args=_arguments(folder, config, progress),
        train_dataset=batches(packs, config.tokens_per_batch, order),
        data_collator=Preparation(together, pad_id, sid_loss),
        disturb=disturb,
        clock=Clock(config.max_minutes * 60 if config.max_minutes else None),
        loss_file=LossFile(folder / "loss.jsonl"),
        warmup=config.warmup_ratio,
        rows=trained_rows(model),
        rows_ratio=config.embedding_lr_ratio,
        sid_loss=sid_loss,
    )


def _arguments(folder: Path, config: TrainConfig, progress: bool) -> TrainingArguments:
    from transformers import TrainingArguments

    cuda, bf16 = torch.cuda.is_available(), config.bf16
    if bf16 is None:
        bf16 = cuda and torch.cuda.is_bf16_supported()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=bf16,
        use_cpu=not cuda,
        # On a GPU the host must run ahead of the device: batches are made in processes of their
        # own, their copies are not waited for, and no loss is looked at before it is logged.
        dataloader_num_workers=WORKERS if cuda else 0,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
        logging_nan_inf_filter=False,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=not progress,
        remove_unused_columns=False,
        report_to="none",
    )
