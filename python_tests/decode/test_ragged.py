"""Catalogues of SIDs of unequal length, by every way of searching, against enumeration."""

import pytest
import torch

import crs_fast
from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.trie import ItemFilter, SidTrie, SidVocab, TitleVocab
from python_tests.helpers import BruteForce, tiny_model

from .test_recommend import PAD, path_score

BEGIN, END, EOS, SIZE = 41, 42, 43, 50
SIDS = [[0], [1, 0], [2, 0, 1], [3, 1, 2, 3], [2, 2], [4, 4, 4], [2]]
TITLES = [[30], [30, 31], [32, 0, 33, 30], [0, 32], [0]]  # 0: the lowest token is a word too
PROMPT = torch.tensor([[5, 6, 7, BEGIN]])
KINDS = ["llama", "bloom", "mamba"]  # a token tree, and Hugging Face's beam search without one
VOCABS = {
    "end": SidVocab(10 + torch.arange(20).view(4, 5), BEGIN, END, EOS),
    "eos": SidVocab(10 + torch.arange(20).view(4, 5), BEGIN, None, EOS),
    "bare": SidVocab(10 + torch.arange(20).view(4, 5)),
    "titles": TitleVocab(5, SIZE, BEGIN, END, EOS),
    "token ids": None,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*can't decode beams as a token tree", "ignore:.*can't grow a tree"
)


def catalogue(name):
    """Rows of codes, and the tokens of each code at each level."""
    if name == "titles":
        rows = [[*title, END] for title in TITLES]
    else:
        rows = TITLES if name == "token ids" else SIDS
    table = torch.arange(SIZE).expand(5, -1)
    if name in ("end", "eos", "bare"):
        table = 10 + torch.arange(20).view(4, 5)
    return rows, table


def ranking(model, name, normalize="vocab", allow=None, prompt=PROMPT):
    """(score, codes) of each allowed item, best first; waiting for longer SIDs costs nothing."""
    rows, table = catalogue(name)
    oracle = BruteForce(rows, allow)
    ranked = []
    for sid in oracle.allowed:

        def pool(level, sid=sid):
            if normalize == "vocab":
                return slice(None)
            if normalize == "legal":
                return table[level][sorted(oracle.next_codes(sid[:level]) - {-1})]
            # Codes are all token ids up to the catalogue's highest where they have no table.
            highest = max(map(max, rows)) + 1
            return table[level][:highest] if name == "token ids" else table[level]

        tokens = [int(table[level][code]) for level, code in enumerate(sid)]
        ranked.append((path_score(model, prompt, tokens, pool, 0.8), sid))
    return sorted(ranked, reverse=True)


def check(sids, scores, expected):
    """Beams int64 [M, L] and their scores [M] are `expected`, and nothing after it. Only beams of
    one score may change places: Hugging Face has no rule for them."""
    got = [tuple(c for c in row if c >= 0) for row in sids.tolist()]
    missing = len(got) - len(expected)
    assert sorted(got) == sorted([sid for _, sid in expected] + [()] * missing)
    want = torch.tensor([score for score, _ in expected] + [float("-inf")] * missing)
    torch.testing.assert_close(scores, want, atol=1e-4, rtol=1e-4)
    score_of = {sid: score for score, sid in expected}
    own = torch.tensor([score_of.get(sid, float("-inf")) for sid in got])
    torch.testing.assert_close(scores, own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VOCABS)
@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
@pytest.mark.parametrize("kind", KINDS)
def test_recommend_ranks_every_item(kind, normalize, name):
    model, trie = tiny_model(kind, SIZE), SidTrie.from_sids(catalogue(name)[0])
    how = dict(vocab=VOCABS[name], num_beams=12, normalize=normalize, temperature=0.8)
    out = recommend(model, PROMPT, trie=trie, **how)
    check(out.sids[0], out.scores[0], ranking(model, name, normalize))
    # One filter per request: short items only, an item below which longer ones hang, none.
    allowed = [[0, 1], [2, 3, 4], []]
    filters = ItemFilter.stack([trie.filter(allow=ids) for ids in allowed])
    out = recommend(model, PROMPT.expand(3, -1), trie=trie, filters=filters, **how)
    for request, allow in enumerate(allowed):
        expected = ranking(model, name, normalize, allow)
        check(out.sids[request], out.scores[request], expected)
        assert len(out.items[request]) == len(allow)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("by", ["tree", "hugging face"])
@pytest.mark.parametrize("name", VOCABS)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_beam_search_ranks_every_item(kind, name, by, penalty):
    """Every token of a SID counts for the length penalty and waiting does not, also where Hugging
    Face's loop does the search."""
    model, vocab = tiny_model(kind, SIZE), VOCABS[name]
    rows, table = catalogue(name)
    trie, beams, start = SidTrie.from_sids(rows), 9, PROMPT.shape[1]
    expected = sorted(
        [(s / len(sid) ** penalty, sid) for s, sid in ranking(model, name)], reverse=True
    )
    for returned in (beams, 3):
        out = model.generate(
            PROMPT, num_beams=beams, num_return_sequences=returned, pad_token_id=PAD,
            max_new_tokens=8, length_penalty=penalty, return_dict_in_generate=True,
            output_scores=True, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab,
            temperature=0.8,
            logits_processor=[] if by == "tree" else [lambda ids, scores: scores],
        )  # fmt: skip
        want = torch.full((returned, trie.num_levels), PAD)
        for row, (_, sid) in zip(want, expected, strict=False):
            row[: len(sid)] = table[range(len(sid)), sid]
        assert torch.equal(out.sequences[:, start:], want)
        scores = [s for s, _ in expected] + [float("-inf")] * beams
        torch.testing.assert_close(
            out.sequences_scores, torch.tensor(scores[:returned]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    "how",
    [
        dict(do_sample=False),
        dict(do_sample=True),
        dict(num_beams=4, num_return_sequences=4),
        dict(num_beams=3, do_sample=True),
    ],
    ids=["greedy", "sample", "beam", "beam-sample"],
)
@pytest.mark.parametrize("prompt_length", [None, PROMPT.shape[1]])
@pytest.mark.parametrize("name", ["end", "titles"])
def test_generate_writes_whole_items_and_goes_on(name, prompt_length, how):
    """Every SID in the text is an item's, closed by `<EOI>`, also the second one of a row."""
    model, vocab = tiny_model("llama", SIZE), VOCABS[name]
    rows, table = catalogue(name)
    items = {tuple(int(table[l][c]) for l, c in enumerate(sid)) for sid in rows}
    processor = SidLogitsProcessor(SidTrie.from_sids(rows), vocab, None, prompt_length)
    bias = torch.zeros(SIZE).index_fill_(0, torch.tensor([BEGIN]), 8.0)
    torch.manual_seed(0)
    out = model.generate(
        PROMPT.expand(3, -1), attention_mask=torch.ones(3, 4), max_new_tokens=24, pad_token_id=PAD,
        logits_processor=[lambda ids, scores: scores + bias, processor], **how,
    )  # fmt: skip
    seen = 0
    for row in out[:, PROMPT.shape[1] - 1 :].tolist():
        while BEGIN in row and END in row[row.index(BEGIN) :]:
            at = row.index(BEGIN)
            stop = row.index(END, at)
            sid = tuple(row[at + 1 : stop + (name == "titles")])
            assert sid in items
            seen, row = seen + 1, row[stop + 1 :]
    assert seen > 2 * len(out)


def test_an_item_whose_tokens_are_all_low():
    """The token that stands for waiting is none of the catalogue's, whatever those are."""
    model = tiny_model("bloom", SIZE)
    trie = SidTrie.from_sids([[0], [0, 1], [1, 0, 2], [2]])
    for vocab in (None, TitleVocab(3, SIZE, BEGIN, END, EOS)):
        out = recommend(model, PROMPT, trie=trie, vocab=vocab, num_beams=6)
        assert sorted(out.items[0]) == [0, 1, 2, 3]
    assert trie.vocabulary(None).unused_token(trie.level_codes) == 3
