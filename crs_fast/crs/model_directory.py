"""A model directory from parts that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crs_fast._arguments import Rule, at_least, check_arguments, check_kind, check_path
from crs_fast.crs.checkpoint import check_backbone, check_folder, save_bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.tables import items_from
from crs_fast.crs.item_encoder import encoder_record, save_quantizer
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.quantize.text_encoder import EncoderLike, check_encoder
from crs_fast.trie import SidTrie, Vocabulary, vocabulary_from_dict
from crs_fast.trie.sid_vocab import BEGIN, END, token_id
from crs_fast.trie.typed import as_catalogue

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from crs_fast.quantize import ResidualQuantizer


def make_model_directory(
    path: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trie: SidTrie | Mapping[int, SidTrie],
    vocab: Vocabulary | Mapping[int, Vocabulary],
    items: Any,
    *,
    control: ControlTokens | None = None,
    quantizer: ResidualQuantizer | None = None,
    encoder: EncoderLike = None,
    max_length: int = 768,
) -> Path:
    """Put a model that was trained elsewhere, its tokenizer, its catalogue and its items together
    into the directory that `Recommender.from_pretrained` and `crs-fast` load.

        index = crs_fast.load_index("index.json", tokenizer)
        make_model_directory("model", model, tokenizer, index.trie, index.vocab, items)

    The model must have been trained on the sequences of `crs_fast.crs.sequence`, in any training
    loop (`SequenceBuilder.instances` makes them). So it has all tokens already: none is added here,
    since what an untrained token makes a model say means nothing.

    Args:
        path: the directory; an earlier model directory there is replaced.
        model: a causal language model; the adapter of a PEFT model is merged into it.
        tokenizer: the model's.
        trie: the catalogue's SIDs, or those of each begin token (see `typed_catalogue`). Ids that
            are numbers are written as text.
        vocab: the tokens of the SIDs. Without `begin` and `end` of its own it takes the tokenizer's
            `<BOI>` and `<EOI>`.
        items: a table with the titles of the same items, see `items_from`.
        control: ids of the control tokens; None takes the tokenizer's `<RESP>`, `<MODE=CHAT>` and
            `<MODE=REC>`.
        quantizer: what made the SIDs, if new items shall get theirs by `with_catalogue`.
        encoder: the text encoder of the quantizer's embeddings, by its name; see `encode_texts`.
        max_length: the most tokens that context and response had together in training.

    Raises:
        ValueError: the tokenizer lacks a token, trie and table hold different items, a code has no
            token, the embedding has too few rows, or `path` holds something else than a model
            directory.
    """
    op = "make_model_directory"
    check_path(f"{op}: path", path)
    check_backbone(op, (model, tokenizer))
    check_kind(f"{op}: trie", trie, SidTrie | Mapping, "a SidTrie, or one for each begin token")
    if not isinstance(vocab, Mapping) and not hasattr(vocab, "to_dict"):
        raise ValueError(
            f"{op}: vocab must be a vocabulary, or one for each begin token "
            f"(got {type(vocab).__name__})"
        )
    check_kind(f"{op}: control", control, ControlTokens | None, "ControlTokens or None")
    if quantizer is not None and not hasattr(quantizer, "fingerprint"):
        raise ValueError(
            f"{op}: quantizer must be a fitted quantizer or None (got {type(quantizer).__name__})"
        )
    check_encoder(f"{op}: encoder", encoder)
    check_arguments(op, (Rule("max_length", int, *at_least(1)),), max_length=max_length)
    check_folder(f"{op}: path", Path(path))
    rows = items_from(items)
    control = control or ControlTokens.of(tokenizer)
    joint, tokens = as_catalogue(trie, vocab)
    tokens = joint.vocabulary(_framed(joint.vocabulary(tokens, op), tokenizer), op)
    named = SidTrie(joint.tensors, joint.item_ids.as_text())
    # It refuses a tokenizer or a max_length that no recommender can use, before files are written.
    SequenceBuilder(tokenizer, tokens, control, trie_sids(named, tokens), max_length)
    fingerprint = None if quantizer is None else quantizer.fingerprint()

    def write_quantizer(folder: Path) -> None:
        if quantizer is not None:
            save_quantizer(folder, quantizer, encoder_record(encoder, ("text",)))

    return save_bundle(
        path,
        (model, tokenizer),
        named,
        tokens,
        control,
        rows,
        quantizer=fingerprint,
        max_length=max_length,
        more=write_quantizer,
    )


def _framed(vocab: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary with tokens that open and close a SID."""
    if vocab.opens_with_code:
        return vocab
    frame = {"begin": vocab.begin, "end": vocab.end}
    for name, token in (("begin", BEGIN), ("end", END)):
        if frame[name] is None:
            frame[name] = token_id(tokenizer, token)
        if frame[name] is None:
            raise ValueError(
                f"make_model_directory: vocab must have {name}, or the tokenizer the token {token} "
                "(got neither)"
            )
    return vocabulary_from_dict({**vocab.to_dict(), **frame})
