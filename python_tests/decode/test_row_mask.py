"""`RowMask`, which sees each row's last tokens, against `SidLogitsProcessor`, which sees all."""

import warnings

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor
from crs_fast.decode.row_mask import RowMask
from crs_fast.trie import SidTrie, SidVocab, TitleVocab, TokenIds
from python_tests.helpers import CASES, FIRST_TOKEN, random_sids, vocab_of, whole

SIZE = 64
BEGIN, END, EOS = 60, 61, 62


def masked(mask, rows, written=None, filters=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), SIZE, generator=generator)
    windows = torch.tensor([mask.window(row[:3], row[3:]) for row in rows])
    written = torch.tensor([-1] * len(rows) if written is None else written)
    return logits, mask.apply_(logits.clone(), windows, written, filters)


def text(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_TOKEN, (length,), generator=generator).tolist()


def rows_over(trie, vocab, begin=BEGIN, end=END):
    """Rows that end in text, after begin, inside every SID, and after it; each behind other text
    and another SID."""
    rows = []
    for number, sid in enumerate(trie.sids().unique(dim=0).tolist()):
        tokens = [t for t in vocab.encode([whole(sid)])[0].tolist() if t != end]
        past = [*text(number % 5, number), begin, *tokens, end, *text(number % 3, number)]
        rows += [past, [*past, begin]]
        rows += [[*past, begin, *tokens[:n]] for n in range(1, len(tokens) + 1)]
    return [[1, *row] for row in rows]


def vocabularies(trie):
    sizes = trie.level_sizes()
    framed = vocab_of(trie.num_levels, max(sizes), begin=BEGIN, end=END)
    return [framed, TokenIds(trie.num_levels, max(sizes), begin=BEGIN, end=END)]


@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_rows_of_a_framed_vocabulary(name, sids):
    trie = SidTrie.from_sids(sids)
    for vocab in vocabularies(trie):
        rows = rows_over(trie, vocab)
        logits, got = masked(RowMask(trie, vocab), rows)
        for row, one, given in zip(rows, got, logits, strict=True):
            processor = SidLogitsProcessor(trie, vocab)
            assert torch.equal(one, processor(torch.tensor([row]), given[None])[0]), row


def test_rows_of_titles():
    titles = TitleVocab(4, 62, BEGIN, END, EOS)
    trie = SidTrie.from_sids([[8, 9, END], [8, END], [9, 9, 9, END]])
    rows = rows_over(trie, titles)
    logits, got = masked(RowMask(trie, titles), rows)
    for row, one, given in zip(rows, got, logits, strict=True):
        processor = SidLogitsProcessor(trie, titles)
        assert torch.equal(one, processor(torch.tensor([row]), given[None])[0]), row


@pytest.mark.parametrize("ragged", [False, True])
def test_a_sid_that_begins_right_after_the_prompt(ragged):
    trie = SidTrie.from_sids(random_sids(3, 12, 3, 4, ragged))
    vocab = vocab_of(3, 4, eos=EOS)
    mask = RowMask(trie, vocab)
    for number, sid in enumerate(trie.sids().tolist()):
        tokens = vocab.encode([whole(sid)])[0].tolist()
        prompt = text(number + 1, number)
        for n in range(len(tokens) + 1):
            row = [*prompt, *tokens[:n]]
            logits, got = masked(mask, [row], [n])
            processor = SidLogitsProcessor(trie, vocab, prompt_length=len(prompt))
            assert torch.equal(got, processor(torch.tensor([row]), logits))
        # Generation that runs on can write nothing but the terminator, however long it gets.
        for more in range(1, 6):
            got = masked(mask, [[*prompt, *tokens, *[EOS] * more]], [len(tokens) + more])[1]
            assert (got[0] > -torch.inf).nonzero().flatten().tolist() == [EOS]


def test_filters_per_row():
    trie = SidTrie.from_sids(random_sids(5, 40, 3, 4))
    vocab = vocab_of(3, 4, begin=BEGIN, end=END)
    rows = rows_over(trie, vocab)[:40]
    nothing = trie.filter(allow=[])
    filters = [
        (None, trie.filter(deny=[n]), trie.filter(allow=[n]), nothing)[n % 4] for n in range(40)
    ]
    logits, got = masked(RowMask(trie, vocab), rows, filters=filters)
    codes = [*vocab.code_tokens().tolist(), END]
    for row, one, given, allowed in zip(rows, got, logits, filters, strict=True):
        processor = SidLogitsProcessor(trie, vocab, filters=allowed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = processor(torch.tensor([row]), given[None])[0]
            except ValueError:  # the row's SID is of no allowed item: it goes on as text
                expected = given.clone()
                expected[codes] = -torch.inf
                if allowed is nothing:
                    expected[BEGIN] = -torch.inf
        assert torch.equal(one, expected), row


def test_one_bad_row_stops_nobody():
    trie = SidTrie.from_sids([[0, 1], [1, 1]])
    vocab = vocab_of(2, 2, begin=BEGIN, end=END)
    codes = vocab.code_tokens().tolist()
    bad = [1, 2, 3, BEGIN, codes[0], codes[0]]
    _, got = masked(RowMask(trie, vocab), [bad, [1, 2, 3, BEGIN]])
    assert (got[0] > -torch.inf).sum() == SIZE - len(codes) - 1
    expected = {vocab.encode([[0, 1]])[0, 0].item(), vocab.encode([[1, 1]])[0, 0].item()}
    assert set((got[1] > -torch.inf).nonzero().flatten().tolist()) == expected


def test_needs_an_end():
    trie = SidTrie.from_sids([[0, 1]])
    with pytest.raises(ValueError, match=r"RowMask: vocab\.end, vocab\.eos or eos_token_id must"):
        RowMask(trie, SidVocab([[5, 6], [7, 8]]))
    assert RowMask(trie, SidVocab([[5, 6], [7, 8]]), eos_token_id=3).tokens.terminator == 3
