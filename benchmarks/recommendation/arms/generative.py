"""Methods in which the language model writes the item, as a semantic ID or as its title."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.recommendation.arms.align import alignment_instances
from benchmarks.recommendation.arms.setting import Fitted, Setting
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import ControlTokens, new_tokens
from crs_fast.crs.data.dialogue import Dialogue, Item
from crs_fast.crs.evaluation.predict import predict, predict_in_words
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.evaluation.reply_perplexity import note_gold_nll
from crs_fast.crs.sequence import GCRS, Instance, Layout, SequenceBuilder
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.embedding_init import init_sid_rows
from crs_fast.crs.training.pipeline import Catalogue
from crs_fast.crs.training.titles import with_titles
from crs_fast.crs.training.train import train_instances
from crs_fast.trie import SidTrie, SidVocab

_OF_SIDS = (
    "informed_rows",
    "code_noise",
    "sid_weight",
    "sid_smoothing",
    "align",
    "signals",
    "shape",
    "joint",
)


@dataclass(frozen=True, slots=True)
class GenerativeArm:
    """A language model tuned on sequences of one layout.

    Args:
        layout: the parts of a response.
        titles: write items as their titles under the same trie constraint, not as SIDs.
        all_rows: tune the old tokens' embedding rows too (a backbone from scratch always does).
        informed_rows: whether the embedding row of a SID token starts from the embeddings of the
            items below it; otherwise it starts at random.
        code_noise, sid_weight, sid_smoothing: see `TrainConfig`.
        align: also train on item text -> SID and SID -> title.
        signals: what SIDs are made of (see `make_catalogue`).
        shape: levels and codes of the SIDs; None takes the experiment's.
        joint: spend half the budget on another data set's dialogues first. SIDs are then of both
            catalogues, but only the data set's own items can be recommended.
        instances: makes the training instances of a dialogue.
        fine_modes: further mode tokens, for turns with an intent (see `ControlTokens`).
        embedding_lr_ratio: see `TrainConfig`.

    Raises:
        ValueError: a setting about SIDs is given together with titles.
    """

    name: str
    about: str
    layout: Layout = GCRS
    titles: bool = False
    all_rows: bool = False
    informed_rows: bool = True
    code_noise: float = 0.0
    sid_weight: float = 1.0
    sid_smoothing: float = 0.0
    align: bool = False
    signals: tuple[str, ...] = ("text",)
    shape: tuple[int, int] | None = None
    joint: bool = False
    instances: Callable[[SequenceBuilder, Dialogue], list[Instance]] = SequenceBuilder.instances
    fine_modes: tuple[str, ...] = ()
    embedding_lr_ratio: float = 1.0
    trains = True

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if self.titles and setting.name in _OF_SIDS and value != setting.default:
                raise ValueError(
                    f"{self.name}: {setting.name} must be {setting.default!r} with titles, which "
                    f"have no SIDs (got {value!r})"
                )

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        config = replace(
            config,
            embeddings="all" if self.all_rows or not setting.pretrained else "new",
            code_noise=self.code_noise,
            sid_weight=self.sid_weight,
            sid_smoothing=self.sid_smoothing,
            embedding_lr_ratio=self.embedding_lr_ratio,
        )
        bundle, stages = self._stages(setting, config)
        spent: dict[str, float] = dict.fromkeys(("tokens", "seconds"), 0)
        for number, dialogues in enumerate(stages):
            groups = [self.instances(bundle.builder, d) for d in dialogues]
            if self.align:
                trained_items = [i for i in bundle.items if i.item_id not in setting.held]
                groups += alignment_instances(bundle.builder, trained_items)
            result = train_instances(
                bundle.model,
                [group for group in groups if group],
                new_rows=new_tokens(bundle.vocab, bundle.control),
                pad_id=bundle.builder.eos,
                output_dir=folder / f"before{number}" if number + 1 < len(stages) else folder,
                config=replace(config, max_tokens=(config.max_tokens or 0) // len(stages) or None),
                codes=bundle.vocab.token_ids,
                sids=[bundle.builder.item(item.item_id)[:-1] for item in bundle.items],
                resume=True,
                progress=setting.progress,
            )
            bundle = replace(bundle, model=result.model)
            spent = {name: spent[name] + result.losses[-1][name] for name in spent}
        result.losses[-1] |= spent
        setting.for_answers(bundle.model)

        def answer(dialogues: Sequence[Dialogue], replies: bool) -> dict[str, list[Prediction]]:
            common: dict[str, Any] = dict(
                num_beams=setting.num_beams,
                max_new_tokens=setting.max_new_tokens,
                progress=setting.progress,
            )
            replies = replies and self.layout.words and not self.titles
            whole = replies and self.layout.item
            out = {"": predict(bundle, dialogues, replies=whole, free_rankings=whole, **common)}
            if self.layout.words and not self.layout.item:
                out["own words"] = predict_in_words(bundle, dialogues, **common)
            if replies:
                written = out.get("own words", out[""])
                note_gold_nll(bundle, dialogues, written, progress=setting.progress)
            return out

        return Fitted(answer, result, bundle)

    def _stages(
        self, setting: Setting, config: TrainConfig
    ) -> tuple[Bundle, list[Sequence[Dialogue]]]:
        """The bundle before training, and the dialogues of each training stage, in order."""
        own: Sequence[Dialogue] = setting.dataset.splits["train"]
        if self.titles:
            bundle = with_titles(
                setting.backbone(config.seed),
                setting.dataset.items,
                max_length=config.max_length,
                layout=self.layout,
                seed=config.seed,
            )
            return bundle, [own]
        data, stages = setting.dataset, [own]
        if not self.joint:
            catalogue = setting.catalogue(self.signals, self.shape)
        elif setting.joint is None:
            raise ValueError(f"{self.name}: the experiment must have data to train on first")
        else:
            data, catalogue = setting.joint(self.signals, self.shape)
            stages = [data.splits["first"], own]
        bundle = extended(
            setting, config, catalogue, self.layout, self.informed_rows, data.items, self.fine_modes
        )
        return bundle, stages


def extended(
    setting: Setting,
    config: TrainConfig,
    catalogue: Catalogue,
    layout: Layout,
    informed_rows: bool = True,
    items: Sequence[Item] = (),
    fine_modes: Sequence[str] = (),
) -> Bundle:
    """The backbone with tokens for SIDs and modes, not yet trained.

    Args:
        items: the items of the catalogue's rows, those of the data set first; by default only
            those of the data set. Only the data set's items can be recommended.
        fine_modes: see `ControlTokens`.
    """
    model, tokenizer = setting.backbone(config.seed)
    own, items = setting.dataset.items, items or setting.dataset.items
    levels, codes = catalogue.sids.shape[1], int(catalogue.quantizer.codebooks.shape[1])
    vocab = SidVocab.extend(tokenizer, model, levels, codes, special=True)
    control = ControlTokens.extend(tokenizer, model, fine_modes)
    trie = SidTrie.from_sids(catalogue.sids[: len(own)], [item.item_id for item in own])
    sids = {item.item_id: row for item, row in zip(items, catalogue.sids.tolist(), strict=True)}
    # The row of a code that has no item below it starts as the old rows' mean plus noise.
    used = torch.tensor([informed_rows and item.item_id not in setting.held for item in items])
    embeddings, used_sids = catalogue.embeddings[used], catalogue.sids[used]
    init_sid_rows(model, vocab, control, embeddings, used_sids, seed=config.seed)
    builder = SequenceBuilder(tokenizer, vocab, control, sids, config.max_length, layout)
    return Bundle(model, tokenizer, trie, vocab, control, own, builder, None)
