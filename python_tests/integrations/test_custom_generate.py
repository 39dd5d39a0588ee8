"""`custom_generate` from a directory, by transformers' own loader."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import crs_fast
from crs_fast.integrations.custom_generate import generate, write_custom_generate
from python_tests.helpers import tiny_model

HOW = dict(num_beams=5, num_return_sequences=5, max_new_tokens=3, do_sample=False, pad_token_id=0)


@pytest.fixture(autouse=True)
def modules(monkeypatch, tmp_path):
    """transformers copies a directory's code into its own cache of modules."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def prompt(served):
    return torch.tensor([served.prompts[1]])


@pytest.fixture
def answer(served, prompt):
    return served.model.generate(
        prompt, custom_generate=crs_fast.beam_search, trie=served.trie, vocab=served.vocab, **HOW
    )


def test_a_trained_directory(served, prompt, answer):
    """The catalogue is the directory's. The model still loads without trusting its code."""
    write_custom_generate(served.folder)
    model = AutoModelForCausalLM.from_pretrained(served.folder)
    folder = str(served.folder)
    out = model.generate(prompt, custom_generate=folder, trust_remote_code=True, **HOW)
    assert torch.equal(out, answer)
    trusted = AutoModelForCausalLM.from_pretrained(served.folder, trust_remote_code=True)
    assert torch.equal(trusted.generate(input_ids=prompt, **HOW), answer)
    assert crs_fast.Recommender.from_pretrained(served.folder).bundle.trie.num_items == 8


def test_a_directory_for_the_code_alone(served, prompt, answer, tmp_path):
    write_custom_generate(tmp_path / "beams")
    out = served.model.generate(
        prompt, custom_generate=str(tmp_path / "beams"), trust_remote_code=True,
        trie=served.trie, vocab=served.vocab, **HOW,
    )  # fmt: skip
    assert torch.equal(out, answer)


def test_no_catalogue_anywhere(served, prompt, tmp_path):
    model = tiny_model("llama", 32)
    with pytest.raises(ValueError, match="trie must be given"):
        generate(model, prompt)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must hold a catalogue"):
        generate(AutoModelForCausalLM.from_pretrained(tmp_path), prompt)
