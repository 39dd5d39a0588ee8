"""Which models hold a token tree, and what the others get instead."""

import copy
import gc
import importlib
import threading
import warnings
import weakref

import pytest
import torch
import transformers

from crs_fast.decode import Prompt, capability, recommend
from crs_fast.decode.lm.capability import sliding_window
from crs_fast.decode.search_request import SearchRequest
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import random_sids, tiny_model

from ..test_recommend import VOCAB, make_vocab, path_score, prompts

TREE = ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma", "gemma2", "phi", "opt", "neox"]
MASK = ["gptj", "falcon"]  # their attention gets no extra arguments
NEITHER = ["mpt", "bloom", "mamba"]


@pytest.mark.parametrize("kind", TREE + MASK + NEITHER)
def test_probe(kind):
    model = tiny_model(kind, VOCAB)
    before = copy.deepcopy(model.config.to_dict()), model.config._attn_implementation
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        able = [capability(model), capability(model)][1]
    assert able.attention == ("tree" if kind in TREE else "mask" if kind in MASK else None)
    ours = [w for w in caught if "token tree" in str(w.message)]
    assert len(ours) == (kind in NEITHER)
    assert bool(able.reason) == (kind in NEITHER)
    assert (model.config.to_dict(), model.config._attn_implementation) == before


def test_alibi_takes_a_mask_and_is_wrong_without_an_error():
    with pytest.warns(UserWarning, match="differ from sequential ones"):
        assert capability(tiny_model("mpt", VOCAB)).attention is None


def test_encoder_decoders_are_refused():
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    trie = SidTrie.from_sids(random_sids(2, 60, 3, 5))
    with pytest.raises(ValueError, match=r"must be decoder-only \(got .* T5ForConditional"):
        recommend(
            transformers.T5ForConditionalGeneration(config), *prompts((4,)), trie=trie,
            vocab=make_vocab(3, 5),
        )  # fmt: skip


def test_a_prompt_needs_a_tree():
    with (
        pytest.warns(match="beam search is used"),
        pytest.raises(ValueError, match="must hold a token tree"),
    ):
        Prompt(tiny_model("bloom", VOCAB), torch.ones(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["mpt", "bloom", "mamba"])
@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
@pytest.mark.filterwarnings("ignore:.*can't decode beams as a token tree")
def test_fallback_ranks_as_by_enumeration(kind, normalize):
    """Ragged SIDs, a filter, a temperature and more beams than items, without a tree."""
    model, vocab = tiny_model(kind, VOCAB), make_vocab(3, 4)
    sids = [[0], [0, 1], [0, 1, 2], [2, 3], [3], [1, 1, 1], [1, 1, 0]]
    trie, (ids, mask) = SidTrie.from_sids(sids, item_ids=list("abcdefg")), prompts((4, 4))
    filters = ItemFilter.stack([trie.filter(deny=["d", "c"]), None])
    out = recommend(
        model, ids, mask, trie=trie, vocab=vocab, num_beams=12, normalize=normalize,
        temperature=0.7, filters=filters,
    )  # fmt: skip
    for request, names in enumerate(("abefg", "abcdefg")):
        kept = [sids["abcdefg".index(n)] for n in names]

        def pool(level, prefix, kept=kept):
            if normalize == "vocab":
                return slice(None)
            legal = sorted({s[level] for s in kept if len(s) > level and s[:level] == prefix})
            return vocab.token_ids[level][legal if normalize == "legal" else slice(None)]

        scores = {
            name: path_score(
                model, ids[request : request + 1], vocab.encode(sid).tolist(),
                lambda level, sid=sid: pool(level, sid[:level]), 0.7,
            )
            for name, sid in zip(names, kept, strict=True)
        }  # fmt: skip
        got = dict(zip(out.items[request], out.item_scores[request], strict=True))
        assert got == pytest.approx(scores, abs=1e-4)
        assert out.item_scores[request] == sorted(got.values(), reverse=True)
        assert int(out.num_valid[request]) == len(names)


@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
@pytest.mark.parametrize("kind", ["gptj", "llama"])
def test_tree_and_fallback_agree(kind, normalize):
    from crs_fast.decode.sequential import sequential_beams

    model, vocab = tiny_model(kind, VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(2, 60, 3, 5, ragged=True))
    ids, mask = prompts((6, 3))
    mine = recommend(
        model, ids, mask, trie=trie, vocab=vocab, num_beams=9, normalize=normalize, temperature=1.3
    )
    request = SearchRequest(trie, vocab, 2, 9, normalize, 1.3, None)
    theirs = sequential_beams(model, ids, mask.bool(), request)
    if normalize != "legal":  # an only child costs nothing there, so whole SIDs tie
        assert torch.equal(mine.sids, theirs.sids)
    torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "extra", "window"),
    [
        ("mistral", {"sliding_window": 12}, 12),
        ("gemma2", {"sliding_window": 12}, 12),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 12}, None),
        ("llama", {}, None),
    ],
)
def test_windows(kind, extra, window):
    assert sliding_window(tiny_model(kind, VOCAB, **extra)) == window


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
@pytest.mark.parametrize("length", [7, 9, 10, 15])
def test_prompts_around_the_window(kind, length, monkeypatch):
    """Window 12, three levels: up to 9 tokens fit, though prompt and slots together don't; from 10
    on, and for prompts past the window, Hugging Face beam search takes over."""
    module = importlib.import_module("crs_fast.decode.recommend")
    calls = []
    real = module.sequential_beams
    monkeypatch.setattr(module, "sequential_beams", lambda *a: calls.append(1) or real(*a))
    model, vocab = tiny_model(kind, VOCAB, sliding_window=12), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(2, 60, 3, 5).unique(dim=0))
    ids, _ = prompts((length,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = recommend(model, ids, trie=trie, vocab=vocab, num_beams=60)
        recommend(model, ids.repeat(1, 2), trie=trie, vocab=vocab, num_beams=60)
    ours = [str(w.message) for w in caught if "attention window of 12 tokens" in str(w.message)]
    assert len(ours) == 1  # of both calls, the second of which is always too long
    assert len(calls) == 1 + (length + 3 > 12)
    scores = [
        path_score(model, ids, vocab.encode(sid).tolist(), lambda _: slice(None), 1.0)
        for sid in out.sids[0, :10]
    ]
    torch.testing.assert_close(out.scores[0, :10], torch.tensor(scores), atol=1e-4, rtol=1e-4)


def test_threads_share_a_model_and_the_probe():
    model, vocab = tiny_model("llama", VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(random_sids(2, 60, 3, 5))
    requests = [prompts((6, 3), seed) for seed in range(8)]
    alone = [recommend(model, i, m, trie=trie, vocab=vocab, num_beams=6) for i, m in requests]
    model = tiny_model("llama", VOCAB)
    together = [None] * len(requests)

    def work(at):
        ids, mask = requests[at]
        together[at] = recommend(model, ids, mask, trie=trie, vocab=vocab, num_beams=6)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.sids, b.sids)


def test_the_verdict_keeps_no_model_alive():
    model = tiny_model("llama", VOCAB)
    capability(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
