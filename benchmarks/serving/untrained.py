"""A model directory made from SmolLM2-135M, for its load: nobody has trained its SIDs."""

from __future__ import annotations

from pathlib import Path

from crs_fast.crs.backbones import load_backbone
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.starter import load_starter
from crs_fast.crs.model_directory import make_model_directory
from crs_fast.trie import SidTrie, SidVocab

LEVELS, CODES = 4, 64


def make_smollm2_directory(folder: str | Path) -> Path:
    """SmolLM2-135M-Instruct over the starter catalogue. Its SIDs are numbers that spread the items
    over the trie, and the model has not seen them: what it recommends and says means nothing, and
    costs what it costs after training."""
    model, tokenizer = load_backbone("smollm2")
    vocab = SidVocab.extend(tokenizer, model, levels=LEVELS, codes=CODES, special=True)
    control = ControlTokens.extend(tokenizer, model)
    items = load_starter(train=0, valid=0, test=1).items
    sids = [[n % 16, n // 16 % CODES, n * 7 % CODES, n * 13 % CODES] for n in range(len(items))]
    trie = SidTrie.from_sids(sids, [item.item_id for item in items])
    return make_model_directory(folder, model, tokenizer, trie, vocab, items, control=control)
