"""`generate(custom_generate=crs_fast.beam_search)` against `generate` with the processor."""

import pytest
import torch
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

import crs_fast
from crs_fast.decode import SidLogitsProcessor
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import random_sids, tiny_model

from .test_recommend import PAD, VOCAB, make_vocab, prompts

LEVELS, CODES = 3, 5


def system(kind="llama", **extra):
    model, vocab = tiny_model(kind, VOCAB, **extra), make_vocab(LEVELS, CODES)
    trie = SidTrie.from_sids(random_sids(4, 60, LEVELS, CODES).unique(dim=0))
    return model, trie, vocab, prompts((6, 4))


def both(model, trie, vocab, ids, mask, filters=None, **kwargs):
    """Ours and Hugging Face's, from the same arguments."""
    common = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS, do_sample=False,
        pad_token_id=PAD, **kwargs,
    )  # fmt: skip
    processor = SidLogitsProcessor(trie, vocab, filters, prompt_length=ids.shape[1])
    ours = model.generate(
        **common, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab, filters=filters
    )
    return ours, model.generate(**common, logits_processor=[processor])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize(("beams", "returned"), [(9, 9), (9, 3), (4, 1), (1, 1)])
def test_the_same_tokens_as_hugging_face(kind, beams, returned):
    model, trie, vocab, (ids, mask) = system(kind)
    ours, theirs = both(
        model, trie, vocab, ids, mask, num_beams=beams, num_return_sequences=returned
    )
    assert ours.dtype == torch.int64
    assert ours.shape == (2 * returned, ids.shape[1] + LEVELS)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_scores_carry_the_length_penalty(penalty):
    model, trie, vocab, (ids, mask) = system()
    keep = ItemFilter.stack([trie.filter(allow=list(range(0, 30))), None])
    ours, theirs = both(
        model, trie, vocab, ids, mask, keep, num_beams=7, num_return_sequences=5,
        length_penalty=penalty, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert isinstance(ours, GenerateBeamDecoderOnlyOutput)
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("returned", [7, 3])
def test_beam_indices(returned, processed):
    """Which beam of the step before each token continues, as Hugging Face counts them."""
    model, trie, vocab, (ids, mask) = system()
    ours, theirs = both(
        model, trie, vocab, ids, mask, num_beams=7, num_return_sequences=returned,
        return_dict_in_generate=True, repetition_penalty=1.1 if processed else 1.0,
    )  # fmt: skip
    assert ours.beam_indices.unique().numel() > 4
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    assert ours.sequences_scores is None


def test_beam_indices_of_ragged_sids_and_invalid_rows():
    model, _, vocab, (ids, _) = system()
    trie = SidTrie.from_sids([[0, 1], [2], [2, 3]])
    out = model.generate(
        ids, num_beams=5, num_return_sequences=5, max_new_tokens=2, pad_token_id=PAD,
        return_dict_in_generate=True, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab,
    )  # fmt: skip
    tokens = out.sequences[:, ids.shape[1] :]
    assert torch.equal(out.beam_indices >= 0, tokens != PAD)
    # A token and the one before it make a SID's codes, whatever beams they came from.
    assert set(out.beam_indices[:5, 0].tolist()) == {0, -1}
    assert set(out.beam_indices[5:, 0].tolist()) == {5, -1}


def test_no_mask_means_all_ones():
    model, trie, vocab, _ = system()
    ids, mask = prompts((5, 5))
    ours, theirs = both(model, trie, vocab, ids, mask, num_beams=6, num_return_sequences=6)
    assert torch.equal(ours, theirs)
    ours, _ = both(model, trie, vocab, ids, None, num_beams=6, num_return_sequences=6)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("processed", [False, True])
def test_invalid_rows_hold_padding_and_minus_infinity(processed):
    model, _, vocab, (ids, mask) = system()
    trie = SidTrie.from_sids([[0, 1], [2], [2, 3]])
    kwargs = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=8, num_beams=6, num_return_sequences=6,
        pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
        custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab,
    )  # fmt: skip
    if processed:
        with pytest.warns(UserWarning, match="logits processors"):
            out = model.generate(**kwargs, logits_processor=[lambda ids, scores: scores])
    else:
        out = model.generate(**kwargs)
    assert out.sequences.shape == (12, ids.shape[1] + 2)
    rows = out.sequences[:, ids.shape[1] :].view(2, 6, 2)
    for row, scores in zip(rows, out.sequences_scores.view(2, 6), strict=True):
        whole = {tuple(r) for r in row[:3].tolist()}
        tokens = vocab.encode([[0, 1], [2, -1], [2, 3]]).clamp(min=PAD)
        assert whole == {tuple(t) for t in tokens.tolist()}
        assert row[3:].eq(PAD).all()
        assert scores[3:].eq(float("-inf")).all()
        assert scores[:3].isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"logits_processor": [lambda ids, scores: scores - 1.0]}, "logits processors"),
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor"),
        ({"do_sample": True}, "do_sample=True"),
        ({"max_time": 1e6}, "MaxTimeCriteria"),
        ({"output_hidden_states": True}, "output_hidden_states=True"),
    ],
    ids=["processor", "penalty", "sample", "time", "hidden"],
)
def test_what_the_tree_cannot_honour_falls_back_with_a_warning(kwargs, reason):
    model, trie, vocab, (ids, mask) = system()
    common = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS, num_beams=5, pad_token_id=PAD,
        num_return_sequences=5, **kwargs,
    )  # fmt: skip
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=reason):
        ours = model.generate(
            **common, custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab
        )
    processor = SidLogitsProcessor(trie, vocab, prompt_length=ids.shape[1])
    common["logits_processor"] = [*kwargs.get("logits_processor", []), processor]
    torch.manual_seed(1)
    assert torch.equal(ours, model.generate(**common))


def test_a_filled_cache_is_used():
    model, trie, vocab, _ = system()
    ids, mask = prompts((6, 6))
    cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    cache.batch_repeat_interleave(5)
    kwargs = dict(attention_mask=mask, num_beams=5, num_return_sequences=5, pad_token_id=PAD,
                  custom_generate=crs_fast.beam_search, trie=trie, vocab=vocab)  # fmt: skip
    with pytest.warns(UserWarning, match="a cache that holds something"):
        ours = model.generate(ids, past_key_values=cache, **kwargs)
    assert torch.equal(ours, model.generate(ids, **kwargs))


def test_models_without_a_tree_and_sliding_windows():
    for model in (tiny_model("mpt", VOCAB), tiny_model("mistral", VOCAB, sliding_window=8)):
        _, trie, vocab, _ = system()
        ids, mask = prompts((6, 6))
        with pytest.warns() if model.config.model_type == "mpt" else _nothing():
            ours, theirs = both(model, trie, vocab, ids, mask, num_beams=5, num_return_sequences=5)
        assert torch.equal(ours, theirs)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_normalisation_temperature_and_codes_as_tokens():
    model, trie, _, (ids, mask) = system()
    kwargs = dict(num_beams=6, normalize="level", temperature=0.5)
    out = crs_fast.recommend(model, ids, mask, trie=trie, **kwargs)
    ours = model.generate(
        ids, attention_mask=mask, custom_generate=crs_fast.beam_search, trie=trie,
        num_return_sequences=6, pad_token_id=PAD, **kwargs,
    )  # fmt: skip
    assert torch.equal(ours[:, ids.shape[1] :].view(2, 6, LEVELS), out.sids)


def test_refusals():
    model, trie, vocab, (ids, mask) = system()
    kwargs = dict(input_ids=ids, attention_mask=mask, custom_generate=crs_fast.beam_search)
    with pytest.raises(ValueError, match="trie must be given"):
        model.generate(**kwargs, num_beams=2)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 3, the trie's 3 levels"):
        model.generate(**kwargs, trie=trie, vocab=vocab, num_beams=2, max_new_tokens=2)
    for how in (dict(), dict(repetition_penalty=1.2)):  # by the tree, and by Hugging Face
        with pytest.raises(ValueError, match="normalize must be one of"):
            model.generate(**kwargs, trie=trie, vocab=vocab, num_beams=2, normalize="foo", **how)
        out = model.generate(
            **kwargs, trie=trie, vocab=vocab, num_beams=2, filters=trie.filter(allow=[]),
            return_dict_in_generate=True, output_scores=True, **how,
        )  # fmt: skip
        assert out.sequences_scores.tolist() == [float("-inf")] * ids.shape[0]


def test_sampling_that_the_models_config_asks_for_is_left_out(recwarn):
    """Qwen-Instruct's generation config samples; nobody asked the beams to."""
    model, trie, vocab, (ids, mask) = system()
    call = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=LEVELS, num_beams=6,
        num_return_sequences=6, pad_token_id=PAD, custom_generate=crs_fast.beam_search, trie=trie,
        vocab=vocab,
    )  # fmt: skip
    expected = model.generate(**call)
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=2, top_p=0.8)
    assert torch.equal(model.generate(**call), expected)
    assert not [w for w in recwarn.list if "crs_fast" in str(w.message)]
