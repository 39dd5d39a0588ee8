"""The language model that training starts from: one that knows a language, or a tiny one from
scratch, made for the data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from crs_fast.crs.backbones import TINY, load_backbone, tiny_backbone
from crs_fast.crs.data.dialogue import CrsDataset, need_splits
from crs_fast.crs.training.embedding_init import init_word_rows
from crs_fast.quantize import encode_texts

if TYPE_CHECKING:
    from crs_fast.crs.backbones import Backbone

TINY_SHAPE = dict(hidden_size=128, layers=2, heads=4, vocab_size=4096)


def starting_backbone(
    name: str,
    dataset: CrsDataset,
    *,
    four_bit: bool = False,
    seed: int = 0,
    encode: Callable[[list[str]], torch.Tensor] = encode_texts,
) -> Backbone:
    """`load_backbone`, or for the name "tiny" `tiny_backbone_for`: for machines without a GPU.

    Raises:
        ValueError: `four_bit` with "tiny", or see `load_backbone`.
    """
    if name != TINY:
        return load_backbone(name, four_bit=four_bit)
    if four_bit:
        raise ValueError(
            "starting_backbone: model must be a path or a hub name with qlora (got 'tiny')"
        )
    return tiny_backbone_for(dataset, seed=seed, encode=encode)


def tiny_backbone_for(
    dataset: CrsDataset,
    *,
    seed: int = 0,
    encode: Callable[[list[str]], torch.Tensor] = encode_texts,
    **shape: int,
) -> Backbone:
    """A small Llama that knows no language yet. Its tokenizer is trained on the texts of the
    "train" split, and its embedding rows start from what its tokens mean (see `init_word_rows`).
    Train all of it: adapters on random weights learn next to nothing.

    Args:
        seed: of the weights.
        encode: n texts to float [n, D]; best the encoder that the items' SIDs are made with.
        shape: other values for those of `TINY_SHAPE`, see `tiny_backbone`.

    Raises:
        ValueError: the data set has no "train" split.
    """
    need_splits(dataset, "tiny_backbone_for", ["train"])
    texts = [turn.text for dialogue in dataset.splits["train"] for turn in dialogue.turns]
    model, tokenizer = tiny_backbone(texts, **{**TINY_SHAPE, **shape}, seed=seed)
    words = [str(tokenizer.decode([i])).strip() or " " for i in range(len(tokenizer))]
    init_word_rows(model, encode(words), seed)
    return model, tokenizer
