"""Retrieval: the backbone's last state is compared with item vectors, as in modular systems.

It reads the same contexts as the generative methods and differs only in its head: scaled cosines to
all items of the catalogue, with a popularity bias, trained by a softmax over all of them, which is
stronger than negatives from the batch. The vector of an item is a projection of its embedding plus
a trained row. The rows are 256 parameters per item, with a small backbone most of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.recommendation.arms.generative import extended
from benchmarks.recommendation.arms.setting import Fitted, Setting
from crs_fast.crs.control_tokens import new_tokens
from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.evaluation.predict import contexts_of
from crs_fast.crs.evaluation.predictions import Prediction, blank_predictions
from crs_fast.crs.sequence import Instance, Layout, SequenceBuilder
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.packing import read_after
from crs_fast.crs.training.train import train_instances

WIDTH = 256
SCALE = 20.0  # factor of the cosines at the start of training


class ItemHead(torch.nn.Module):
    """Maps states [..., H] to logits [..., N] over items: scaled cosines plus a popularity bias.

    Args:
        hidden: H.
        item_embeddings: float [N, D].
    """

    def __init__(self, hidden: int, item_embeddings: torch.Tensor) -> None:
        super().__init__()
        items = item_embeddings.float()
        self.known: torch.Tensor
        self.register_buffer("known", (items - items.mean(0)) / items.std().clamp(min=1e-12))
        self.query = torch.nn.Linear(hidden, WIDTH, bias=False)
        self.item = torch.nn.Linear(items.shape[1], WIDTH, bias=False)
        self.rows = torch.nn.Parameter(torch.zeros(len(items), WIDTH))
        self.popularity = torch.nn.Parameter(torch.zeros(len(items)))
        self.scale = torch.nn.Parameter(torch.tensor(math.log(SCALE)))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        query = F.normalize(self.query(states.float()), dim=-1)  # [..., W]
        item = F.normalize(self.item(self.known) + self.rows, dim=-1)  # [N, W]
        return query @ item.T * self.scale.exp() + self.popularity


class RetrievalHead(torch.nn.Module):
    """A language model whose "vocabulary" is the catalogue: logits [B, S, N] over items.

    Args:
        model: a causal language model; its own head is not used.
        item_embeddings: float [N, D].
        held: rows of held-out items. Training gives them no probability, so that they do not count
            as wrong answers.
    """

    def __init__(self, model: Any, item_embeddings: torch.Tensor, held: Sequence[int] = ()) -> None:
        super().__init__()
        self.held: torch.Tensor
        self.register_buffer("held", torch.tensor(held, dtype=torch.int64))
        self.backbone = model.base_model
        self._model = (model,)  # a tuple keeps its head from becoming a submodule of this module
        hidden = model.get_input_embeddings().weight.shape[1]
        self.head = ItemHead(hidden, item_embeddings)

    @property
    def config(self) -> Any:
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        self.backbone.gradient_checkpointing_enable(options)

    def dequantize(self) -> RetrievalHead:
        """Unpack a backbone that is stored in 4 bits, in place."""
        self._model[0].dequantize()
        return self

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        states = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
        ).last_hidden_state
        logits = self.head(states)
        if self.training:
            logits = logits.index_fill(-1, self.held, -torch.inf)
        return CausalLMOutput(logits=logits)


@dataclass(frozen=True, slots=True)
class RetrievalArm:
    """See the module. It chooses no mode and writes no reply.

    Args:
        signals: what item vectors are made of (see `make_catalogue`).
        instances: makes the training instances of a dialogue.
        embedding_lr_ratio: see `TrainConfig`.
    """

    name: str = "retrieval"
    about: str = "backbone's last state against item vectors, softmax over the catalogue"
    signals: tuple[str, ...] = ("text",)
    instances: Callable[[SequenceBuilder, Dialogue], list[Instance]] = SequenceBuilder.instances
    embedding_lr_ratio: float = 1.0
    trains = True

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        config = replace(config, embedding_lr_ratio=self.embedding_lr_ratio)
        catalogue = setting.catalogue(self.signals, None)
        bundle = extended(setting, config, catalogue, Layout(words=False))
        index = {item.item_id: i for i, item in enumerate(bundle.items)}
        torch.manual_seed(config.seed)
        held = [index[item] for item in sorted(setting.held)]
        model = RetrievalHead(bundle.model, catalogue.embeddings, held)
        groups = [
            [
                # The "token" that follows a context is the item's index in the catalogue.
                Instance(i.turn_index, i.item_id, i.context, (index[i.item_id],))
                for i in self.instances(bundle.builder, dialogue)
                if i.item_id is not None
            ]
            for dialogue in setting.dataset.splits["train"]
        ]
        result = train_instances(
            model.to(bundle.model.device),
            [group for group in groups if group],
            new_rows=new_tokens(bundle.vocab, bundle.control),
            pad_id=bundle.builder.eos,
            output_dir=folder,
            config=config,
            whole=("head",),
            resume=True,
            progress=setting.progress,
        )
        setting.for_answers(result.model.backbone)
        ids = [item.item_id for item in bundle.items]

        def answer(dialogues: Sequence[Dialogue], replies: bool) -> dict[str, list[Prediction]]:
            predictions = blank_predictions(dialogues)
            ranked = [p for p in predictions if p.gold_items]
            scores = read_after(
                result.model,
                contexts_of(bundle.builder, dialogues, ranked),
                [p.dialogue for p in ranked],
                lambda logits: logits,
                pad_id=bundle.builder.eos,
            )  # [n, N]
            for p, item_scores in zip(ranked, scores, strict=True):
                p.ranking, best = _best(item_scores, ids, setting.num_beams)
                p.scores = (best - item_scores.logsumexp(-1)).tolist()
                item_scores[[index[item] for item in set(p.named)]] = -torch.inf
                new = min(setting.num_beams, len(ids) - len(set(p.named)))
                p.new_ranking, _ = _best(item_scores, ids, new)
            return {"": predictions}

        return Fitted(answer, result)


def _best(scores: torch.Tensor, ids: Sequence[str], k: int) -> tuple[list[str], torch.Tensor]:
    """The k best items and their scores, [k]. Ties go to the lower index."""
    order = scores.argsort(descending=True, stable=True)[:k]
    return [ids[i] for i in order.tolist()], scores[order]
