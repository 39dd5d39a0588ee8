"""A model that was trained elsewhere becomes a model directory."""

import dataclasses

import pytest
import torch

from crs_fast.crs import ControlTokens, Recommender, make_model_directory
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.checkpoint import Bundle
from crs_fast.quantize import RQKMeans
from crs_fast.trie import SidTrie, SidVocab

from .tiny_system import ITEMS, SIDS, TEXTS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
ROWS = [{"item_id": str(n), "title": f"Film {n}", "year": 1990 + n} for n in range(8)]


def elsewhere():
    """A model whose index has int ids and whose vocabulary does not know begin and end."""
    model, tokenizer, trie, vocab, _, builder = system()
    plain = SidVocab(vocab.token_ids)
    return model, tokenizer, SidTrie.from_sids(SIDS), plain, trie, vocab, builder


def test_it_answers_as_its_parts(tmp_path):
    model, tokenizer, trie, plain, named, vocab, builder = elsewhere()
    quantizer = RQKMeans(levels=3, codes=4).fit(torch.rand(8, 6))
    path = make_model_directory(
        tmp_path / "model", model, tokenizer, trie, plain, ROWS, quantizer=quantizer
    )
    loaded = Recommender.from_pretrained(path)
    bundle = Bundle(
        model, tokenizer, named, vocab, ControlTokens.of(tokenizer), ITEMS, builder, None
    )
    wanted = Recommender(bundle).respond(ASK, "rec", 8, max_new_tokens=5)
    got = loaded.respond(ASK, "rec", 8, max_new_tokens=5)
    assert got.text == wanted.text
    assert [f"i{i}" for i, _, _ in got.items] == [i for i, _, _ in wanted.items]
    changed = loaded.with_catalogue(
        add=[{"item_id": "new", "title": "A"}], remove=["0"], embeddings=torch.rand(1, 6)
    )
    assert {i for i, _, _ in changed.rank(ASK)} == {*"1234567", "new"}
    assert loaded.rank(ASK, exclude=["3"], repeat_named=False)


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    model, tokenizer, trie, plain, _, vocab, _ = elsewhere()
    path = tmp_path / "model"

    def refused(message, **changes):
        parts = dict(model=model, tokenizer=tokenizer, trie=trie, vocab=vocab, items=ROWS)
        with pytest.raises(ValueError, match=message):
            make_model_directory(path, **{**parts, **changes})
        assert not path.exists()

    refused("must hold the same items", items=ROWS[:-1])
    refused("row 0 of items must be readable", items=[{"item_id": "0"}])
    refused("vocab must have a token for each code", vocab=SidVocab([[5, 6]] * 3))
    refused("max_length must be at least", max_length=9)
    other, plain_tokenizer = tiny_backbone(TEXTS, hidden_size=32, layers=2, heads=2, vocab_size=300)
    refused("tokenizer must have the tokens <RESP>", tokenizer=plain_tokenizer)
    control = ControlTokens.of(tokenizer)
    refused("or the tokenizer the token <BOI>", tokenizer=plain_tokenizer, vocab=plain,
            control=control)  # fmt: skip
    refused("embedding must have", model=other, control=dataclasses.replace(control, resp=9999))
