"""A token that ends each SID, forced and scored, against Hugging Face beam search."""

import pytest
import torch

import crs_fast
from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import BruteForce, clear_places, random_sids, tiny_model

from .test_parity import Constraint, FreeEnd, moved
from .test_recommend import FIRST, PAD, VOCAB, make_vocab, prompts

LINE_BREAK = FIRST - 2
LEVELS, CODES, BEAMS = 3, 5, 10


def allowed_tokens(sids, vocab, length, filters=None):
    """The constraint function of Hugging Face's own examples: each SID, then the terminator."""
    masks = None if filters is None else filters.mask().tolist()

    def allowed(request, row):
        keep = None if masks is None else [i for i, ok in enumerate(masks[request]) if ok]
        oracle = BruteForce(sids, keep)
        prefix = [int(c) for c in vocab.decode(row[length:][:LEVELS])] if len(row) > length else []
        codes = oracle.next_codes(prefix) if len(prefix) < LEVELS else {-1}
        return [
            LINE_BREAK if code < 0 else int(vocab.token_ids[len(prefix)][code]) for code in codes
        ]

    return allowed


def hugging_face(model, ids, mask, allowed, **extra):
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + 1, num_beams=BEAMS,
        num_return_sequences=BEAMS, do_sample=False, pad_token_id=PAD, length_penalty=1.0,
        output_scores=True, return_dict_in_generate=True, prefix_allowed_tokens_fn=allowed, **extra,
    )  # fmt: skip


@pytest.mark.parametrize("eos", [None, LINE_BREAK])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_items_scores_and_order_are_hugging_faces(kind, filtered, eos):
    trie = SidTrie.from_sids(random_sids(1, 40, LEVELS, CODES).unique(dim=0))
    model, vocab, (ids, mask) = tiny_model(kind, VOCAB), make_vocab(LEVELS, CODES), prompts((9, 4))
    filters = None
    if filtered:
        filters = ItemFilter.stack([trie.filter(deny=range(0, 30, 3)), None])
    length = ids.shape[1]
    expected = hugging_face(
        model, ids, mask, allowed_tokens(trie.sids(), vocab, length, filters), eos_token_id=eos
    )
    scores = expected.sequences_scores.view(2, BEAMS)
    sids = vocab.decode(expected.sequences[:, length : length + LEVELS]).view(2, BEAMS, -1)
    sure = clear_places(scores)
    assert sure.float().mean() > 0.8

    common = dict(trie=trie, vocab=vocab, num_beams=BEAMS, filters=filters)
    out = recommend(model, ids, mask, **common, terminator=LINE_BREAK)
    # Hugging Face divides by the length, terminator included.
    torch.testing.assert_close(out.scores, scores * (LEVELS + 1), atol=1e-4, rtol=0)
    assert torch.equal(out.sids[sure], sids[sure])
    plain = recommend(model, ids, mask, **common)
    assert not torch.equal(plain.sids, out.sids)  # which is what the terminator is for
    for row in range(2):
        named = [trie.items(sid[None])[0] for sid in out.sids[row]]
        assert out.items[row] == [item for items in named for item in items]

    got = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + 1, num_beams=BEAMS,
        num_return_sequences=BEAMS, pad_token_id=PAD, length_penalty=1.0, output_scores=True,
        return_dict_in_generate=True, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab,
        filters=filters, terminator=LINE_BREAK,
    )  # fmt: skip
    torch.testing.assert_close(got.sequences_scores.view(2, BEAMS), scores, atol=1e-4, rtol=0)
    assert torch.equal(got.sequences[sure.flatten()], expected.sequences[sure.flatten()])

    processor = SidLogitsProcessor(trie, vocab, filters, length, terminator=LINE_BREAK)
    got = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + 1, num_beams=BEAMS,
        num_return_sequences=BEAMS, do_sample=False, pad_token_id=PAD, length_penalty=1.0,
        output_scores=True, return_dict_in_generate=True, logits_processor=[processor],
        eos_token_id=eos,
    )  # fmt: skip
    torch.testing.assert_close(got.sequences_scores.view(2, BEAMS), scores, atol=1e-4, rtol=0)
    assert torch.equal(got.sequences[sure.flatten()], expected.sequences[sure.flatten()])


class EndedBy(Constraint):
    """Each SID, the terminator, and then the filler, which is free."""

    def tokens(self, row):
        if LINE_BREAK in row[self.start :].tolist():
            return [FIRST - 1]
        return [LINE_BREAK if token == FIRST - 1 else token for token in super().tokens(row)]


@pytest.mark.parametrize("seed", range(3))
def test_sids_of_unequal_length(seed):
    """The end of a short SID competes with the codes that may follow it."""
    trie = SidTrie.from_sids(random_sids(seed, 30, LEVELS, CODES, ragged=True).unique(dim=0))
    model, vocab, (ids, mask) = tiny_model("llama", VOCAB), make_vocab(LEVELS, CODES), prompts((6,))
    constraint = EndedBy(trie.sids(), vocab, ids.shape[1])
    expected = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + 1, num_beams=BEAMS,
        num_return_sequences=BEAMS, do_sample=False, pad_token_id=PAD, length_penalty=0.0,
        output_scores=True, return_dict_in_generate=True, logits_processor=[FreeEnd([constraint])],
    )  # fmt: skip
    sids = vocab.decode(expected.sequences[:, ids.shape[1] :][:, :LEVELS])
    theirs = list(zip(map(tuple, sids.tolist()), expected.sequences_scores.tolist(), strict=True))
    out = recommend(
        model, ids, mask, trie=trie, vocab=vocab, num_beams=BEAMS, terminator=LINE_BREAK
    )
    ours = list(zip(map(tuple, out.sids[0].tolist()), out.scores[0].tolist(), strict=True))
    assert moved(ours, theirs) <= 1
    assert any(-1 in sid for sid, _ in ours)


@pytest.mark.parametrize("normalize", ["level", "legal"])
def test_a_forced_token_is_free_where_it_is_all_there_is(normalize):
    trie = SidTrie.from_sids(random_sids(1, 40, LEVELS, CODES).unique(dim=0))
    model, vocab, (ids, mask) = tiny_model("llama", VOCAB), make_vocab(LEVELS, CODES), prompts((6,))
    common = dict(trie=trie, vocab=vocab, num_beams=BEAMS, normalize=normalize)
    plain = recommend(model, ids, mask, **common)
    out = recommend(model, ids, mask, **common, terminator=LINE_BREAK)
    assert torch.equal(out.sids, plain.sids)
    torch.testing.assert_close(out.scores, plain.scores)


@pytest.mark.parametrize("kind", ["mamba", "llama"])
def test_every_engine_scores_it(kind):
    """A model without a token tree, codes that are token ids, and the fallback of `beam_search`."""
    trie = SidTrie.from_sids(FIRST + random_sids(3, 20, LEVELS, CODES).unique(dim=0))
    model, (ids, mask) = tiny_model(kind, VOCAB), prompts((6,))
    out = recommend(model, ids, mask, trie=trie, num_beams=20, terminator=LINE_BREAK)
    valid = int(out.num_valid)
    assert valid == trie.num_items
    paths = torch.cat([ids.expand(valid, -1), out.sids[0, :valid]], 1)
    paths = torch.nn.functional.pad(paths, (0, 1), value=LINE_BREAK)
    with torch.no_grad():
        logits = model(input_ids=paths).logits[:, -LEVELS - 2 : -1]
    expected = logits.log_softmax(2).gather(2, paths[:, -LEVELS - 1 :, None]).sum((1, 2))
    torch.testing.assert_close(out.scores[0, :valid], expected, atol=1e-3, rtol=0)
    if kind == "llama":
        with pytest.warns(UserWarning, match="logits processors"):
            got = model.generate(
                input_ids=ids, max_new_tokens=LEVELS + 1, num_beams=20, num_return_sequences=5,
                custom_generate=crs_fast.beam_search, trie=trie, terminator=LINE_BREAK,
                logits_processor=[lambda ids, scores: scores], pad_token_id=PAD,
            )  # fmt: skip
        assert torch.equal(got[:, 6:], paths[:5, 6:])


def test_a_terminator_must_be_no_code():
    trie, vocab = SidTrie.from_sids([[1, 2]]), make_vocab(2, 4)
    model, (ids, mask) = tiny_model("llama", VOCAB), prompts((6,))
    code = int(vocab.token_ids[1][2])
    for bad, message in ((code, "stand for no code of the catalogue"), (-2, "be a token id")):
        with pytest.raises(ValueError, match=f"recommend: terminator must {message}"):
            recommend(model, ids, mask, trie=trie, vocab=vocab, terminator=bad)
        with pytest.raises(ValueError, match=f"SidLogitsProcessor: terminator must {message}"):
            SidLogitsProcessor(trie, vocab, prompt_length=3, terminator=bad)
    # A code that no item carries may serve, and so may the token that ends SIDs in text.
    unused = int(vocab.token_ids[1][3])
    recommend(model, ids, mask, trie=trie, vocab=vocab, terminator=unused)
    with pytest.raises(ValueError, match="levels and the terminator"):
        model.generate(
            input_ids=ids, max_new_tokens=2, num_beams=2, custom_generate=crs_fast.beam_search,
            trie=trie, vocab=vocab, terminator=LINE_BREAK, pad_token_id=PAD,
        )  # fmt: skip
