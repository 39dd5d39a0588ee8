"""Token-tree beams against Hugging Face beam search, and against enumeration."""

import itertools

import pytest
import torch

from crs_fast.decode import Prompt, SidLogitsProcessor, recommend
from crs_fast.trie import ItemFilter, SidTrie, SidVocab

from ..helpers import BruteForce, random_sids, tiny_model

FIRST, VOCAB, PAD = 20, 83, 0


def make_vocab(levels, codes):
    return SidVocab(FIRST + torch.arange(levels * codes).view(levels, codes))


def prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(4, FIRST, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def hf_beams(model, ids, mask, trie, vocab, beams, filters=None):
    """Hugging Face beam search with a Python constraint: [(codes, score)] a request, its real
    beams only (duplicates at -5e8 appear where beams outnumber items)."""
    length, levels = ids.shape[1], trie.num_levels
    every = trie.sids()
    oracles = []
    for request in range(ids.shape[0]):
        keep = None if filters is None else filters.mask()[request].nonzero().flatten().tolist()
        oracles.append(BruteForce(every, keep))

    def allowed(batch_id, tokens):
        prefix = [
            int((vocab.token_ids[l] == t).nonzero()[0]) for l, t in enumerate(tokens[length:])
        ]
        table = vocab.token_ids[len(prefix)]
        # HF refuses an empty list; a dead-end beam is dropped below by its score.
        return [int(table[c]) for c in oracles[batch_id].next_codes(prefix)] or [PAD]

    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=levels, num_beams=beams,
        num_return_sequences=beams, do_sample=False, pad_token_id=PAD, length_penalty=0.0,
        output_scores=True, return_dict_in_generate=True, prefix_allowed_tokens_fn=allowed,
    )  # fmt: skip
    codes = vocab.decode(out.sequences[:, length:]).view(ids.shape[0], beams, levels)
    scores = out.sequences_scores.view(ids.shape[0], beams)
    return [
        [(tuple(c), float(s)) for c, s in zip(row.tolist(), values, strict=True) if s > -1e8]
        for row, values in zip(codes, scores, strict=True)
    ]


def same_order(mine, theirs, tolerance=1e-4):
    """Equal beams in equal order; beams may trade places only within `tolerance` in score."""
    assert len(mine) == len(theirs)
    for (my_sid, my_score), (sid, score) in zip(mine, theirs, strict=True):
        assert my_score == pytest.approx(score, abs=tolerance)
        if my_sid != sid:
            rivals = [s for other, s in theirs if other == my_sid]
            assert not rivals or abs(rivals[0] - my_score) < tolerance


CONFIGURATIONS = [
    # kind, lengths of the prompts, beams, levels, codes, items
    ("llama", (6, 6), 8, 3, 6, 60),
    ("llama", (9, 4, 1), 5, 4, 5, 200),
    ("qwen2", (3, 8), 20, 3, 6, 90),
    ("qwen3", (5,), 50, 2, 15, 100),
    ("gpt2", (7, 2), 10, 4, 4, 120),
    ("mistral", (8, 5), 7, 5, 3, 150),
    ("llama", (4, 6), 30, 2, 4, 9),  # more beams than items
    ("qwen2", (4,), 2, 4, 5, 50),
    ("llama", (5, 5), 3, 1, 12, 12),
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("filtered", [False, True])
def test_same_beams_as_hugging_face(configuration, filtered):
    kind, lengths, beams, levels, codes, items = configuration
    model = tiny_model(kind, VOCAB)
    trie = SidTrie.from_sids(random_sids(3, items, levels, codes).unique(dim=0))
    vocab, (ids, mask) = make_vocab(levels, codes), prompts(lengths)
    filters = None
    if filtered:
        keep = torch.rand(len(lengths), trie.num_items, generator=torch.Generator().manual_seed(5))
        filters = ItemFilter.stack([trie.filter(allow=row < 0.5) for row in keep])
    out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=beams, filters=filters)
    theirs = hf_beams(model, ids, mask, trie, vocab, beams, filters)
    for request, expected in enumerate(theirs):
        valid = int(out.num_valid[request])
        mine = [
            (tuple(out.sids[request, k].tolist()), float(out.scores[request, k]))
            for k in range(valid)
        ]
        same_order(mine, expected)
        assert out.scores[request, valid:].eq(float("-inf")).all()
        assert out.sids[request, valid:].eq(-1).all()


def path_score(model, ids, tokens, pool_of, temperature):
    """Sum of log-probs of `tokens` after `ids`, by plain forward passes."""
    total, ids = 0.0, ids.clone()
    for level, token in enumerate(tokens):
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double() / temperature
        total += float(logits[token] - logits[pool_of(level)].logsumexp(0))
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return total


@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
def test_all_items_ranked_as_by_enumeration(normalize):
    """With as many beams as prefixes nothing is cut, so beams are the exact ranking."""
    model, vocab = tiny_model("llama", VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(1, 25, 3, 5).unique(dim=0))
    oracle, (ids, mask) = BruteForce(trie.sids()), prompts((5, 3))
    out = recommend(
        model, ids, mask, trie=trie, vocab=vocab, num_beams=60, normalize=normalize,
        temperature=0.8,
    )  # fmt: skip
    for request in range(2):
        prompt = ids[request][mask[request].bool()][None]
        expected = []
        for sid in oracle.sids:

            def pool(level, sid=sid):
                if normalize == "vocab":
                    return slice(None)
                legal = sorted(oracle.next_codes(sid[:level]))
                return vocab.token_ids[level][legal if normalize == "legal" else slice(None)]

            tokens = vocab.encode(list(sid)).tolist()
            expected.append((path_score(model, prompt, tokens, pool, 0.8), sid))
        expected.sort(reverse=True)
        assert int(out.num_valid[request]) == len(expected)
        got = [tuple(s) for s in out.sids[request, : len(expected)].tolist()]
        assert got == [sid for _, sid in expected]
        want = torch.tensor([score for score, _ in expected])
        torch.testing.assert_close(
            out.scores[request, : len(expected)], want.float(), atol=1e-4, rtol=0
        )


def test_ragged_sids_wait_at_no_cost():
    """A SID that prefixes another competes with its own log-probs, whatever its length."""
    model, vocab = tiny_model("gpt2", VOCAB), make_vocab(3, 4)
    sids = [[0], [0, 1], [0, 1, 2], [2, 3], [3], [1, 1, 1]]
    trie, (ids, mask) = SidTrie.from_sids(sids, item_ids=list("abcdef")), prompts((4,))
    out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=20)
    scores = {
        item: path_score(model, ids, vocab.encode(sid).tolist(), lambda _: slice(None), 1.0)
        for item, sid in zip("abcdef", sids, strict=True)
    }
    assert out.items[0] == sorted(scores, key=scores.get, reverse=True)
    torch.testing.assert_close(
        out.scores[0, :6], torch.tensor(sorted(scores.values(), reverse=True)), atol=1e-4, rtol=0
    )


def test_padding_on_either_side_and_no_mask_agree():
    model, vocab = tiny_model("llama", VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(2, 60, 3, 5))
    ids, mask = prompts((6, 3))
    left = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=6)
    right_ids = torch.stack([row.roll(-int((m == 0).sum())) for row, m in zip(ids, mask)])  # noqa: B905
    right_mask = mask.flip(1)
    right = recommend(model, right_ids, right_mask, trie=trie, vocab=vocab, num_beams=6)
    assert torch.equal(left.sids, right.sids)
    alone = recommend(model, ids[1:, 3:], trie=trie, vocab=vocab, num_beams=6)
    assert torch.equal(left.sids[1:], alone.sids)
    torch.testing.assert_close(left.scores[1:], alone.scores, atol=1e-4, rtol=0)


def test_several_items_on_one_sid_are_all_named_and_filtered_exactly():
    model, vocab = tiny_model("llama", VOCAB), make_vocab(2, 3)
    trie = SidTrie.from_sids([[0, 1], [2, 2], [0, 1]], item_ids=["x", "y", "z"])
    ids, _ = prompts((4,))
    out = recommend(model, ids, trie=trie, vocab=vocab, num_beams=4)
    assert sorted(out.items[0]) == ["x", "y", "z"]
    assert abs(out.items[0].index("x") - out.items[0].index("z")) == 1
    out = recommend(
        model, ids, trie=trie, vocab=vocab, num_beams=4, filters=trie.filter(deny=["x"])
    )
    assert sorted(out.items[0]) == ["y", "z"]
    out = recommend(
        model, ids, trie=trie, vocab=vocab, num_beams=4, filters=trie.filter(deny=["x", "y", "z"])
    )
    assert out.items == [[]]
    assert out.num_valid.tolist() == [0]


def test_prompt_grows_as_one_sequence_would():
    """Columns that are valid in some rows only leave the other rows' logits as they were."""
    model = tiny_model("llama", VOCAB)
    ids, mask = prompts((5, 3))
    prompt = Prompt(model, ids, mask)
    with torch.no_grad():
        prompt.append(torch.tensor([[7, 8], [9, 9]]), torch.tensor([[1, 1], [0, 0]]).bool())
        prompt.append(torch.tensor([[10], [11]]))
        got = prompt.logits()
        first = model(input_ids=torch.cat([ids[:1], torch.tensor([[7, 8, 10]])], 1)).logits[:, -1]
        second = model(input_ids=torch.cat([ids[1:, 2:], torch.tensor([[11]])], 1)).logits[:, -1]
    torch.testing.assert_close(got, torch.cat([first, second]), atol=1e-4, rtol=1e-4)


def test_generate_after_the_processor_gives_the_same_first_beam():
    """The two ways in agree: `recommend`, and `generate` with the processor."""
    model, vocab = tiny_model("qwen2", VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(4, 60, 3, 5).unique(dim=0))
    ids, mask = prompts((6, 4))
    out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=9)
    theirs = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=3, num_beams=9, do_sample=False,
        num_return_sequences=9, pad_token_id=PAD,
        logits_processor=[SidLogitsProcessor(trie, vocab, prompt_length=ids.shape[1])],
    )  # fmt: skip
    codes = vocab.decode(theirs[:, ids.shape[1] :]).view(2, 9, 3)
    assert torch.equal(out.sids, codes)


def test_one_beam_is_greedy():
    model, vocab = tiny_model("qwen2", VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(4, 60, 3, 5).unique(dim=0))
    ids, mask = prompts((6, 4))
    out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=1)
    theirs = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=PAD,
        logits_processor=[SidLogitsProcessor(trie, vocab, prompt_length=ids.shape[1])],
    )  # fmt: skip
    assert torch.equal(out.sids[:, 0], vocab.decode(theirs[:, ids.shape[1] :]))


def test_bad_arguments():
    model, vocab = tiny_model("llama", VOCAB), make_vocab(2, 3)
    trie = SidTrie.from_sids(list(itertools.product(range(3), repeat=2)))
    ids, mask = prompts((4,))
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=0)
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        recommend(model, ids, mask[:, 1:], trie=trie, vocab=vocab)
    with pytest.raises(ValueError, match="at least one token a row"):
        recommend(model, ids, mask * 0, trie=trie, vocab=vocab)
