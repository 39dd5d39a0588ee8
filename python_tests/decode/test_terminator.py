"""Tokens that end each SID, forced and scored, against Hugging Face beam search."""

import pytest
import torch

import crs_fast
from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.trie import ItemFilter, SidTrie, SidVocab
from python_tests.helpers import BruteForce, clear_places, random_sids, tiny_model

from .test_parity import Constraint, FreeEnd, moved
from .test_recommend import FIRST, PAD, VOCAB, make_vocab, prompts

LINE_BREAK, EOS = FIRST - 2, FIRST - 4
LEVELS, CODES, BEAMS = 3, 5, 10


def tokens_of(terminator):
    return [terminator] if isinstance(terminator, int) else list(terminator)


def allowed_tokens(sids, vocab, length, filters=None, terminator=LINE_BREAK):
    """The constraint function of Hugging Face's own examples: each SID, then the terminator."""
    masks = None if filters is None else filters.mask().tolist()

    def allowed(request, row):
        keep = None if masks is None else [i for i, ok in enumerate(masks[request]) if ok]
        written = row[length:].tolist()
        if len(written) >= LEVELS:
            return [tokens_of(terminator)[len(written) - LEVELS]]
        prefix = vocab.decode(row[length:]).tolist() if written else []
        codes = BruteForce(sids, keep).next_codes(prefix)
        return [int(vocab.token_ids[len(prefix)][code]) for code in codes]

    return allowed


def hugging_face(model, ids, mask, allowed, ending, **extra):
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + ending, num_beams=BEAMS,
        num_return_sequences=BEAMS, do_sample=False, pad_token_id=PAD, length_penalty=1.0,
        output_scores=True, return_dict_in_generate=True, prefix_allowed_tokens_fn=allowed, **extra,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("terminator", "eos"),
    [(LINE_BREAK, None), (LINE_BREAK, LINE_BREAK), ((LINE_BREAK, EOS), EOS),
     (torch.tensor([LINE_BREAK, EOS, 2]), None)],
    ids=["one", "one-eos", "two-eos", "three"],
)  # fmt: skip
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_items_scores_and_order_are_hugging_faces(kind, filtered, terminator, eos):
    trie = SidTrie.from_sids(random_sids(1, 40, LEVELS, CODES).unique(dim=0))
    model, vocab, (ids, mask) = tiny_model(kind, VOCAB), make_vocab(LEVELS, CODES), prompts((9, 4))
    filters = None
    if filtered:
        filters = ItemFilter.stack([trie.filter(deny=range(0, 30, 3)), None])
    length = ids.shape[1]
    ending = len(tokens_of(terminator))
    allowed = allowed_tokens(trie.sids(), vocab, length, filters, terminator)
    expected = hugging_face(model, ids, mask, allowed, ending, eos_token_id=eos)
    scores = expected.sequences_scores.view(2, BEAMS)
    sids = vocab.decode(expected.sequences[:, length : length + LEVELS]).view(2, BEAMS, -1)
    sure = clear_places(scores)
    assert sure.float().mean() > 0.8

    common = dict(trie=trie, vocab=vocab, num_beams=BEAMS, filters=filters)
    out = recommend(model, ids, mask, **common, terminator=terminator)
    # Hugging Face divides by the length, the terminator included.
    torch.testing.assert_close(out.scores, scores * (LEVELS + ending), atol=1e-4, rtol=0)
    assert torch.equal(out.sids[sure], sids[sure])
    plain = recommend(model, ids, mask, **common)
    assert not torch.equal(plain.sids, out.sids)  # which is what the terminator is for
    for row in range(2):
        named = [trie.items(sid[None])[0] for sid in out.sids[row]]
        assert out.items[row] == [item for items in named for item in items]

    got = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + ending, num_beams=BEAMS,
        num_return_sequences=BEAMS, pad_token_id=PAD, length_penalty=1.0, output_scores=True,
        return_dict_in_generate=True, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab,
        filters=filters, terminator=terminator,
    )  # fmt: skip
    torch.testing.assert_close(got.sequences_scores.view(2, BEAMS), scores, atol=1e-4, rtol=0)
    assert torch.equal(got.sequences[sure.flatten()], expected.sequences[sure.flatten()])

    processor = SidLogitsProcessor(trie, vocab, filters, length, terminator=terminator)
    got = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + ending, num_beams=BEAMS,
        num_return_sequences=BEAMS, do_sample=False, pad_token_id=PAD, length_penalty=1.0,
        output_scores=True, return_dict_in_generate=True, logits_processor=[processor],
        eos_token_id=eos,
    )  # fmt: skip
    torch.testing.assert_close(got.sequences_scores.view(2, BEAMS), scores, atol=1e-4, rtol=0)
    assert torch.equal(got.sequences[sure.flatten()], expected.sequences[sure.flatten()])


class EndedBy(Constraint):
    """Each SID, the terminator, and then the filler, which is free."""

    def __init__(self, *args, ending):
        super().__init__(*args)
        self.ending = ending

    def tokens(self, row):
        written = row[self.start :].tolist()
        if self.ending[0] in written:
            missing = self.ending[len(written) - written.index(self.ending[0]) :]
            return missing[:1] or [FIRST - 1]
        return [self.ending[0] if token == FIRST - 1 else token for token in super().tokens(row)]


@pytest.mark.parametrize("ending", [[LINE_BREAK], [LINE_BREAK, EOS]], ids=["one", "two"])
@pytest.mark.parametrize("seed", range(3))
def test_sids_of_unequal_length(seed, ending):
    """The end of a short SID competes with the codes that may follow it."""
    trie = SidTrie.from_sids(random_sids(seed, 30, LEVELS, CODES, ragged=True).unique(dim=0))
    model, vocab, (ids, mask) = tiny_model("llama", VOCAB), make_vocab(LEVELS, CODES), prompts((6,))
    constraint = EndedBy(trie.sids(), vocab, ids.shape[1], ending=ending)
    expected = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS + len(ending), num_beams=BEAMS,
        num_return_sequences=BEAMS, do_sample=False, pad_token_id=PAD, length_penalty=0.0,
        output_scores=True, return_dict_in_generate=True, logits_processor=[FreeEnd([constraint])],
    )  # fmt: skip
    sids = vocab.decode(expected.sequences[:, ids.shape[1] :][:, :LEVELS])
    theirs = list(zip(map(tuple, sids.tolist()), expected.sequences_scores.tolist(), strict=True))
    out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=BEAMS, terminator=ending)
    ours = list(zip(map(tuple, out.sids[0].tolist()), out.scores[0].tolist(), strict=True))
    assert moved(ours, theirs) <= 1
    assert any(-1 in sid for sid, _ in ours)


@pytest.mark.parametrize("normalize", ["level", "legal"])
def test_forced_tokens_are_free_where_nothing_else_may_follow(normalize):
    trie = SidTrie.from_sids(random_sids(1, 40, LEVELS, CODES).unique(dim=0))
    model, vocab, (ids, mask) = tiny_model("llama", VOCAB), make_vocab(LEVELS, CODES), prompts((6,))
    common = dict(trie=trie, vocab=vocab, num_beams=BEAMS, normalize=normalize)
    plain = recommend(model, ids, mask, **common)
    out = recommend(model, ids, mask, **common, terminator=(LINE_BREAK, EOS))
    assert torch.equal(out.sids, plain.sids)
    torch.testing.assert_close(out.scores, plain.scores)


@pytest.mark.parametrize("kind", ["mamba", "llama"])
def test_every_engine_scores_it(kind):
    """A model without a token tree, codes that are token ids, and the fallback of `beam_search`."""
    trie = SidTrie.from_sids(FIRST + random_sids(3, 20, LEVELS, CODES).unique(dim=0))
    model, (ids, mask) = tiny_model(kind, VOCAB), prompts((6,))
    out = recommend(model, ids, mask, trie=trie, num_beams=20, terminator=(LINE_BREAK, EOS))
    valid = int(out.num_valid)
    assert valid == trie.num_items
    paths = torch.cat([ids.expand(valid, -1), out.sids[0, :valid]], 1)
    paths = torch.cat([paths, torch.tensor([LINE_BREAK, EOS]).expand(valid, -1)], 1)
    with torch.no_grad():
        logits = model(input_ids=paths).logits[:, -LEVELS - 3 : -1]
    expected = logits.log_softmax(2).gather(2, paths[:, -LEVELS - 2 :, None]).sum((1, 2))
    torch.testing.assert_close(out.scores[0, :valid], expected, atol=1e-3, rtol=0)
    if kind == "llama":
        with pytest.warns(UserWarning, match="logits processors"):
            got = model.generate(
                input_ids=ids, max_new_tokens=LEVELS + 2, num_beams=20, num_return_sequences=5,
                custom_generate=crs_fast.beam_search, trie=trie, terminator=(LINE_BREAK, EOS),
                logits_processor=[lambda ids, scores: scores], pad_token_id=PAD,
            )  # fmt: skip
        assert torch.equal(got[:, 6:], paths[:5, 6:])


def test_a_terminator_must_be_no_code():
    trie, vocab = SidTrie.from_sids([[1, 2]]), make_vocab(2, 4)
    model, (ids, mask) = tiny_model("llama", VOCAB), prompts((6,))
    code = int(vocab.token_ids[1][2])
    no_token = "be a token id, or a sequence of at least one"
    for bad, message in (
        (code, "stand for no code of the catalogue"),
        ([LINE_BREAK, code], "stand for no code of the catalogue"),
        ([LINE_BREAK, LINE_BREAK], f"be distinct token ids .got {LINE_BREAK} more than once"),
        (-2, no_token), ([3, -2], no_token), ([], no_token), ("\n", no_token),
        ([3, 0.5], no_token), ([[3, 4]], no_token), (torch.tensor([3.0]), no_token),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"recommend: terminator must {message}"):
            recommend(model, ids, mask, trie=trie, vocab=vocab, terminator=bad)
        with pytest.raises(ValueError, match=f"SidLogitsProcessor: terminator must {message}"):
            SidLogitsProcessor(trie, vocab, prompt_length=3, terminator=bad)
    opened = SidVocab(vocab.token_ids, begin=LINE_BREAK)
    with pytest.raises(ValueError, match=f"hold no begin token .got {LINE_BREAK}, which is one"):
        SidLogitsProcessor(trie, opened, terminator=[EOS, LINE_BREAK])
    # A code that no item carries may serve, and so may the token that ends SIDs in text.
    unused = int(vocab.token_ids[1][3])
    recommend(model, ids, mask, trie=trie, vocab=vocab, terminator=unused)
    with pytest.raises(ValueError, match="levels and the terminator"):
        model.generate(
            input_ids=ids, max_new_tokens=3, num_beams=2, custom_generate=crs_fast.beam_search,
            trie=trie, vocab=vocab, terminator=[LINE_BREAK, EOS], pad_token_id=PAD,
        )  # fmt: skip


def test_the_processor_lets_text_go_on_after_several_tokens():
    """Between SIDs too: the line break and the end of sequence are words there."""
    begin, end = 1, 2
    trie = SidTrie.from_sids(random_sids(1, 40, LEVELS, CODES, ragged=True).unique(dim=0))
    vocab = SidVocab(make_vocab(LEVELS, CODES).token_ids, begin=begin, end=end)
    processor = SidLogitsProcessor(trie, vocab, terminator=(LINE_BREAK, EOS, end))
    codes, rows = vocab.code_tokens().tolist(), [LINE_BREAK, EOS, begin]
    for sid in trie.sids()[:10]:
        rows += [t for t in vocab.encode(sid).tolist() if t >= 0] + [LINE_BREAK, EOS, end]
        for length, wanted in ((len(rows) - 2, {EOS}), (len(rows) - 1, {end})):
            scores = processor(torch.tensor([rows[:length]]), torch.zeros(1, VOCAB))
            assert set(scores[0].isfinite().nonzero()[:, 0].tolist()) == wanted
        free = processor(torch.tensor([rows]), torch.zeros(1, VOCAB))[0].isfinite()
        assert set(free.nonzero()[:, 0].tolist()) == set(range(VOCAB)) - {*codes, end}
        rows.append(begin)
