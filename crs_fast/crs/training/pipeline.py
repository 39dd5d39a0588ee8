"""Trains a recommender from a data set and a language model, and writes its directory."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crs_fast._arguments import (
    Rule,
    at_least,
    check_arguments,
    check_kind,
    check_path,
    check_settings,
)
from crs_fast._files import replacing_folder, write_text
from crs_fast.crs.checkpoint import Bundle, check_backbone, check_folder, save_bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import CrsDataset, Item, need_splits
from crs_fast.crs.data.jsonl import check_items
from crs_fast.crs.item_encoder import encoder_record, read_record, save_quantizer
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.crs.training.co_mention import co_mention_embeddings, fill_unnamed
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.embedding_init import init_sid_rows
from crs_fast.crs.training.titles import with_titles
from crs_fast.crs.training.train import TrainResult, train
from crs_fast.quantize import build_sids, encode_texts, resolve_collisions
from crs_fast.quantize.embeddings import check_embeddings
from crs_fast.quantize.text_encoder import EncoderLike, check_encoder
from crs_fast.trie import SidTrie, SidVocab

if TYPE_CHECKING:
    from crs_fast.crs.backbones import Backbone
    from crs_fast.quantize import ResidualQuantizer


SIGNALS = ("text", "co-mention", "co-mention-filled")
METHODS = ("rqvae", "rqkmeans")
_RULES = (
    Rule("levels codes", int, *at_least(1)),
    Rule("method", str, f"one of {METHODS}", METHODS.__contains__),
    Rule("seed", int, "in [0, 2 ** 64)", lambda v: 0 <= v < 1 << 64),
)
_FLAG = (Rule("progress", bool),)
_FLAGS = (Rule("titles resume progress", bool),)


@dataclass(frozen=True, slots=True)
class SidConfig:
    """How items get their semantic IDs.

    Args:
        levels, codes: a SID has L codes, and a level has K codewords.
        method: "rqvae" or "rqkmeans".
        encoder: a sentence-transformers path or hub name, or the encoder itself (see
            `encode_texts`); None takes the offline MiniLM. New items can join the trained catalogue
            by their texts only if it is a name.
        seed: seed of the quantizer.
        signals: the parts of an item's embedding, which are concatenated. "text" is the encoder's
            embedding. "co-mention" is the vector of `co_mention_embeddings` on the "train" split;
            with "co-mention-filled", items without one get that of their neighbours by text (see
            `fill_unnamed`).

    Raises:
        ValueError: a setting is of another kind or out of range.
    """

    levels: int = 4
    codes: int = 64
    method: str = "rqvae"
    encoder: EncoderLike = None
    seed: int = 0
    signals: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        check_settings(self, _RULES)
        check_encoder("SidConfig: encoder", self.encoder)
        signals = self.signals
        is_list = isinstance(signals, tuple | list) and len(signals) > 0
        if not is_list or any(signal not in SIGNALS for signal in signals):
            raise ValueError(f"SidConfig: signals must be among {SIGNALS} (got {signals!r})")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A catalogue with semantic IDs: row i of each tensor belongs to `dataset.items[i]`.

    embeddings: float32 [N, D]; sids: int64 [N, L]; report: see `quantization_report`
    record: what made the embeddings, see `encoder_record`; None if nobody knows
    """

    embeddings: torch.Tensor
    sids: torch.Tensor
    quantizer: ResidualQuantizer
    report: dict[str, Any]
    record: dict[str, Any] | None = None


def make_catalogue(
    dataset: CrsDataset,
    config: SidConfig | None = None,
    progress: bool = False,
    held: Collection[str] = (),
    texts: torch.Tensor | None = None,
) -> Catalogue:
    """Encode the items and quantize them to distinct semantic IDs.

    Args:
        held: ids of items that are left out of the quantizer's fit and get their SIDs afterwards.
        texts: embeddings of the items' texts, float32 [N, D], if they are computed already.

    Raises:
        ValueError: an argument is of another kind, the data set has no items, or `texts` does not
            hold one row of finite floats per item.
    """
    check_kind("make_catalogue: dataset", dataset, CrsDataset, "a CrsDataset")
    check_kind("make_catalogue: config", config, SidConfig | None, "a SidConfig or None")
    check_arguments("make_catalogue", _FLAG, progress=progress)
    if isinstance(held, str) or not isinstance(held, Collection):
        raise ValueError(f"make_catalogue: held must be a collection of item ids (got {held!r})")
    if not dataset.items:
        raise ValueError("make_catalogue: dataset must have items (got none)")
    config = config or SidConfig()
    if any(signal != "text" for signal in config.signals):
        need_splits(dataset, "make_catalogue", ["train"])
    if texts is not None:
        check_embeddings("make_catalogue: texts", texts, len(dataset.items))
    if texts is None:
        texts = encode_texts(item_texts(dataset), config.encoder, progress=progress)
    embeddings = torch.cat([_signal(name, dataset, texts) for name in config.signals], 1)
    new = torch.tensor([item.item_id in held for item in dataset.items])
    quantizer, fitted, report = build_sids(
        embeddings[~new], config.levels, config.codes, config.method, config.seed, progress
    )
    sids = fitted.new_empty(len(new), config.levels)
    sids[~new] = fitted
    x = embeddings[new]
    sids[new] = resolve_collisions(
        quantizer.embed(x), quantizer.encode(x).cpu(), quantizer.codebooks, fitted
    )
    record = encoder_record(config.encoder, config.signals)
    return Catalogue(embeddings, sids, quantizer, report, record)


def item_texts(dataset: CrsDataset) -> list[str]:
    """The text of each item that the encoder reads."""
    return [item.text() for item in dataset.items]


def _signal(name: str, dataset: CrsDataset, texts: torch.Tensor) -> torch.Tensor:
    if name == "text":
        return texts
    named = co_mention_embeddings(dataset.items, dataset.splits["train"])
    return named if name == "co-mention" else fill_unnamed(named, texts)


def save_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Write a catalogue's embeddings, SIDs and quantizer, all or none of them."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    quantizer = {"quantizer": catalogue.quantizer.fingerprint()}
    with replacing_folder(folder, kept=lambda name: True) as partial:
        save_quantizer(partial, catalogue.quantizer, catalogue.record)
        write_text(partial / "report.json", json.dumps(catalogue.report, indent=1) + "\n")
        tensors = {"embeddings": catalogue.embeddings, "sids": catalogue.sids}
        save_file(tensors, partial / "sids.safetensors", metadata=quantizer)


def load_catalogue(folder: Path, method: str) -> Catalogue:
    """Read what `save_catalogue` wrote; `method` is that of its quantizer.

    Raises:
        ValueError: the SIDs are of another quantizer than the one beside them.
    """
    from safetensors import safe_open

    from crs_fast.quantize import RQVAE, RQKMeans

    quantizer = (RQVAE if method == "rqvae" else RQKMeans).from_pretrained(folder / "quantizer")
    with safe_open(folder / "sids.safetensors", framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in ("embeddings", "sids")}
    got, expected = metadata.get("quantizer"), quantizer.fingerprint()
    if got not in (None, expected):
        raise ValueError(
            f"load_catalogue: {folder} must hold SIDs of its quantizer, {expected[:12]}… "
            f"(got {got[:12]}…)"
        )
    report = json.loads((folder / "report.json").read_text())
    record = read_record(folder)
    return Catalogue(tensors["embeddings"], tensors["sids"], quantizer, report, record)


def train_recommender(
    dataset: CrsDataset,
    backbone: Backbone,
    output_dir: str | Path,
    *,
    sids: SidConfig | None = None,
    titles: bool = False,
    training: TrainConfig | None = None,
    catalogue: Catalogue | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a recommender and write the directory that `Recommender.from_pretrained` loads.

        catalogue = quantize(encode(items)); add tokens for SIDs and modes to the model
        start the new rows from the item embeddings; train on dataset.splits["train"]; save

    Args:
        dataset: catalogue and dialogues.
        backbone: model and tokenizer, changed in place.
        output_dir: the model directory is written here, with `quantizer/` (for SIDs) and
            `training/`.
        sids: how items get SIDs.
        titles: the model writes an item as its title, under the same trie constraint, and there
            are no SIDs (see `titles.py`).
        training: see `TrainConfig`.
        catalogue: a result of `make_catalogue`, to skip encoding and quantizing.
        resume: go on from the newest checkpoint in `output_dir`.

    Raises:
        ValueError: `output_dir` holds something other than a bundle, the data set has no "train"
            split, an item could not be saved, a setting of SIDs is given together with `titles`; or
            as in `train`.
    """
    check_kind("train_recommender: dataset", dataset, CrsDataset, "a CrsDataset")
    check_path("train_recommender: output_dir", output_dir)
    check_kind("train_recommender: sids", sids, SidConfig | None, "a SidConfig or None")
    check_kind("train_recommender: training", training, TrainConfig | None, "a TrainConfig or None")
    check_kind("train_recommender: catalogue", catalogue, Catalogue | None, "a Catalogue or None")
    check_arguments("train_recommender", _FLAGS, titles=titles, resume=resume, progress=progress)
    check_folder("train_recommender: output_dir", Path(output_dir))
    need_splits(dataset, "train_recommender", ["train"])
    check_items("train_recommender", dataset.items)
    check_backbone("train_recommender", backbone)
    training = training or TrainConfig()
    if titles:
        given = {"sids": sids, "catalogue": catalogue, "code_noise": training.code_noise}
        for name, value in given.items():
            if value:
                raise ValueError(
                    f"train_recommender: {name} must be left out with titles, which have no SIDs "
                    f"(got {value!r})"
                )
        bundle = with_titles(
            backbone, dataset.items, max_length=training.max_length, seed=training.seed
        )
    else:
        catalogue = catalogue or make_catalogue(dataset, sids or SidConfig(), progress)
        bundle = with_sids(
            backbone,
            dataset.items,
            catalogue,
            max_length=training.max_length,
            seed=training.seed,
        )
    result = train(
        backbone,
        dataset,
        bundle.trie,
        bundle.vocab,
        bundle.control,
        output_dir=output_dir,
        config=training,
        resume=resume,
        progress=progress,
    )

    def write_quantizer(folder: Path) -> None:
        if catalogue is not None:
            save_quantizer(folder, catalogue.quantizer, catalogue.record)

    save_bundle(
        output_dir,
        (result.model, bundle.tokenizer),
        bundle.trie,
        bundle.vocab,
        bundle.control,
        dataset.items,
        quantizer=bundle.quantizer,
        max_length=training.max_length,
        more=write_quantizer,
    )
    return result


def with_sids(
    backbone: Backbone,
    items: Sequence[Item],
    catalogue: Catalogue,
    *,
    max_length: int = 768,
    seed: int = 0,
) -> Bundle:
    """Prepare a backbone to name items by semantic IDs, before training. It gets tokens for SIDs
    and modes, whose rows start from the items' embeddings.

    Args:
        backbone: model and tokenizer, changed in place.
        items: the catalogue's items, in its order.
        max_length: maximum length of a sequence, context and response together.
        seed: seed of the random part of the new rows.
    """
    model, tokenizer = backbone
    levels, codes = catalogue.sids.shape[1], catalogue.quantizer.codebooks.shape[1]
    vocab = SidVocab.extend(tokenizer, model, levels, codes, special=True)
    control = ControlTokens.extend(tokenizer, model)
    trie = SidTrie.from_sids(catalogue.sids, [item.item_id for item in items])
    init_sid_rows(model, vocab, control, catalogue.embeddings, catalogue.sids, seed)
    builder = SequenceBuilder(tokenizer, vocab, control, trie_sids(trie), max_length)
    quantizer = catalogue.quantizer.fingerprint()
    return Bundle(model, tokenizer, trie, vocab, control, tuple(items), builder, quantizer)
