"""SidLogitsProcessor inside `model.generate`, unpatched, for three architectures."""

import gc
import weakref

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor
from crs_fast.trie import ItemFilter, SidTrie, SidVocab
from python_tests.helpers import BruteForce, random_sids, tiny_model, vocab_of, whole

BEGIN, END, EOS, PAD = 1, 2, 3, 0
FIRST, LEVELS, CODES, VOCAB = 20, 3, 5, 61
ARCHITECTURES = ["llama", "qwen2", "gpt2"]


def make_vocab(**kwargs) -> SidVocab:
    ids = FIRST + torch.arange(LEVELS * CODES).view(LEVELS, CODES)
    return SidVocab(ids, **kwargs)


def make_trie(items=12, seed=0, ragged=False):
    return SidTrie.from_sids(random_sids(seed, items, LEVELS, CODES, ragged))


def prompts(rows=3, length=7, seed=0):
    """Left-padded prompts of unequal length, free of special tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, FIRST, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : row * 2], ids[row, : row * 2] = 0, PAD
    return ids, mask


def fragments(tokens, vocab):
    """Every maximal run of code tokens, as (previous token, codes, next token)."""
    tokens, codes, found = tokens.tolist(), set(vocab.code_tokens().tolist()), []
    at = 0
    while at < len(tokens):
        if tokens[at] not in codes:
            at += 1
            continue
        end = at
        while end < len(tokens) and tokens[end] in codes:
            end += 1
        after = tokens[end] if end < len(tokens) else None
        found.append((tokens[at - 1], tokens[at:end], after))
        at = end
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    "mode",
    [
        dict(num_beams=4, num_return_sequences=4, do_sample=False),
        dict(num_beams=1, do_sample=False),
        dict(num_beams=1, do_sample=True, temperature=1.5),
        dict(num_beams=3, do_sample=True),
    ],
    ids=["beam", "greedy", "sample", "beam-sample"],
)
def test_generate_writes_only_items_in_free_text(kind, mode):
    """Text, SID, text: every SID that opens in generated text is an item's, closed by <EOI>."""
    model, vocab, trie = tiny_model(kind, VOCAB), make_vocab(begin=BEGIN, end=END), make_trie()
    with torch.no_grad():  # SIDs should begin often
        bias = torch.zeros(VOCAB)
        bias[BEGIN] = 6.0
    ids, mask = prompts()
    torch.manual_seed(0)
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=24, pad_token_id=PAD,
        logits_processor=[_Bias(bias), SidLogitsProcessor(trie, vocab)], **mode,
    )  # fmt: skip
    known, seen = set(BruteForce(trie.sids()).sids), 0
    for row in out[:, ids.shape[1] :]:
        for before, run, after in fragments(row, vocab):
            seen += 1
            codes = tuple(vocab.decode(run + [-1] * (LEVELS - len(run))).tolist())
            assert before == BEGIN
            if after is not None:
                assert after == END
                assert whole(codes) in known
    assert seen > 3


class _Bias:
    def __init__(self, bias):
        self.bias = bias

    def __call__(self, input_ids, scores):
        return scores + self.bias


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_beams_equal_prefix_allowed_tokens_fn(kind):
    """The same beams as Hugging Face's own constraint over a Python oracle, to the last one."""
    model, vocab, trie = tiny_model(kind, VOCAB), make_vocab(), make_trie(40)
    ids, mask = prompts()
    oracle, length = BruteForce(trie.sids()), ids.shape[1]

    def allowed(batch_id, tokens):
        prefix = [int(t) - FIRST - CODES * l for l, t in enumerate(tokens[length:])]
        return [FIRST + CODES * len(prefix) + c for c in oracle.next_codes(prefix)]

    common = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS, num_beams=10,
        num_return_sequences=10, do_sample=False, pad_token_id=PAD, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    theirs = model.generate(**common, prefix_allowed_tokens_fn=allowed)
    processor = SidLogitsProcessor(trie, vocab, prompt_length=length)
    mine = model.generate(**common, logits_processor=[processor])
    assert torch.equal(mine.sequences, theirs.sequences)
    torch.testing.assert_close(mine.sequences_scores, theirs.sequences_scores)


def score_rows(processor, rows):
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    out = processor(ids, torch.zeros(len(rows), VOCAB))
    return [set((row == 0).nonzero().flatten().tolist()) for row in out]


def test_rows_in_different_phases():
    vocab = make_vocab(begin=BEGIN, end=END, eos=EOS)
    trie = SidTrie.from_sids([[0, 1, 2], [0, 1, 3], [4, 0, 0]])
    a, b, c = (ids.tolist() for ids in vocab.token_ids)
    text = set(range(VOCAB)) - set(vocab.code_tokens().tolist()) - {END}
    rows = [
        [9, 9],  # free text
        [9, BEGIN],  # a SID opens
        [BEGIN, a[0]],
        [BEGIN, a[0], b[1]],
        [BEGIN, a[0], b[1], c[3]],  # whole
        [BEGIN, a[0], b[1], c[3], END],  # closed
        [BEGIN, a[0], b[1], c[3], END, 9, 9, BEGIN, a[4]],  # a second SID
    ]
    expected = [text, {a[0], a[4]}, {b[1]}, {c[2], c[3]}, {END}, text, {b[0]}]
    processor = SidLogitsProcessor(trie, vocab)
    assert score_rows(processor, rows) == expected
    for row, legal in zip(rows, expected, strict=True):
        assert score_rows(processor, [row]) == [legal]


def test_after_a_leaf_comes_end_else_eos():
    trie = SidTrie.from_sids([[0, 1, 2]])
    for vocab, forced in (
        (make_vocab(begin=BEGIN, end=END, eos=EOS), END),
        (make_vocab(begin=BEGIN, eos=EOS), EOS),
    ):
        sid = vocab.encode([0, 1, 2]).tolist()
        processor = SidLogitsProcessor(trie, vocab)
        assert score_rows(processor, [[BEGIN, *sid]]) == [{forced}]
    # Once end-of-sequence closed the SID nothing but end-of-sequence follows.
    assert score_rows(processor, [[BEGIN, *sid, EOS], [BEGIN, *sid, EOS, EOS]]) == [{EOS}, {EOS}]
    bare = SidLogitsProcessor(trie, make_vocab(begin=BEGIN))
    with pytest.raises(ValueError, match="row 0 stands after a whole SID"):
        score_rows(bare, [[BEGIN, *sid]])


def test_ragged_sids_may_end_or_go_on():
    vocab = make_vocab(begin=BEGIN, end=END)
    a, b, _ = (ids.tolist() for ids in vocab.token_ids)
    processor = SidLogitsProcessor(SidTrie.from_sids([[1], [1, 2], [3]]), vocab)
    assert score_rows(processor, [[BEGIN, a[1]], [BEGIN, a[3]], [BEGIN, a[1], b[2]]]) == [
        {b[2], END},
        {END},
        {END},
    ]


def test_illegal_prefix_names_the_row():
    vocab = make_vocab(begin=BEGIN, end=END)
    trie = SidTrie.from_sids([[0, 1, 2], [3, 3, 3]])
    a, b, c = (ids.tolist() for ids in vocab.token_ids)
    processor = SidLogitsProcessor(trie, vocab)
    for bad in ([BEGIN, a[1]], [BEGIN, 9], [BEGIN, b[1]], [BEGIN, a[0], b[1], c[2], 9]):
        with pytest.raises(ValueError, match="open SID of row 1 must be"):
            score_rows(processor, [[BEGIN, a[0]], bad])
    denied = SidLogitsProcessor(trie, vocab, filters=trie.filter(deny=[0]))
    with pytest.raises(ValueError, match="open SID of row 0 must be"):
        score_rows(denied, [[BEGIN, a[0]]])


def test_where_the_sid_begins_must_be_said():
    trie = make_trie()
    with pytest.raises(ValueError, match="prompt_length must be given"):
        SidLogitsProcessor(trie, make_vocab())
    with pytest.raises(ValueError, match="prompt_length must be given"):
        SidLogitsProcessor(trie)
    SidLogitsProcessor(trie, make_vocab(), prompt_length=4)


def test_each_request_has_its_own_filter():
    vocab = make_vocab(begin=BEGIN, end=END)
    a = vocab.token_ids[0].tolist()
    trie = SidTrie.from_sids([[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    filters = ItemFilter.stack([trie.filter(allow=[0]), None, trie.filter(deny=[0, 1, 2])])
    processor = SidLogitsProcessor(trie, vocab, filters=filters)
    # Two rows (beams) a request: row r takes filter r // 2.
    assert score_rows(processor, [[BEGIN]] * 6) == [
        *[{a[0]}] * 2,
        *[{a[0], a[1], a[2]}] * 2,
        *[{END}] * 2,  # nothing is allowed: the SID closes at once and names no item
    ]
    # In free text no SID opens that could not be finished.
    opens = [BEGIN in free for free in score_rows(processor, [[4]] * 6)]
    assert opens == [True] * 4 + [False] * 2


def test_codes_are_token_ids_without_a_vocabulary():
    """`vocab=None`: any set of token sequences, here three titles of unequal length."""
    titles = [[30, 31], [30, 32, 33], [40]]
    processor = SidLogitsProcessor(SidTrie.from_sids(titles), prompt_length=2, eos_token_id=EOS)
    rows = [[9, 9], [9, 9, 30], [9, 9, 30, 32, 33], [9, 9, 40]]
    got = [score_rows(processor, [row])[0] for row in rows]
    assert got == [{30, 40}, {31, 32}, {EOS}, {EOS}]


def test_more_beams_than_items():
    model, trie = tiny_model("llama", VOCAB), SidTrie.from_sids([[0, 1, 2], [3, 3, 3]])
    ids, mask = prompts()
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS, num_beams=6, do_sample=False,
        num_return_sequences=2, pad_token_id=PAD,
        logits_processor=[SidLogitsProcessor(trie, make_vocab(), prompt_length=ids.shape[1])],
    )  # fmt: skip
    codes = make_vocab().decode(out[:, ids.shape[1] :]).view(3, 2, LEVELS)
    for row in codes:
        assert {tuple(sid) for sid in row.tolist()} == {(0, 1, 2), (3, 3, 3)}


def test_vocabulary_must_hold_the_tries_codes():
    with pytest.raises(ValueError, match=r"a token for each code of the trie, \[8, 1\]"):
        SidLogitsProcessor(SidTrie.from_sids([[7, 0]]), make_vocab(begin=BEGIN))


def test_token_tensors_are_made_once_and_keep_nothing_alive():
    trie, vocab = make_trie(), make_vocab(eos=EOS)
    with torch.inference_mode():
        made = vocab.tensors(trie.device)
    assert not made.column.is_inference()
    assert vocab.tensors(make_trie(seed=1).device) is made
    assert vocab.tensors(trie.device, 9).terminator == 9
    assert made.terminator == EOS
    assert make_vocab().tensors(trie.device).terminator == -1
    bare = trie.vocabulary(None).tensors(trie.device)
    assert trie.vocabulary(None).tensors(trie.device) is bare
    assert SidTrie.from_sids([[40]]).vocabulary(None).tensors().num_columns == 41
    gone = [weakref.ref(trie), weakref.ref(vocab)]
    del trie, vocab
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_a_trie_on_another_device_is_refused():
    processor = SidLogitsProcessor(make_trie(), make_vocab(begin=BEGIN, end=END))
    elsewhere = dict(dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"trie\.to\(device\) with 'meta' \(got 'cpu'\)"):
        processor(torch.zeros(2, 3, **elsewhere), torch.zeros(2, VOCAB, device="meta"))
    with pytest.raises(ValueError, match="logits must be on the trie's device"):
        processor(torch.full((2, 1), BEGIN), torch.zeros(2, VOCAB, device="meta"))


def test_filters_that_do_not_fit_are_refused():
    trie, vocab = SidTrie.from_sids([[1, 2], [3, 4]]), vocab_of(2, 6)
    other = SidTrie.from_sids([[1, 2]] * 5).filter(deny=[0])
    with pytest.raises(ValueError, match="filters must be over the trie's 2 items"):
        SidLogitsProcessor(trie, vocab, filters=other, prompt_length=1)
    filters = ItemFilter.stack([trie.filter(allow=[0])] * 3)
    processor = SidLogitsProcessor(trie, vocab, filters=filters, prompt_length=1)
    with pytest.raises(ValueError, match="filters must divide the 5 rows evenly"):
        processor(torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 40))


def test_nowhere_to_go_is_an_error_not_a_row_of_minus_infinity():
    trie, vocab = SidTrie.from_sids([[1], [1, 2], [3, 4]], [0, 1, 2]), vocab_of(2, 6)
    start = torch.zeros(1, 1, dtype=torch.int64)
    nothing = SidLogitsProcessor(trie, vocab, filters=trie.filter(allow=[]), prompt_length=1)
    with pytest.raises(ValueError, match="eos_token_id must be set"):
        nothing(start, torch.zeros(1, 40))
    # Only the item that ends at an inner prefix is left.
    short = SidLogitsProcessor(trie, vocab, filters=trie.filter(allow=[0]), prompt_length=1)
    inner = torch.cat([start, vocab.encode(torch.tensor([[1, -1]]))[:, :1]], 1)
    assert torch.isfinite(short(start, torch.zeros(1, 40))).sum() == 1
    with pytest.raises(ValueError, match="eos_token_id must be set"):
        short(inner, torch.zeros(1, 40))


BEGIN_REPORT = "tokens were generated without a constraint, because no row ever held vocab.begin"


def begin_reports(recwarn):
    return [w for w in recwarn.list if BEGIN_REPORT in str(w.message)]


def test_a_prompt_without_begin_is_reported_once(recwarn):
    """It would be free text from the first token to the last, without a word."""
    model = tiny_model("llama", VOCAB, eos_token_id=EOS)
    processors = [SidLogitsProcessor(make_trie(), make_vocab(begin=BEGIN, end=END))]
    ids, mask = prompts()

    def generate(ids):
        # The model must not write the token itself.
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=PAD,
            logits_processor=processors, suppress_tokens=[BEGIN],
        )  # fmt: skip

    with_begin = torch.cat([ids[:, :-1], torch.full((3, 1), BEGIN)], 1)
    generate(with_begin)
    one_row = with_begin.clone()
    one_row[:2, -1] = 7
    generate(one_row)
    generate(ids)
    assert not begin_reports(recwarn)  # whether the call has ended is known only later
    generate(ids)
    assert [str(w.message)[20:22] for w in begin_reports(recwarn)] == ["4 "]
    generate(ids)
    processors.clear()
    gc.collect()
    assert len(begin_reports(recwarn)) == 1


def test_the_last_call_without_begin_is_reported_too(recwarn):
    processor = SidLogitsProcessor(make_trie(), make_vocab(begin=BEGIN, end=END))
    for length in (3, 4):
        processor(torch.full((1, length), 7), torch.zeros(1, VOCAB))
    assert not begin_reports(recwarn)
    del processor
    gc.collect()
    assert len(begin_reports(recwarn)) == 1


def test_begin_is_not_missed_where_filters_allow_nothing(recwarn):
    trie = make_trie()
    vocab = make_vocab(begin=BEGIN, end=END)
    processor = SidLogitsProcessor(trie, vocab, trie.filter(allow=[]))
    for length in (3, 4):
        processor(torch.full((1, length), 7), torch.zeros(1, VOCAB))
    del processor
    gc.collect()
    assert not begin_reports(recwarn)
