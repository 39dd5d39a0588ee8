"""What may follow a row of tokens, against a state machine that reads it token by token."""

import random

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor
from crs_fast.trie import SidTrie, SidVocab, TitleVocab

BEGIN, END, EOS, SIZE = 1, 2, 3, 40
FIRST = 20  # of the code tokens
RAGGED = [[0], [1, 0], [2, 0, 1], [3, 1, 2, 3], [2, 2], [4, 4, 4], [1, 0]]
TITLES = [[30], [30, 31], [32, 0, 33, 30], [0, 32]]  # 0: the lowest token may be a word too


def sid_vocab(**frame):
    return SidVocab(FIRST + torch.arange(20).view(4, 5), **frame)


class StateMachine:
    """Reads one row.

    Args:
        items: the tokens of each allowed item, with `end` where that is one of them.
        masked: tokens that free text must not hold.
    """

    def __init__(self, items, masked, begin, end, eos, prompt_length):
        self.items, self.masked, self.begin, self.end = items, masked, begin, end
        self.terminator = eos if end is None else end
        self.prompt_length = prompt_length

    def legal(self, row):
        state = None if self.prompt_length is None else ()  # None: free text; "closed"; a prefix
        for token in row[self.prompt_length or 0 :]:
            if state is None:
                state = () if token == self.begin else None
            elif token == self.terminator:
                state = "closed" if self.end is None else None
            elif state != "closed":
                state = (*state, token)
        if state is None:
            return set(range(SIZE)) - self.masked - (set() if self.items else {self.begin})
        if state == "closed":
            return {self.terminator}
        rest = [item[len(state) :] for item in self.items if item[: len(state)] == state]
        return {tokens[0] if tokens else self.terminator for tokens in rest} or {self.terminator}


def encoded(vocab):
    return [
        tuple(int(vocab.token_ids[level][code]) for level, code in enumerate(sid)) for sid in RAGGED
    ]


def sid_case(prompt_length, **frame):
    vocab = sid_vocab(**frame)
    masked = set(range(FIRST, SIZE)) | ({frame["end"]} if "end" in frame else set())
    return SidTrie.from_sids(RAGGED), vocab, encoded(vocab), masked, prompt_length


def title_case(prompt_length):
    vocab = TitleVocab(5, SIZE, BEGIN, END, EOS)
    rows = [[*title, END] for title in TITLES]
    return SidTrie.from_sids(rows), vocab, list(map(tuple, rows)), {END}, prompt_length


def token_case(prompt_length):
    return SidTrie.from_sids(TITLES), None, list(map(tuple, TITLES)), set(), prompt_length


CASES = {
    "begin-end": sid_case(None, begin=BEGIN, end=END),
    "begin-end-eos": sid_case(None, begin=BEGIN, end=END, eos=EOS),
    "begin-eos": sid_case(None, begin=BEGIN, eos=EOS),
    "prompt-eos": sid_case(2, eos=EOS),
    "prompt-end": sid_case(2, end=END),
    "prompt-begin-end": sid_case(2, begin=BEGIN, end=END),
    "prompt-begin-eos": sid_case(2, begin=BEGIN, eos=EOS),
    "titles": title_case(None),
    "prompt-titles": title_case(2),
    "prompt-token-ids": token_case(2),
}


@pytest.mark.parametrize("allow", [None, [0, 2, 3], [1], []], ids=["all", "some", "one", "none"])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_every_kind(name, allow):
    trie, vocab, items, masked, prompt_length = CASES[name]
    filters = None if allow is None else trie.filter(allow=allow)
    begin, end = (None, None) if vocab is None else (vocab.begin, vocab.end)
    oracle = StateMachine(
        items if allow is None else [items[i] for i in allow],
        masked,
        begin,
        end,
        EOS,
        prompt_length,
    )
    processor = SidLogitsProcessor(
        trie, vocab, filters, prompt_length, None if vocab is not None else EOS
    )
    draw, seen = random.Random(name), set()
    for _ in range(12):
        # A SID that the prompt opens is its last token; what stands before is not looked at.
        row = [7 if prompt_length is None else draw.choice([7, BEGIN]), draw.choice([8, BEGIN])]
        for _ in range(24):
            legal = oracle.legal(row)
            scores = processor(torch.tensor([row]), torch.zeros(1, SIZE))
            assert {int(t) for t in (scores[0] == 0).nonzero()} == legal, row
            # Free text should open SIDs often.
            opens = begin in legal and draw.random() < 0.5
            row.append(begin if opens else draw.choice(sorted(legal)))
            seen.add(len(legal))
    assert len(seen) > (allow is None)
