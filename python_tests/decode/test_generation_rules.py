"""No item that doesn't exist comes out of `generate`, whatever else is switched on: items, or a
clear error."""

import warnings

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor, beam_search
from crs_fast.trie import SidTrie, SidVocab
from python_tests.helpers import tiny_model

PAD, EOS, BEGIN, END, FIRST, CODES, LEVELS, VOCAB = 0, 2, 5, 6, 20, 4, 3, 64
# After two codes only one may follow, and all of them stand in the prompt.
SIDS = [[0, 0, 0], [0, 1, 1], [1, 0, 2], [1, 1, 0], [2, 0, 1]]
MANY = torch.cartesian_prod(*[torch.arange(CODES)] * LEVELS)
TOKENS = FIRST + torch.arange(LEVELS * CODES).view(LEVELS, CODES)
LAST = TOKENS[-1].tolist()

MODES = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True, top_k=0),
    "beams": dict(do_sample=False, num_beams=4, num_return_sequences=4),
    "beam_sampling": dict(do_sample=True, num_beams=4, num_return_sequences=4),
    "prompt_lookup": dict(do_sample=False, prompt_lookup_num_tokens=4),
    "assisted": dict(do_sample=False, num_assistant_tokens=3),
}
FORBIDDING = {
    "no_repeat_ngram_size": dict(no_repeat_ngram_size=3),
    "no_repeat_2grams": dict(no_repeat_ngram_size=2),
    "bad_words_ids": dict(bad_words_ids=[[t] for t in LAST]),
    "bad_words_of_two": dict(bad_words_ids=[[a, b] for a in TOKENS[1].tolist() for b in LAST]),
    "suppress_tokens": dict(suppress_tokens=LAST),
    "begin_suppress_tokens": dict(begin_suppress_tokens=TOKENS[0].tolist()),
    "forced_eos_token_id": dict(forced_eos_token_id=EOS),
    "prefix_allowed_tokens_fn": dict(prefix_allowed_tokens_fn=lambda batch, ids: [9, 10]),
    "sequence_bias": dict(sequence_bias=[[[t], float("-inf")] for t in LAST]),
}
HARMLESS = {
    "none": {},
    "temperature": dict(temperature=0.2),
    "top_k": dict(top_k=2),
    "top_p": dict(top_p=0.3),
    "min_p": dict(min_p=0.5),
    "typical_p": dict(typical_p=0.5),
    "epsilon_cutoff": dict(epsilon_cutoff=0.1),
    "eta_cutoff": dict(eta_cutoff=0.1),
    "repetition_penalty": dict(repetition_penalty=5.0),
    "renormalize_logits": dict(renormalize_logits=True),
    "guidance_scale": dict(guidance_scale=1.5),
    "min_new_tokens": dict(min_new_tokens=LEVELS),
}


def setting(at_once, sids=SIDS):
    trie = SidTrie.from_sids(sids)
    frame = dict(eos=EOS) if at_once else dict(begin=BEGIN, end=END, eos=EOS)
    vocab = SidVocab(TOKENS, **frame)
    named = [t for sid in vocab.encode(SIDS).tolist() for t in (BEGIN, *sid, END, 50)]
    prompt = torch.tensor([[51, *named, 52, *([] if at_once else [BEGIN])]])
    length = prompt.shape[1] if at_once else None
    return trie, vocab, prompt, SidLogitsProcessor(trie, vocab, prompt_length=length)


def generate(mode, rule, at_once, seed=0, sids=SIDS):
    """The items that generated rows name: None where a row names none."""
    trie, vocab, prompt, processor = setting(at_once, sids)
    kwargs = dict(MODES[mode])
    if mode == "assisted":
        kwargs["assistant_model"] = tiny_model("llama", VOCAB, seed=7)
    torch.manual_seed(seed)
    rows = tiny_model("llama", VOCAB, seed=3).generate(
        input_ids=prompt, logits_processor=[processor], max_new_tokens=LEVELS + (not at_once),
        pad_token_id=PAD, eos_token_id=EOS, **{**kwargs, **rule},
    )  # fmt: skip
    written = rows[:, prompt.shape[1] :][:, :LEVELS]
    found = trie.items(vocab.decode(written)) if written.shape[1] == LEVELS else []
    return [items[0] if items else None for items in found] or [None]


@pytest.mark.parametrize("at_once", [True, False], ids=["at_once", "in_text"])
@pytest.mark.parametrize("rule", FORBIDDING)
@pytest.mark.parametrize("mode", MODES)
def test_rules_that_leave_no_token_are_refused_by_name(mode, rule, at_once):
    with pytest.raises(
        ValueError, match=r"SidLogitsProcessor: row 0 must have a legal token .*-inf"
    ):
        generate(mode, FORBIDDING[rule], at_once)


@pytest.mark.parametrize("at_once", [True, False], ids=["at_once", "in_text"])
@pytest.mark.parametrize("rule", HARMLESS)
@pytest.mark.parametrize("mode", MODES)
def test_other_rules_give_items_or_a_clear_error(mode, rule, at_once):
    refused = 0
    sids = MANY if rule == "none" else SIDS
    for seed in range(5 if "sampling" in mode else 1):
        try:
            found = generate(mode, HARMLESS[rule], at_once, seed, sids)
        except ValueError as problem:
            # Fewer continuations than beams: five items, and rules that leave one or two tokens.
            found, refused = None, refused + 1
            said = str(problem)
        assert found is None or None not in found
    if refused:
        assert mode == "beam_sampling"
        assert rule != "none"
        assert "beam sampling must draw a cont" in said or "custom_generate=crs_fast.b" in said


def test_beam_sampling_of_a_real_catalogue_gives_items_alone():
    """More beams than codes of a level, and a top_k below the beams: dead beams at every start."""
    torch.manual_seed(0)
    sids = torch.unique(torch.randint(0, 32, (3000, 3)), dim=0)
    trie = SidTrie.from_sids(sids)
    vocab = SidVocab(10 + torch.arange(96).view(3, 32), begin=BEGIN, end=END, eos=EOS)
    model, prompt = tiny_model("llama", 128, seed=1), torch.tensor([[7, 8, 9, BEGIN], [9, 8, 7, 5]])
    for rule in (
        dict(top_k=20, top_p=0.95, temperature=0.6),
        dict(top_p=0.9, temperature=0.6),
        dict(top_k=20, top_p=0.8, temperature=0.7, repetition_penalty=1.05),
    ):
        rows = model.generate(
            input_ids=prompt, logits_processor=[SidLogitsProcessor(trie, vocab)], num_beams=40,
            num_return_sequences=40, do_sample=True, max_new_tokens=4, pad_token_id=PAD, **rule,
        )  # fmt: skip
        named = trie.items(vocab.decode(rows[:, 4:7]))
        assert all(named)
        for half in (named[:40], named[40:]):
            assert len({items[0] for items in half}) == 40


def test_an_illegal_prompt_is_refused_in_beam_sampling_too():
    _, vocab, _, processor = setting(False)
    bad = torch.tensor([[9, BEGIN, *vocab.encode([3, 3])[:1].tolist()]])
    good = torch.tensor([[8, BEGIN, *vocab.encode([0, 0])[:1].tolist()]])
    for prompt in (bad, torch.cat([good, bad])):
        with pytest.raises(ValueError, match="must be the prefix of an allowed item's"):
            tiny_model("llama", VOCAB).generate(
                input_ids=prompt, logits_processor=[processor], max_new_tokens=3,
                pad_token_id=PAD, num_beams=4, do_sample=True,
            )  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("inside", [True, False])
def test_scores_that_are_no_numbers_are_refused(value, inside):
    *_, processor = setting(False)
    ids = torch.tensor([[9, BEGIN], [9, BEGIN if inside else 9]])
    scores = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    processor(ids, scores)
    scores[1] = float(value)
    with pytest.raises(ValueError, match="row 1"):
        processor(ids, scores)


@pytest.mark.parametrize("rule", [*FORBIDDING, *HARMLESS])
@pytest.mark.parametrize("mode", ["beams", "beam_sampling"])
def test_beam_search_as_decoding_loop_marks_what_is_no_item(mode, rule):
    trie, vocab, prompt, _ = setting(True)
    torch.manual_seed(0)
    rules = {**FORBIDDING, **HARMLESS}[rule]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = tiny_model("llama", VOCAB, seed=3).generate(
            input_ids=prompt, custom_generate=beam_search, trie=trie, vocab=vocab,
            max_new_tokens=LEVELS, pad_token_id=PAD, eos_token_id=EOS,
            **{**MODES[mode], **rules},
        )  # fmt: skip
    for row in out[:, prompt.shape[1] :]:
        assert bool((row == PAD).all()) or trie.items(vocab.decode(row[None]))[0]
