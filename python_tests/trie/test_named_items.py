"""find_items: which items rows of tokens name, against a reader that goes token by token."""

import random

import pytest
import torch

import crs_fast
from crs_fast.trie import SidTrie, SidVocab, TitleVocab
from python_tests.helpers import whole

BEGIN, END, WORD = 1, 2, 5
RAGGED = [[0], [1, 0], [2, 0, 1], [3, 1, 2], [2, 2], [4, 4, 4], [1, 0]]
IDS = [f"item {i}" for i in range(len(RAGGED))]
TOKENS = 20 + torch.arange(15).view(3, 5)


def trie():
    return SidTrie.from_sids(RAGGED, IDS)


def vocab(**frame):
    return SidVocab(TOKENS, **frame)


def written(*codes):
    return [int(TOKENS[level, code]) for level, code in enumerate(codes)]


def test_items_in_text():
    row = [WORD, BEGIN, *written(1, 0), END, WORD, BEGIN, *written(3, 1, 2), END, WORD]
    framed = vocab(begin=BEGIN, end=END)
    expected = [(["item 1", "item 6"], 2, 4), (["item 3"], 7, 10)]
    assert crs_fast.find_items([row], trie(), framed) == [expected]
    assert crs_fast.find_items(torch.tensor([row]), trie(), framed) == [expected]
    named = crs_fast.find_items([row], trie(), framed)[0][0]
    assert (named.item_ids, row[named.start : named.end]) == (["item 1", "item 6"], written(1, 0))


def test_rows_of_any_length_and_none():
    rows = [written(0), [], [WORD], written(4, 4, 4) * 2, torch.tensor(written(2, 2))]
    found = crs_fast.find_items(rows, trie(), vocab())
    assert [[n.item_ids for n in row] for row in found] == [
        [["item 0"]], [], [], [["item 5"], ["item 5"]], [["item 4"]],
    ]  # fmt: skip
    assert crs_fast.find_items([], trie(), vocab()) == []
    assert crs_fast.find_items([[]], trie(), vocab()) == [[]]
    assert crs_fast.find_items(torch.empty(2, 0, dtype=torch.int64), trie(), vocab()) == [[], []]


def test_a_completion_begins_inside_a_sid_when_the_prompt_ends_with_begin():
    framed = vocab(begin=BEGIN, end=END)
    assert crs_fast.find_items([[*written(2, 0, 1), END]], trie(), framed)[0][0].item_ids == [
        "item 2"
    ]
    assert crs_fast.find_items([[WORD, *written(2, 0, 1), END]], trie(), framed) == [[]]


def test_a_sid_that_no_item_carries_names_none():
    """Also where a shorter SID of the catalogue stands at its beginning."""
    for row in (written(0, 3), written(1, 0, 4), written(2), written(2, 0), written(4, 4)):
        assert crs_fast.find_items([row], trie(), vocab()) == [[]]


def test_codes_that_are_token_ids():
    titles = TitleVocab(4, 40, BEGIN, END)
    items = SidTrie.from_sids([[30, END], [30, 31, END], [32, END]], ["x", "y", "z"])
    row = [30, 31, BEGIN, 30, 31, END, 30, BEGIN, 32, END, BEGIN, 33, END]
    assert crs_fast.find_items([row], items, titles) == [[(["y"], 3, 6), (["z"], 8, 10)]]
    plain = SidTrie.from_sids([[7, 8], [7, 8, 9]])
    assert crs_fast.find_items([[7, 7, 8, 9, 7, 8, 5]], plain, None) == [[([1], 1, 4), ([0], 4, 6)]]


def read_slowly(row, begin):
    """One row's items: the run of code tokens at each place where a SID may begin is looked up."""
    sids = [whole(sid) for sid in RAGGED]
    named, at = [], 0
    while at < len(row):
        if begin is not None and at and row[at - 1] != begin:
            at += 1
            continue
        run = 0
        while run < 3 and at + run < len(row) and row[at + run] in TOKENS[run].tolist():
            run += 1
        codes = tuple(TOKENS[l].tolist().index(row[at + l]) for l in range(run))
        lengths = [n for n in range(1, run + 1) if codes[:n] in sids]
        n = max(lengths, default=0)
        after = row[at + n] if at + n < len(row) else None
        if n and (n == 3 or after not in TOKENS.flatten().tolist()):
            ids = [item for item, sid in zip(IDS, sids, strict=True) if sid == codes[:n]]
            named.append((ids, at, at + n))
            at += n
        else:
            at += 1
    return named


@pytest.mark.parametrize("begin", [None, BEGIN])
def test_random_rows(begin):
    draw = random.Random(f"{begin}")
    rows = []
    for _ in range(300):
        row = []
        for _ in range(draw.randrange(8)):
            piece = draw.choice([[WORD], [BEGIN], [END], written(*draw.choice(RAGGED)), [22], [31]])
            row += [*([BEGIN] if draw.random() < 0.5 else []), *piece]
        rows.append(row)
    framed = vocab(begin=begin, end=END if begin else None)
    assert crs_fast.find_items(rows, trie(), framed) == [read_slowly(row, begin) for row in rows]


def test_what_recommend_returns_is_found():
    index = trie()
    tokens = vocab().encode(index.sids())
    named = crs_fast.find_items([row[row >= 0] for row in tokens], index, vocab())
    assert [[n.item_ids for n in row] for row in named] == [[i] for i in index.items(index.sids())]


def test_refuses_a_vocabulary_of_another_catalogue():
    with pytest.raises(ValueError, match="find_items: vocab must have a token for each code"):
        crs_fast.find_items([[1]], trie(), SidVocab([[1], [2], [3]]))
