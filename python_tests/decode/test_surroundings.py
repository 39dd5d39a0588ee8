"""`recommend` in the places people call it from, and what it leaves behind."""

import copy
import sys
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model

from crs_fast.decode import capability, recommend
from crs_fast.decode.lm.tree_view import NAME, tree_view
from crs_fast.trie import SidTrie
from python_tests.helpers import random_sids, tiny_model

from .test_recommend import VOCAB, make_vocab, path_score, prompts

LEVELS, CODES = 3, 5


def system(kind="llama", **extra):
    trie = SidTrie.from_sids(random_sids(4, 60, LEVELS, CODES).unique(dim=0))
    return tiny_model(kind, VOCAB, **extra), trie, make_vocab(LEVELS, CODES), prompts((6, 4))


def search(model, trie, vocab, prompt, **kwargs):
    return recommend(model, *prompt, trie=trie, vocab=vocab, num_beams=7, **kwargs)


def test_inference_mode():
    arguments = system()
    outside = search(*arguments)
    with torch.inference_mode():
        inside = search(*arguments)
    assert torch.equal(outside.sids, inside.sids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", ["vocab", "level"])
def test_half_precision(dtype, normalize):
    """Scores are those of the same path in sequence, as far as the precision goes."""
    model, trie, vocab, (ids, mask) = system("qwen3")
    model = model.to(dtype)
    assert capability(model).attention == "tree"
    out = search(model, trie, vocab, (ids, mask), normalize=normalize)
    for request in range(2):
        for beam in range(7):
            tokens = vocab.encode(out.sids[request, beam]).tolist()
            score = path_score(
                model, ids[request][mask[request].bool()][None], tokens,
                lambda level: slice(None) if normalize == "vocab" else vocab.token_ids[level], 1.0,
            )  # fmt: skip
            assert float(out.scores[request, beam]) == pytest.approx(score, rel=0.05, abs=0.3)


def test_adapters():
    """LoRA on attention, MLP and head: on, off, and merged."""
    model, trie, vocab, prompt = system()
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"]
    )
    bare = search(copy.deepcopy(model), trie, vocab, prompt)
    tuned = get_peft_model(model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    assert capability(tuned).attention == "tree"
    for normalize in ("vocab", "level"):
        on = search(tuned, trie, vocab, prompt, normalize=normalize)
        merged = copy.deepcopy(tuned).merge_and_unload()
        apart = search(merged, trie, vocab, prompt, normalize=normalize)
        assert torch.equal(on.sids, apart.sids)
        torch.testing.assert_close(on.scores, apart.scores, atol=1e-3, rtol=1e-4)
    with tuned.disable_adapter():
        off = search(tuned, trie, vocab, prompt)
    assert torch.equal(off.sids, bare.sids)
    assert not torch.equal(on.sids, bare.sids)


def test_while_another_thread_imports_peft(monkeypatch):
    """What is in `sys.modules` then has no classes yet. A server imports it for a text encoder
    while it answers."""
    expected = search(*(arguments := system()))
    monkeypatch.setitem(sys.modules, "peft", types.ModuleType("peft"))
    assert torch.equal(search(*arguments).sids, expected.sids)


def test_one_device_map(tmp_path):
    from transformers import AutoModelForCausalLM

    model, trie, vocab, prompt = system()
    model.save_pretrained(tmp_path)
    mapped = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map={"": "cpu"}, dtype=torch.float32
    )
    assert capability(mapped).attention == "tree"
    assert torch.equal(
        search(mapped, trie, vocab, prompt).sids, search(model, trie, vocab, prompt).sids
    )


def state(model):
    return {
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "parameters": [(name, id(p), p._version) for name, p in model.named_parameters()],
        "training": model.training,
        "generation": model.generation_config.to_dict(),
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "falcon"])
def test_model_and_config_stay_as_they_were_after_an_exception_too(kind):
    model, trie, vocab, prompt = system(kind)
    before = state(model)
    first = search(model, trie, vocab, prompt)
    assert state(model) == before
    calls = []

    def fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("stop")

    handle = model.get_input_embeddings().register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="stop"):
        search(model, trie, vocab, prompt)
    handle.remove()
    assert state(model) == before
    assert torch.equal(search(model, trie, vocab, prompt).sids, first.sids)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_without_a_tree_the_registered_attention_is_the_models_own(own):
    model, _, _, (ids, mask) = system(attn_implementation=own)
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).logits
        view = tree_view(model)
        assert view.config._attn_implementation == NAME
        got = view(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(got[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_eager_and_sdpa_prefill_agree():
    model, trie, vocab, prompt = system()
    eager, *_ = system(attn_implementation="eager")
    a, b = (search(m, trie, vocab, prompt) for m in (model, eager))
    assert torch.equal(a.sids, b.sids)
