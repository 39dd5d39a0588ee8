"""Token-tree beams are Hugging Face's beams: seeded random configurations, float32.

Hugging Face runs left-padded beam search with a constraint written in Python; ours gets the same
prompts. Beams may trade places, or the last of them change, only where scores differ by less than
`TOLERANCE`; how often they do is counted.
"""

import random
import warnings
from collections import defaultdict
from functools import cache

import pytest
import torch

from crs_fast.decode import capability, recommend, sequential
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import random_sids, tiny_model, whole

from .model_zoo import MODEL_TYPES, NOT_CAUSAL, SAMPLE, zoo_model
from .test_recommend import FIRST, PAD, VOCAB, make_vocab, prompts

TOLERANCE = 1e-4
KINDS = [
    "llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma", "gemma2", "phi", "opt", "neox", "gptj",
]  # fmt: skip
PER_KIND = 20  # 220 configurations
FILLER = FIRST - 1  # no prompt holds it, no code is it


@cache
def model_of(kind, seed):
    return tiny_model(kind, VOCAB, seed)


class Constraint:
    """Which tokens may follow, from a table of prefixes; `FILLER`: the SID is whole and waits."""

    def __init__(self, sids, vocab, start):
        self.vocab, self.start = vocab, start
        self.next = defaultdict(set)
        for sid in map(whole, sids):
            for n, code in enumerate(sid):
                self.next[sid[:n]].add(code)
            self.next[sid].add(-1)

    def tokens(self, row):
        written = [t for t in row[self.start :].tolist() if t != FILLER]
        level = {
            int(t): (l, c) for l, ids in enumerate(self.vocab.token_ids) for c, t in enumerate(ids)
        }
        prefix = tuple(level[t][1] if t in level else -2 for t in written)
        if len(written) < len(row) - self.start:  # it waits already
            return [FILLER]
        after = self.next.get(prefix, set())
        return [
            FILLER if code < 0 else int(self.vocab.token_ids[len(prefix)][code]) for code in after
        ]


class FreeEnd:
    """Constrains, and lets a whole SID wait at log-prob 0."""

    def __init__(self, constraints):
        self.constraints = constraints

    def __call__(self, input_ids, scores):
        out = torch.full_like(scores, float("-inf"))
        per = input_ids.shape[0] // len(self.constraints)
        for row, tokens in enumerate(input_ids):
            allowed = self.constraints[row // per].tokens(tokens)
            out[row, allowed] = scores[row, allowed]
            if FILLER in allowed:
                out[row, FILLER] = 0.0
        return out


def hugging_face(model, ids, mask, trie, vocab, beams, filters, ragged):
    """[(sid, score)] of each request's real beams, best first."""
    constraints = []
    for request in range(ids.shape[0]):
        sids = trie.sids()
        if filters is not None:
            sids = sids[filters.mask()[request]]
        constraints.append(Constraint(sids, vocab, ids.shape[1]))
    if ragged:
        how = dict(logits_processor=[FreeEnd(constraints)])
    else:
        # HF refuses an empty list; a filter that allows nothing leaves it padding.
        how = dict(prefix_allowed_tokens_fn=lambda b, row: constraints[b].tokens(row) or [PAD])
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=trie.num_levels, num_beams=beams,
        num_return_sequences=beams, do_sample=False, pad_token_id=PAD, length_penalty=0.0,
        output_scores=True, return_dict_in_generate=True,
        # One beam would be greedy search, which returns no sums of log-probs.
        custom_generate=type(model)._beam_search, **how,
    )  # fmt: skip
    sids = vocab.decode(out.sequences[:, ids.shape[1] :]).view(ids.shape[0], beams, -1)
    scores = out.sequences_scores.view(ids.shape[0], beams)
    # It returns duplicates at -5e8 where beams outnumber items, and padding where none is allowed.
    return [
        [
            (tuple(sid), s)
            for sid, s in zip(row.tolist(), values.tolist(), strict=True)
            if s > -1e8 and sid[0] >= 0
        ]
        for row, values in zip(sids, scores, strict=True)
    ]


def moved(mine, theirs):
    """How many beams stand elsewhere than Hugging Face's; fails unless near-ties explain each."""
    assert len(mine) == len(theirs)
    where, count = dict(theirs), 0
    for (sid, score), (their_sid, their_score) in zip(mine, theirs, strict=True):
        assert score == pytest.approx(their_score, abs=TOLERANCE)
        if sid != their_sid:
            count += 1
            # Absent: exchanged at the cut, so it must tie with the last.
            assert score == pytest.approx(where.get(sid, theirs[-1][1]), abs=TOLERANCE)
    return count


def configuration(kind, seed):
    draw = random.Random(f"{kind} {seed}")
    levels = draw.randint(1, 8)
    codes = draw.randint(2, 7)
    ragged = levels > 1 and draw.random() < 0.3
    trie = SidTrie.from_sids(
        random_sids(seed, draw.choice([1, 3, 20, 80, 150]), levels, codes, ragged).unique(dim=0)
    )
    lengths = [draw.randint(1, 14) for _ in range(draw.choice([1, 1, 2, 3]))]
    filters = None
    if draw.random() < 0.4:
        share = draw.choice([0.1, 0.5, 0.9])
        keep = [[draw.random() < share for _ in range(trie.num_items)] for _ in lengths]
        filters = ItemFilter.stack([trie.filter(allow=torch.tensor(row)) for row in keep])
    beams = draw.choice([1, 2, 3, 5, 8, 20, 50, 100, 200])
    model = model_of(kind, draw.randint(0, 2))
    return model, trie, make_vocab(levels, codes), prompts(lengths, seed), beams, filters, ragged


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_beams_in_the_same_order(kind, record_property):
    rows = permuted = 0
    for seed in range(PER_KIND):
        model, trie, vocab, (ids, mask), beams, filters, ragged = configuration(kind, seed)
        out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=beams, filters=filters)
        theirs = hugging_face(model, ids, mask, trie, vocab, beams, filters, ragged)
        for request, expected in enumerate(theirs):
            valid = int(out.num_valid[request])
            mine = list(
                zip(
                    map(tuple, out.sids[request, :valid].tolist()),
                    out.scores[request, :valid].tolist(),
                    strict=True,
                )
            )
            rows, permuted = rows + len(mine), permuted + moved(mine, expected)
            assert out.scores[request, valid:].eq(float("-inf")).all()
            assert out.sids[request, valid:].eq(-1).all()
    record_property("beams", rows)
    record_property("permuted", permuted)
    print(f"{kind}: {permuted} of {rows} beams stand elsewhere")
    assert permuted <= 0.01 * rows


def check_zoo_model(model_type, record):
    """Two prompts of unequal length: the scores of every item are those of plain forward passes."""
    try:
        model = zoo_model(model_type, VOCAB)
        plain = model(input_ids=prompts((5,))[0], use_cache=False).logits
    except Exception as problem:
        record("answer", f"not built: {type(problem).__name__}: {str(problem)[:80]}")
        pytest.skip(f"{model_type} can't be built so small: {problem}")
    if model.config.is_encoder_decoder or not bool(plain.isfinite().all()):
        record("answer", "not built: an encoder-decoder, or logits that are no numbers")
        pytest.skip("no decoder, or random weights that overflow")
    trie, vocab = SidTrie.from_sids(torch.cartesian_prod(*[torch.arange(2)] * 3)), make_vocab(3, 2)
    ids, mask = prompts((9, 5), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model_type in NOT_CAUSAL:
            record("answer", "refused: not causal")
            with pytest.raises(ValueError, match="model must be causal"):
                recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=8)
            return
        out = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=8)
        attention = capability(model).attention
        answer = attention or str(sequential(model)).removeprefix("Sequential")
    record("answer", answer)
    for row in range(2):
        paths = torch.cat(
            [ids[row][mask[row].bool()].expand(8, -1), vocab.encode(out.sids[row])], 1
        )
        with torch.no_grad():
            logits = model(input_ids=paths, use_cache=False).logits[:, -4:-1]
        expected = logits.log_softmax(2).gather(2, paths[:, -3:, None]).sum((1, 2))
        error = float((out.scores[row] - expected).abs().max() / logits.std())
        assert error < 5e-3, f"{answer}: {error}"


@pytest.mark.parametrize("model_type", SAMPLE)
def test_model_classes(model_type, record_property):
    check_zoo_model(model_type, record_property)


@pytest.mark.long
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_class(model_type, record_property):
    """`python -m pytest -m long -s python_tests/decode/test_parity.py`, about five minutes: each
    class and how it was answered."""

    def record(name, value):
        record_property(name, value)
        print(f"\n{model_type}: {value}")

    check_zoo_model(model_type, record)
