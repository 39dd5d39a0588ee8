"""The language model that training starts from: a pretrained one, or a tiny one with random weights
that is made for the data set."""

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
    trust_remote_code: bool = False,
    encode: Callable[[list[str]], torch.Tensor] = encode_texts,
) -> Backbone:
    """Load a model with `load_backbone`; for the name "tiny", make one with `tiny_backbone_for`,
    for machines without a GPU.

    Raises:
        ValueError: `four_bit` is given with "tiny"; or as in `load_backbone`.
    """
    if name != TINY:
        return load_backbone(name, four_bit=four_bit, trust_remote_code=trust_remote_code)
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
    """A small Llama that is not pretrained. Its tokenizer is trained on the texts of the "train"
    split, and its embedding rows start from a text encoder's embeddings of its tokens (see
    `init_word_rows`). Train all of its weights: adapters on random weights learn next to nothing.

    Args:
        seed: seed of the weights.
        encode: maps n texts to float [n, D]; best the encoder with which the items' SIDs are made.
        shape: values in place of those of `TINY_SHAPE`, see `tiny_backbone`.

    Raises:
        ValueError: the data set has no "train" split.
    """
    need_splits(dataset, "tiny_backbone_for", ["train"])
    texts = [turn.text for dialogue in dataset.splits["train"] for turn in dialogue.turns]
    model, tokenizer = tiny_backbone(texts, **{**TINY_SHAPE, **shape}, seed=seed)
    words = [str(tokenizer.decode([i])).strip() or " " for i in range(len(tokenizer))]
    init_word_rows(model, encode(words), seed)
    return model, tokenizer
