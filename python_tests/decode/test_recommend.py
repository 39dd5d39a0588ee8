"""Token-tree beams against enumeration, and what is asked of their edges."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch

from crs_fast.decode import Prompt, SidLogitsProcessor, recommend, search
from crs_fast.decode.lm import prompt
from crs_fast.decode.lm.head import LmHead
from crs_fast.decode.lm.linear import is_plain
from crs_fast.trie import ItemFilter, SidTrie, SidVocab
from python_tests.helpers import BruteForce, random_sids, tiny_model

FIRST, VOCAB, PAD = 20, 83, 0
GRID = SidTrie.from_sids(list(itertools.product(range(3), repeat=2)))


def make_vocab(levels, codes):
    return SidVocab(FIRST + torch.arange(levels * codes).view(levels, codes))


def prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(4, FIRST, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


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


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi", "granite"])
def test_scores_over_the_vocabulary_without_its_logits(kind, monkeypatch):
    """As on a GPU, for plain heads, capped, with a bias and scaled."""
    model, vocab = tiny_model(kind, VOCAB), make_vocab(3, 5)
    trie, (ids, mask) = SidTrie.from_sids(random_sids(1, 25, 3, 5, True)), prompts((5, 3))
    arguments = dict(trie=trie, vocab=vocab, num_beams=20, temperature=0.8)
    want = recommend(model, ids, mask, **arguments)
    widths = []
    of_tokens = LmHead.__call__

    def watched(self, hidden, tokens=None):
        logits = of_tokens(self, hidden, tokens)
        widths.append(logits.shape[1])
        return logits

    monkeypatch.setattr(LmHead, "__call__", watched)
    monkeypatch.setattr(LmHead, "streams", property(lambda head: is_plain(head.module)))
    got = recommend(model, ids, mask, **arguments)
    assert widths == [5, 5, 5]
    assert torch.equal(got.sids, want.sids)
    torch.testing.assert_close(got.scores, want.scores, atol=1e-5, rtol=0)
    broken = tiny_model(kind, VOCAB)
    broken.get_output_embeddings().weight.data[VOCAB - 1] = torch.nan  # no code's token
    with pytest.raises(ValueError, match="logits must be numbers"):
        Prompt(model, ids, mask) and recommend(broken, ids, mask, **arguments)


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


def test_a_search_ends_with_its_last_beam(monkeypatch):
    """One long SID in a catalogue of short ones, titles say: steps are spent on it only where a
    beam follows it, and nothing else changes."""
    model, vocab = tiny_model("llama", VOCAB), make_vocab(12, 4)
    sids = [*random_sids(0, 20, 3, 4).tolist(), [0] * 12]
    trie, (ids, mask) = SidTrie.from_sids(sids), prompts((5, 3))
    recommend(model, ids, mask, trie=trie, vocab=vocab)  # what is asked of a new model is asked
    grown, grow = [], Prompt.grow
    monkeypatch.setattr(Prompt, "grow", lambda *args: grown.append(1) or grow(*args))
    for filters, steps in ((None, 11), (trie.filter(deny={20}), 7)):
        how = dict(trie=trie, vocab=vocab, num_beams=30, filters=filters)
        grown.clear()
        found = recommend(model, ids, mask, **how)
        assert len(grown) == steps
        with monkeypatch.context() as patch:
            patch.setattr(search, "LONG", 99)
            whole = recommend(model, ids, mask, **how)
        assert found.items == whole.items
        assert found.sids.equal(whole.sids)
        assert found.scores.equal(whole.scores)


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


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_by_item_gives_as_many_items_as_asked(kind):
    """Items that share a SID make more items than beams; bloom's beams are Hugging Face's."""
    model, vocab = tiny_model(kind, VOCAB), make_vocab(2, 3)
    rows = list(itertools.product(range(3), repeat=2))
    trie = SidTrie.from_sids([*rows, *rows[:5], *rows[:2]])
    ids, mask = prompts((5, 3))
    call = dict(trie=trie, vocab=vocab, num_beams=6)
    by_sid = recommend(model, ids, mask, **call)
    by_item = recommend(model, ids, mask, **call, by="item")
    assert max(map(len, by_sid.items)) > 6
    assert by_item.items == [items[:6] for items in by_sid.items]
    assert by_item.item_scores == [scores[:6] for scores in by_sid.item_scores]
    assert torch.equal(by_item.sids, by_sid.sids)
    with pytest.raises(ValueError, match=r"recommend: by must be one of \('sid', 'item'\)"):
        recommend(model, ids, mask, **call, by="items")


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


WRONG = {
    "num_beams must be at least 1": dict(num_beams=0),
    "num_beams must be an integer": dict(num_beams=3.0),
    f"input_ids must lie in 0 .. {VOCAB - 1}, .*got 1 .. {VOCAB}": dict(
        input_ids=torch.tensor([[1, VOCAB]] * 4)
    ),
    "input_ids must lie in 0 .. .*got -100 .. 1": dict(input_ids=torch.tensor([[1, -100]] * 4)),
    "normalize must be one of": dict(normalize="foo"),
    "temperature must be above 0": dict(temperature=0.0),
    r"temperature must be above 0 \(got nan": dict(temperature=float("nan")),
    "vocab must have a token for each code": dict(vocab=make_vocab(2, 2)),
    "filters must hold one filter for all or one a prompt, 4": dict(
        filters=ItemFilter.stack([GRID.filter(deny=[0]), None])
    ),
    "filters must be over the trie's 9 items": dict(filters=GRID.remove([0]).filter(deny=[1])),
    "input_ids must be int64 or int32": dict(input_ids=torch.ones(4, 3)),
    r"input_ids must be \[B, P\]": dict(input_ids=torch.ones(4, dtype=torch.int64)),
    r"B and P at least 1 \(got \(0, 3\)": dict(input_ids=torch.ones(0, 3, dtype=torch.int64)),
    "attention_mask must have the shape": dict(attention_mask=torch.ones(4, 2)),
    "attention_mask must mark at least one token a row": dict(attention_mask=torch.zeros(4, 3)),
}


@pytest.mark.parametrize("kind", ["llama", "mpt"])
@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_plain_values_are_accepted(kind):
    """Lists, numpy integers, float masks, padding that is no token."""
    model = tiny_model(kind, VOCAB)
    common = dict(trie=GRID, vocab=make_vocab(2, 3))
    ids, mask = torch.tensor([[-100, 1, 2], [4, 5, 6]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    wanted = recommend(model, ids.clamp(min=0), mask, num_beams=3, **common)
    for given in ((ids, mask.float()), (ids.tolist(), mask.tolist()), (ids.numpy(), mask.numpy())):
        got = recommend(model, *given, num_beams=np.int64(3), **common)
        assert torch.equal(got.sids, wanted.sids)


@pytest.mark.parametrize("kind", ["llama", "mpt"])
@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_bad_arguments_are_refused_with_and_without_a_tree(kind):
    model, ids = tiny_model(kind, VOCAB), torch.ones(4, 3, dtype=torch.int32)
    good = dict(input_ids=ids, trie=GRID, vocab=make_vocab(2, 3), num_beams=2)
    assert recommend(model, **good).num_valid.tolist() == [2] * 4
    for message, wrong in WRONG.items():
        with pytest.raises(ValueError, match=message):
            recommend(model, **{**good, **wrong})


def test_inputs_are_checked_once(monkeypatch):
    """Each look at a mask waits for the device."""
    checked, real = [], prompt.checked_inputs
    for module in (prompt, import_module("crs_fast.decode.recommend")):
        monkeypatch.setattr(module, "checked_inputs", lambda *a: checked.append(a) or real(*a))
    ids, mask = prompts((5, 3))
    recommend(tiny_model("llama", VOCAB), ids, mask, trie=GRID, vocab=make_vocab(2, 3))
    assert len(checked) == 1


@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
@pytest.mark.parametrize("vocab", [SidVocab(VOCAB - 5 + torch.arange(6).view(2, 3)), None])
def test_tokens_that_the_model_lacks(normalize, vocab):
    model = tiny_model("llama", VOCAB)
    trie = GRID if vocab is not None else SidTrie.from_sids([[1, 2], [1, VOCAB]])
    with pytest.raises(ValueError, match=rf"tokens below {VOCAB}, .* \(got {VOCAB}\)"):
        recommend(model, prompts((4,))[0], trie=trie, vocab=vocab, normalize=normalize)


@pytest.mark.parametrize("kind", ["llama", "mpt"])
@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_nothing_to_recommend(kind):
    """An empty catalogue, and a filter that leaves nothing to one of two requests."""
    model, vocab, (ids, mask) = tiny_model(kind, VOCAB), make_vocab(2, 3), prompts((4, 3))
    empty = SidTrie.from_sids(torch.empty(0, 2, dtype=torch.int64))
    out = recommend(model, ids, mask, trie=empty, vocab=vocab, num_beams=3)
    assert (out.items, out.num_valid.tolist()) == ([[], []], [0, 0])
    filters = ItemFilter.stack([GRID.filter(allow=[]), None])
    out = recommend(model, ids, mask, trie=GRID, vocab=vocab, num_beams=3, filters=filters)
    assert out.num_valid.tolist() == [0, 3]
    assert [len(found) for found in out.items] == [0, 3]
