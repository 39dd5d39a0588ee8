"""T5-style models (TIGER): the decoder begins with one token, after which the SID begins."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import crs_fast
from crs_fast.decode import SidLogitsProcessor
from crs_fast.trie import SidTrie

from .test_recommend import make_vocab

LEVELS, CODES, ITEMS = 3, 4, 12


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    sids = torch.cartesian_prod(*[torch.arange(CODES)] * LEVELS)[torch.randperm(64)[:ITEMS]]
    vocab = make_vocab(LEVELS, CODES)
    inputs = torch.randint(40, 64, (3, 7))
    mask = torch.ones_like(inputs)
    mask[1, 4:] = 0  # encoders take padding on the right
    return model, SidTrie.from_sids(sids), vocab, inputs, mask


def enumerated(model, trie, vocab, inputs, mask):
    """Every SID's log-prob, float [B, N], in the trie's order."""
    tokens = vocab.encode(trie.sids())  # [N, L]
    scores = []
    for row, of_row in zip(inputs, mask, strict=True):
        decoder = torch.cat([torch.zeros(ITEMS, 1, dtype=torch.int64), tokens], 1)
        with torch.no_grad():
            logits = model(
                input_ids=row.expand(ITEMS, -1), attention_mask=of_row.expand(ITEMS, -1),
                decoder_input_ids=decoder[:, :-1],
            ).logits.log_softmax(-1)  # fmt: skip
        scores.append(logits.gather(2, tokens[..., None])[..., 0].sum(1))
    return tokens, torch.stack(scores)


def test_all_items_ranked_as_by_enumeration(system):
    model, trie, vocab, inputs, mask = system
    tokens, scores = enumerated(*system)
    common = dict(
        input_ids=inputs, attention_mask=mask, num_beams=ITEMS, num_return_sequences=ITEMS,
        max_new_tokens=LEVELS, length_penalty=0.0, do_sample=False, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    processor = SidLogitsProcessor(trie, vocab, prompt_length=1)
    by_processor = model.generate(**common, logits_processor=[processor])
    with pytest.warns(UserWarning, match="can't grow a tree with model arguments"):
        by_beams = model.generate(
            **common, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab
        )
    best = scores.sort(1, descending=True)
    for out in (by_processor, by_beams):
        assert torch.equal(out.sequences[:, 1:], tokens[best.indices].flatten(0, 1))
        torch.testing.assert_close(out.sequences_scores, best.values.flatten(), atol=1e-4, rtol=0)


def test_recommend_says_what_to_use(system):
    model, trie, vocab, inputs, mask = system
    with pytest.raises(ValueError, match="model must be decoder-only"):
        crs_fast.recommend(model, inputs, mask, trie=trie, vocab=vocab)
