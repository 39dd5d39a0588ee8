"""SidLogitsProcessor in a server's loop: bad rows, rows that differ, and memory that is reused."""

import subprocess
import sys
import warnings

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import tiny_model

from .test_processor import BEGIN, END, EOS, PAD, VOCAB, make_trie, make_vocab, prompts

TRIE = SidTrie.from_sids([[0, 1, 2], [0, 1, 3], [4, 0, 0]])


def in_text(**kwargs):
    return SidLogitsProcessor(TRIE, make_vocab(begin=BEGIN, end=END, eos=EOS), **kwargs)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_bad_row_leaves_its_batch_alone(inplace):
    a = make_vocab().token_ids[0].tolist()
    rows = [[9, BEGIN, a[0]], [9, BEGIN, a[1]], [BEGIN, a[0], 9], [9, 9, 9], [9, 9, BEGIN]]
    ids, scores = torch.tensor(rows), torch.randn(5, VOCAB)
    before = scores.clone()
    with pytest.raises(ValueError, match="open SID of row 1 must be"):
        in_text()(ids, scores.clone())
    with pytest.warns(UserWarning, match="rows are left without a constraint"):
        out = in_text(on_illegal="free", inplace=inplace)(ids, scores)
    assert (out is scores) == inplace
    good, bad = [0, 3, 4], [1, 2]
    assert torch.equal(out[bad], before[bad])
    assert torch.equal(out[good], in_text()(ids[good], before[good]))
    if not inplace:
        assert torch.equal(scores, before)


def test_a_row_without_an_end_token_is_freed():
    vocab = make_vocab(begin=BEGIN)
    whole = vocab.encode([4, 0, 0]).tolist()
    processor = SidLogitsProcessor(TRIE, vocab, on_illegal="free")
    scores = torch.randn(1, VOCAB)
    with pytest.warns(UserWarning, match="no terminator is set"):
        assert torch.equal(processor(torch.tensor([[BEGIN, *whole]]), scores), scores)


@pytest.mark.parametrize("score", [-torch.inf, torch.nan])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_row_whose_legal_tokens_are_all_forbidden_chooses_evenly(inplace, score):
    a = make_vocab().token_ids[0].tolist()
    scores = torch.randn(2, VOCAB)
    scores[0, [a[0], a[4]]] = score
    expected = in_text()(torch.tensor([[BEGIN]]), scores[1:].clone())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = in_text(on_illegal="free", inplace=inplace)(torch.tensor([[BEGIN], [BEGIN]]), scores)
    assert (out[0] > -torch.inf).nonzero().flatten().tolist() == [a[0], a[4]]
    assert out[0, a[0]] == out[0, a[4]] == 0
    assert torch.equal(out[1:], expected)


def test_free_text_that_is_forbidden_is_not_ours_to_mend():
    scores = torch.full((2, VOCAB), -torch.inf)
    scores[1] = 0.0
    ids = torch.tensor([[9], [BEGIN]])
    assert torch.equal(in_text(on_illegal="free")(ids, scores)[0], scores[0])
    with pytest.raises(ValueError, match="row 0 must have a legal token"):
        in_text()(ids, scores)


def test_the_same_beams_in_place():
    model, vocab, trie = tiny_model("llama", VOCAB), make_vocab(), make_trie(40)
    ids, mask = prompts()
    common = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=3, num_beams=10, do_sample=False,
        num_return_sequences=10, pad_token_id=PAD, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    outs = [
        model.generate(
            **common,
            logits_processor=[SidLogitsProcessor(trie, vocab, None, ids.shape[1], inplace=inplace)],
        )
        for inplace in (False, True)
    ]
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    assert torch.equal(outs[0].sequences_scores, outs[1].sequences_scores)


@pytest.mark.parametrize("begin", [None, BEGIN])
def test_rows_of_unequal_length(begin):
    """Each row as if it were alone; what stands behind its end is not read."""
    vocab = make_vocab(begin=begin, end=END, eos=EOS)
    a, b, c = (ids.tolist() for ids in vocab.token_ids)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(4, 20, (n,), generator=generator).tolist() for n in (0, 5, 30, 1, 40)]
    sids = [[a[0], b[1]], [], [a[4]], [a[0], b[1], c[2], END], [a[0], b[1], c[3]]]
    opened = [[*text, *([] if begin is None else [BEGIN])] for text in texts]
    rows = [[*text, *sid] for text, sid in zip(opened, sids, strict=True)]
    if begin is not None:
        rows += [[], [BEGIN, *texts[2], END], [*texts[1], BEGIN, a[0], b[1], c[2], END, *texts[4]]]
    width = max(map(len, rows)) + 3
    # Behind the end of a row stands what would open a SID if it were read.
    ids = torch.tensor([[*row, BEGIN, *[a[0]] * (width - len(row) - 1)] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    starts = None if begin is not None else torch.tensor([len(row) for row in opened])
    scores = torch.randn(len(rows), VOCAB)
    processor = SidLogitsProcessor(
        TRIE, vocab, prompt_length=None if begin is not None else 0, on_illegal="free"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = processor.mask(ids, scores, lengths=lengths, prompt_lengths=starts)
        for row, tokens in enumerate(rows):
            if not tokens:
                continue
            alone = SidLogitsProcessor(
                TRIE, vocab, None, None if starts is None else int(starts[row]), on_illegal="free"
            )
            assert torch.equal(out[row], alone(torch.tensor([tokens]), scores[row : row + 1])[0])


def test_rows_share_filters():
    a = make_vocab().token_ids[0].tolist()
    filters = ItemFilter.stack([TRIE.filter(allow=[2]), TRIE.filter(allow=[])])
    processor = in_text(filters=filters)
    ids = torch.tensor([[BEGIN]] * 4 + [[9]] * 3)
    which = torch.tensor([0, -1, 1, 0, 0, -1, 1])
    out = processor.mask(ids, torch.zeros(7, VOCAB), filter_of_row=which)
    legal = [set((row == 0).nonzero().flatten().tolist()) for row in out]
    assert legal[:4] == [{a[4]}, {a[0], a[4]}, {END}, {a[4]}]
    assert [BEGIN in row for row in legal[4:]] == [True, True, False]
    denied = torch.tensor([[BEGIN, a[0]]] * 2)
    processor.mask(denied[:1], torch.zeros(1, VOCAB), filter_of_row=torch.tensor([-1]))
    with pytest.raises(ValueError, match="open SID of row 1 must be"):
        processor.mask(denied, torch.zeros(2, VOCAB), filter_of_row=torch.tensor([-1, 0]))


def test_arguments_that_do_not_fit_are_refused():
    ids, scores = torch.full((2, 3), BEGIN), torch.zeros(2, VOCAB)
    with pytest.raises(ValueError, match="on_illegal must be one of"):
        in_text(on_illegal="ignore")
    for name in ("lengths", "prompt_lengths"):
        for bad in (torch.tensor([3]), torch.tensor([3.0, 3.0])):
            with pytest.raises(ValueError, match=rf"{name} must be int64 \[2\] on the device"):
                in_text().mask(ids, scores, **{name: bad})
    for bad in ([4, 3], [-1, 3]):
        with pytest.raises(ValueError, match=r"lengths must lie in 0 \.\. 3"):
            in_text().mask(ids, scores, lengths=torch.tensor(bad))
    with pytest.raises(ValueError, match="filters must be given beside filter_of_row"):
        in_text().mask(ids, scores, filter_of_row=torch.tensor([0, 0]))


def test_the_last_begin_is_found_wherever_it_stands():
    """Long rows are read from their end."""
    a, b, c = (ids.tolist() for ids in make_vocab().token_ids)
    sid = [BEGIN, a[0], b[1], c[2], END]
    rows = [
        [9] * 200,
        [*sid, *[9] * 195],
        [*[9] * 100, *sid, *[9] * 95],
        [*sid, *[9] * 194, BEGIN],
        [*[9] * 195, *sid],
        [*sid, *[9] * 192, BEGIN, a[0], b[1]],
    ]
    grammar = in_text().grammar
    last = [max((i + 1 for i, t in enumerate(row) if t == BEGIN), default=-1) for row in rows]
    assert grammar.starts(torch.tensor(rows)).tolist() == last
    lengths = torch.tensor([200, 3, 101, 199, 4, 197])
    cut = [row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]
    last = [max((i + 1 for i, t in enumerate(row) if t == BEGIN), default=-1) for row in cut]
    assert grammar.starts(torch.tensor(rows), lengths).tolist() == last


def test_it_is_a_logits_processor_of_transformers():
    from transformers import LogitsProcessor, LogitsProcessorList

    processor = in_text()
    assert isinstance(processor, LogitsProcessor)
    assert isinstance(processor, SidLogitsProcessor)
    out = LogitsProcessorList([processor])(torch.full((1, 1), BEGIN), torch.zeros(1, VOCAB))
    assert torch.isfinite(out).sum() == 2


def test_the_class_is_imported_without_transformers():
    code = (
        "import sys, crs_fast; crs_fast.SidLogitsProcessor;"
        "assert 'transformers' not in sys.modules;"
        "vocab = crs_fast.SidVocab([[5, 6]], begin=1, end=2);"
        "made = crs_fast.SidLogitsProcessor(crs_fast.SidTrie.from_sids([[0]]), vocab);"
        "import transformers; assert isinstance(made, transformers.LogitsProcessor)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_continuous_batching_is_refused():
    """Before the loop starts, and in the loop: there a processor sees one token of each row."""
    continuous = pytest.importorskip("transformers.generation.continuous_batching")
    from transformers import LogitsProcessorList

    lists = continuous.cb_logits_processors.ContinuousBatchingLogitsProcessorList
    with pytest.raises(ValueError, match=r"continuous batching .* must not be used"):
        lists(LogitsProcessorList([in_text()]))
    with pytest.raises(ValueError, match=r"must be the whole rows \[R, T\] .got .2,., as cont"):
        in_text()(torch.tensor([BEGIN, 9]), torch.zeros(2, VOCAB))
