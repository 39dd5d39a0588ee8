"""The settings of a training run, which are checked before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from crs_fast._arguments import Rule, at_least, check_settings, finite

_RULES = (
    Rule(
        "epochs learning_rate embedding_lr_ratio sid_weight",
        float,
        "above 0 and finite",
        finite(lambda v: v > 0),
    ),
    Rule("max_minutes", float, "above 0", lambda v: v > 0, optional=True),
    Rule("max_tokens", float, "at least 1 and finite", finite(lambda v: v >= 1), optional=True),
    Rule("tokens_per_batch lora_alpha", float, "at least 1 and finite", finite(lambda v: v >= 1)),
    Rule("lora_rank", int, *at_least(1), optional=True),
    Rule("accumulate max_length logging_steps", int, *at_least(1)),
    Rule("save_steps", int, *at_least(0)),
    Rule("seed", int, "in [0, 2 ** 32)", lambda v: 0 <= v < 1 << 32),
    Rule("weight_decay", float, "at least 0 and finite", finite(lambda v: v >= 0)),
    Rule("max_grad_norm", float, "at least 0", lambda v: v >= 0),
    Rule("warmup_ratio code_noise", float, "in [0, 1]", lambda v: 0 <= v <= 1),
    Rule(
        "adam_beta2 lora_dropout context_dropout sid_smoothing",
        float,
        "in [0, 1)",
        lambda v: 0 <= v < 1,
    ),
    Rule("embeddings", str, "'all' or 'new'", ("all", "new").__contains__),
    Rule("qlora every_mention packed gradient_checkpointing compile_layers", bool),
    Rule("bf16", bool, optional=True),
)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The settings of a training run.

    Args:
        epochs: passes over the dialogues.
        max_tokens: train on about so many tokens (without padding) instead of `epochs`, to give
            the same budget to models that read dialogues in different ways.
        max_minutes: stop cleanly after so many minutes, or None; with one process only. The
            learning rate follows the larger of the share of steps and the share of time, so it
            reaches zero either way.
        learning_rate: the peak, after a linear warm-up over `warmup_ratio`; then a cosine to zero.
        embedding_lr_ratio: learning rate of the trained embedding rows (and those of an untied
            head) divided by that of all other weights. Choose it above 1 if a pretrained model has
            to learn new rows in a few hundred steps.
        tokens_per_batch: the most tokens of a batch, with padding (but at least one sequence).
        accumulate: batches per step.
        lora_rank: rank of the adapters on all linear layers. Old embedding rows are then frozen,
            and only the new tokens' rows train. None tunes every weight.
        qlora: train the adapter on a backbone in 4 bits (`load_backbone(..., four_bit=True)`),
            which is unpacked to bfloat16 when the adapter is merged.
        embeddings: "all" tunes every row; "new" freezes the rows of old tokens (LoRA always does)
            and needs a `weight_decay` of 0.
        code_noise: share of the code tokens in a response's input that each batch replaces by
            another code of the same level; the labels stay.
        sid_weight: factor of the loss on the codes of items.
        sid_smoothing: label smoothing of these codes: the share of a label's probability that all
            codes below the same prefix of the catalogue have in common (see `sid_loss`).
        bf16: autocast to bfloat16; None means yes on a GPU that supports it, and no on the CPU.
        context_dropout: share of the context's tokens that each batch replaces by padding. It helps
            a small model from scratch with wordings that it was not trained on.
        every_mention: also train on every item that either role names in the text of a dialogue
            (see `mentions`). `train` and `train_recommender` read this setting.
        packed: put all instances of a dialogue into one sequence (see `packing`). A model whose
            loss changes by this is trained on separate instances, with a warning.
        compile_layers: run the decoder layers under `torch.compile`. The losses are the same up to
            rounding and dropout, and training is faster after a minute or so of compiling.
        save_steps: steps between checkpoints (`<output_dir>/training/checkpoint-*`, of which the
            newest two are kept); 0 saves none.

    Raises:
        ValueError: a setting is of another kind or out of range, or two exclude each other.
    """

    epochs: float = 3
    max_tokens: int | None = None
    max_minutes: float | None = None
    learning_rate: float = 2e-4
    embedding_lr_ratio: float = 1.0
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    tokens_per_batch: int = 8192
    accumulate: int = 1
    max_length: int = 768
    lora_rank: int | None = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    qlora: bool = False
    embeddings: str = "all"
    code_noise: float = 0.0
    sid_weight: float = 1.0
    sid_smoothing: float = 0.0
    seed: int = 0
    bf16: bool | None = None
    context_dropout: float = 0.0
    every_mention: bool = False
    packed: bool = True
    gradient_checkpointing: bool = False
    compile_layers: bool = False
    logging_steps: int = 10
    save_steps: int = 0

    def __post_init__(self) -> None:
        check_settings(self, _RULES)
        if self.embeddings == "new" and self.weight_decay and not self.lora_rank:
            raise ValueError(
                "TrainConfig: weight_decay must be 0 with embeddings='new', since it would move "
                f"the other rows (got {self.weight_decay})"
            )
        if self.qlora and not self.lora_rank:
            raise ValueError(
                f"TrainConfig: lora_rank must be at least 1 with qlora (got {self.lora_rank})"
            )
