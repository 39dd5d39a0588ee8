"""A whole turn of a recommender, from messages to text: `respond` beside three `generate` calls."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from crs_fast.crs.answer import TurnOptions, context_tokens
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data import load_dataset
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.decode import SidLogitsProcessor
from crs_fast.trie import SidTrie, SidVocab

from .beams import QWEN3, SEARCH, prefilled, qwen3_config, random_model, small_config
from .case import Case, Methods

LEVELS, MOST_ITEMS = 4, 10


def respond(size: str, device: str) -> tuple[str, Methods]:
    """Intent, 50 beams and 32 words after 512 tokens of conversation."""
    full, cuda = size == "full", device == "cuda"
    beams, words, prompt, batch = (50, 32, 512, 8 if cuda else 1) if full else (4, 4, 64, 1)
    options = TurnOptions(mode="rec", num_beams=beams, num_items=beams, max_new_tokens=words)
    bundle = _bundle(full, device, prompt + LEVELS + 4 + words)
    recommender = Recommender(bundle).prepare()
    messages = _messages(batch)
    trie, vocab, builder = recommender.bundle.trie.to(device), bundle.vocab, bundle.builder

    def with_respond() -> list[tuple[list[str], str]]:
        answers = recommender.respond(
            messages, mode="rec", num_items=beams, num_beams=beams, max_new_tokens=words
        )
        return [([item_id for item_id, _, _ in one.items], one.text) for one in answers]

    def generate(ids: torch.Tensor, tokens: int, **how: Any) -> Any:
        return bundle.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            pad_token_id=0, eos_token_id=None, **how,
        )  # fmt: skip

    @torch.no_grad()
    def with_generate() -> list[tuple[list[str], str]]:
        contexts = [context_tokens(bundle, recommender.turns(m), options) for m in messages]
        ids = torch.tensor(contexts, device=device)
        first = generate(ids, 1, output_scores=True, return_dict_in_generate=True)
        bundle.control.rec_probability(first.scores[0][:, list(bundle.control.modes.values())])
        opening = ids.new_tensor(builder.prefix("rec")).expand(batch, -1)
        begun = torch.cat([ids, opening], 1)
        codes = SidLogitsProcessor(trie, vocab)
        found = generate(
            begun, LEVELS, past_key_values=prefilled(bundle.model, begun, beams), num_beams=beams,
            num_return_sequences=beams, logits_processor=[codes],
        )[:, begun.shape[1] :]  # fmt: skip
        sids = vocab.decode(found).view(batch, beams, LEVELS)
        named = [list(chain.from_iterable(trie.items(of_one)))[:beams] for of_one in sids]
        begins = [
            [*context, bundle.control.rec, *builder.item(items[0]), bundle.control.resp]
            for context, items in zip(contexts, named, strict=True)
        ]
        ids = torch.tensor(begins, device=device)
        replies = generate(
            ids, words, suppress_tokens=sorted(bundle.control.tokens), logits_processor=[codes]
        )[:, ids.shape[1] :]  # fmt: skip
        texts = [builder.decode(reply, recommender.titles) for reply in replies.tolist()]
        return list(zip(named, texts, strict=True))

    if not cuda and with_respond() != with_generate():  # bfloat16 gives two orders of beams
        raise AssertionError("respond: the methods disagree, nothing was timed")
    config = bundle.model.config
    return (
        f"{config.num_hidden_layers} layers x {config.hidden_size}, vocab {config.vocab_size}, "
        f"batch {batch}, conversation of {prompt} tokens, {beams} beams, "
        f"{len(bundle.items)} items, {words} words",
        {
            "three generate calls, prefilled once each": with_generate,
            "respond": with_respond,
        },
    )


def _bundle(full: bool, device: str, max_length: int) -> Bundle:
    """An untrained recommender: the words of a small tokenizer, and a model with more of them."""
    items_count, codes = (20_000, 256) if full else (200, 8)
    texts = [turn.text for d in load_dataset("starter").splits["train"] for turn in d.turns]
    model, tokenizer = tiny_backbone(texts, hidden_size=8, layers=1, heads=1, vocab_size=2048)
    vocab = SidVocab.extend(tokenizer, model, LEVELS, codes, special=True)
    control = ControlTokens.extend(tokenizer, model)
    rows = len(tokenizer)
    if full and device == "cuda":
        config = qwen3_config(max(rows, 151_936), *QWEN3["0.6B"])
    else:
        config = small_config(max(rows, 49_152) if full else rows, full)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    items = tuple(Item(f"i{n}", f"Film {n}") for n in range(items_count))
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(codes, (items_count, LEVELS), generator=generator)
    trie = SidTrie.from_sids(sids, [item.item_id for item in items])
    builder = SequenceBuilder(tokenizer, vocab, control, trie_sids(trie, vocab), max_length)
    model = random_model(config, dtype, device)
    return Bundle(model, tokenizer, trie, vocab, control, items, builder, None)


def _messages(batch: int) -> list[list[dict[str, str]]]:
    """Conversations that are longer than what the model reads, without titles."""
    dialogues = load_dataset("starter").splits["train"]
    texts = [turn.text for dialogue in dialogues for turn in dialogue.turns if not turn.mentions]
    return [
        [
            {"role": ("user", "assistant")[turn % 2], "content": " ".join(texts[first::29][:40])}
            for turn, first in enumerate(range(batch_row, batch_row + 3))
        ]
        for batch_row in range(batch)
    ]


CASES = [Case("respond", respond, (*SEARCH, "respond"), ("cpu", "cuda"))]
