"""`recommend` gives the sums of log-probs of plain forward passes, whatever the model's own
settings, wrappers and state are, and leaves the model as it was."""

import copy
import warnings

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)  # fmt: skip
from transformers import GenerationConfig

from crs_fast.decode import beam_search, capability, recommend, sequential
from crs_fast.decode.lm.model_state import Sequential
from crs_fast.trie import SidTrie
from python_tests.helpers import tiny_model

from .test_recommend import VOCAB, make_vocab, prompts

LEVELS, CODES = 3, 3
TRIE = SidTrie.from_sids(torch.cartesian_prod(*[torch.arange(CODES)] * LEVELS))
SIDS = make_vocab(LEVELS, CODES)
ALL = TRIE.num_items
PROMPTS = prompts((9, 6))  # left-padded
pytestmark = pytest.mark.filterwarnings("ignore")


@torch.no_grad()
def exact(model, ids=PROMPTS[0], mask=PROMPTS[1]):
    """Scores [B, N] of every item, in the trie's order, by plain forward passes."""
    tokens, rows = SIDS.encode(TRIE.sids()), []
    for row, seen in zip(ids, mask.bool(), strict=True):
        paths = torch.cat([row[seen].expand(ALL, -1), tokens], 1)
        logits = model(input_ids=paths, use_cache=False).logits[:, -LEVELS - 1 : -1].float()
        rows.append(logits.log_softmax(2).gather(2, tokens[..., None]).sum((1, 2)))
    return torch.stack(rows)


@torch.no_grad()
def exact_token_by_token(model, ids, mask):
    """`exact` where logits depend on how much follows: the last ones of each prefix."""
    tokens, rows = SIDS.encode(TRIE.sids()), []
    for row, seen in zip(ids, mask.bool(), strict=True):
        total = torch.zeros(ALL)
        for level in range(LEVELS):
            prefix = torch.cat([row[seen].expand(ALL, -1), tokens[:, :level]], 1)
            logp = model(input_ids=prefix, use_cache=False).logits[:, -1].log_softmax(1)
            total += logp.gather(1, tokens[:, level, None])[:, 0]
        rows.append(total)
    return torch.stack(rows)


def scores(model, prompt=PROMPTS, **kwargs):
    out = recommend(model, *prompt, trie=TRIE, vocab=SIDS, num_beams=ALL, **kwargs)
    assert out.num_valid.tolist() == [ALL] * len(prompt[0])
    found = torch.empty(len(prompt[0]), ALL)
    for row, (items, values) in enumerate(zip(out.items, out.item_scores, strict=True)):
        found[row, [TRIE.item_ids.tolist().index(i) for i in items]] = torch.tensor(values)
    return found


def check(model, expected=None, atol=1e-4):
    expected = exact(model) if expected is None else expected
    torch.testing.assert_close(scores(model), expected, atol=atol, rtol=1e-4)


SETTINGS = [
    {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"encoder_repetition_penalty": 1.5},
    {"forced_eos_token_id": 2}, {"forced_bos_token_id": 2}, {"suppress_tokens": [20, 21]},
    {"begin_suppress_tokens": [20]}, {"bad_words_ids": [[21]]}, {"sequence_bias": [[[21], 5.0]]},
    {"min_new_tokens": 8, "eos_token_id": 21}, {"min_length": 40, "eos_token_id": 21},
    {"eos_token_id": [21, 22]}, {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": 21},
    {"do_sample": True, "temperature": 0.3, "top_k": 5}, {"top_p": 0.1}, {"guidance_scale": 1.5},
    {"renormalize_logits": True}, {"num_return_sequences": 3}, {"num_beams": 3},
    {"length_penalty": 2.0}, {"early_stopping": True}, {"max_length": 5}, {"max_time": 1e-9},
    {"stop_strings": ["x"]}, {"use_cache": False}, {"cache_implementation": "static"},
    {"return_dict_in_generate": False}, {"output_scores": False}, {"output_attentions": True},
    {"prompt_lookup_num_tokens": 3}, {"pad_token_id": 20}, {"remove_invalid_values": True},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["bloom", "llama", "mistral"])
def test_the_models_generation_config_changes_nothing(kind):
    model = tiny_model(kind, VOCAB, **({"sliding_window": 7} if kind == "mistral" else {}))
    expected, own = exact(model), model.generation_config
    for change in SETTINGS:
        model.generation_config = copy.deepcopy(own)
        for name, value in change.items():
            setattr(model.generation_config, name, value)
        before = copy.deepcopy(model.generation_config.to_dict())
        check(model, expected)
        assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("kind", ["bloom", "llama", "mamba"])
def test_a_config_without_cache_changes_nothing(kind):
    model = tiny_model(kind, VOCAB)
    expected = exact(model)
    model.config.use_cache = False
    check(model, expected)
    assert model.config.use_cache is False


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_request_ranks_alike_on_both_sides_of_a_window(kind):
    """Beside a longer prompt, past the window, and alone."""
    model = tiny_model(kind, VOCAB, sliding_window=10)
    short, long = prompts((5,), seed=3), prompts((5, 12), seed=3)
    expected = exact(model, *long)
    torch.testing.assert_close(scores(model, long), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores(model, (long[0][:1, -5:], short[1])), expected[:1])


LAYERS = {"llama": ["q_proj", "v_proj"], "bloom": ["query_key_value"]}
ADAPTERS = {
    "lora": LoraConfig(r=2, init_lora_weights=False, lora_dropout=0.5),
    "dora": LoraConfig(r=2, use_dora=True, init_lora_weights=False),
    "rslora": LoraConfig(r=2, use_rslora=True, init_lora_weights=False),
    "loha": LoHaConfig(r=2, init_weights=False),
    "lokr": LoKrConfig(r=2, init_weights=False),
    "oft": OFTConfig(oft_block_size=4, init_weights=False),
    "vera": VeraConfig(r=2, init_weights=False),
    "ia3": IA3Config(feedforward_modules=[], init_ia3_weights=False),
    "prompt": PromptTuningConfig(num_virtual_tokens=4),
    "p_tuning": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4),
}
SOFT = ("prompt", "p_tuning", "prefix")


def adapted(name, kind, **extra):
    config = copy.deepcopy(ADAPTERS[name])
    config.task_type = "CAUSAL_LM"
    if name not in SOFT:
        config.target_modules = LAYERS["bloom" if kind == "bloom" else "llama"]
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(kind, VOCAB, **extra), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and name in SOFT:
                parameter.normal_()
    return model  # the wrapper and its adapters are in training mode


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("kind", ["llama", "bloom", "mistral"])
def test_adapters_of_every_kind(name, kind):
    if name in SOFT and kind == "bloom":
        pytest.skip("PEFT has its own trouble with the cache of BLOOM")
    extra = {"sliding_window": 7} if kind == "mistral" else {}
    model = adapted(name, kind, **extra)
    check(model, exact(copy.deepcopy(model).eval()))
    if name not in SOFT:
        with model.disable_adapter():
            check(model, exact(tiny_model(kind, VOCAB, **extra)))


@pytest.mark.parametrize("name", SOFT)
def test_soft_prompts_in_generate(name):
    model = adapted(name, "llama").eval()
    # One prompt: between soft prompts and padding PEFT counts positions in its own way.
    ids, mask = prompts((9,))
    expected = exact(model, ids, mask)
    with pytest.warns(UserWarning, match="prepare_inputs_for_generation of its own"):
        out = model.generate(
            input_ids=ids, attention_mask=mask, custom_generate=beam_search, trie=TRIE,
            vocab=SIDS, num_beams=ALL, num_return_sequences=ALL, max_new_tokens=LEVELS,
            length_penalty=0.0, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    named = TRIE.items(SIDS.decode(out.sequences[:, -LEVELS:]))
    at = [TRIE.item_ids.tolist().index(items[0]) for items in named]
    wanted = torch.stack([expected[n // ALL, i] for n, i in enumerate(at)])
    torch.testing.assert_close(out.sequences_scores, wanted, atol=1e-4, rtol=1e-4)


WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "data_parallel": torch.nn.DataParallel,
    "lora_compiled": lambda m: torch.compile(m, backend="eager"),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("kind", ["llama", "bloom", "mistral"])
def test_wrappers(name, kind):
    extra = {"sliding_window": 7} if kind == "mistral" else {}
    model = adapted("lora", kind, **extra) if name == "lora_compiled" else tiny_model(
        kind, VOCAB, **extra
    )  # fmt: skip
    check(WRAPPERS[name](model), exact(copy.deepcopy(model).eval()))


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload", "dispatch"])
@pytest.mark.parametrize("kind", ["llama", "gptj", "bloom"])
def test_offloaded_models(kind, offload, tmp_path):
    import accelerate

    model = tiny_model(kind, VOCAB)
    expected = exact(model)
    if offload == "dispatch":
        layers = {name: "disk" for name, child in model.named_children()}
        model = accelerate.dispatch_model(
            model, {**layers, "lm_head": "cpu"}, main_device="cpu", offload_dir=str(tmp_path)
        )
    elif offload == "disk_offload":
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    devices = [p.device for p in model.parameters()]
    check(model, expected)
    check(model, expected)
    if kind != "bloom":  # accelerate itself moves its tied head
        assert [p.device for p in model.parameters()] == devices


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="model must be a Hugging Face model"):
        scores(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "bloom"])
def test_training_mode_and_gradient_checkpointing(kind):
    extra = {} if kind != "gpt2" else dict(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = tiny_model(kind, VOCAB, **extra)
    expected = exact(model)
    model.train()
    check(model, expected)
    model.gradient_checkpointing_enable()
    check(model, expected)
    fresh = tiny_model(kind, VOCAB, **extra).train()
    fresh.gradient_checkpointing_enable()
    check(fresh, expected)
    assert fresh.training
    assert all(module.training for module in fresh.modules())


DAMAGES = {
    "layer": lambda m: m.model.layers[1].mlp.down_proj.weight.data[3].fill_(float("nan")),
    "one_token": lambda m: m.model.embed_tokens.weight.data[int(PROMPTS[0][1, -1])].fill_(
        float("nan")
    ),
    "one_code": lambda m: m.model.embed_tokens.weight.data[int(SIDS.token_ids[0][1])].fill_(
        float("nan")
    ),
    "head": lambda m: m.lm_head.weight.data[1].fill_(float("nan")),
    "overflow": lambda m: m.half().model.layers[0].mlp.down_proj.weight.data.mul_(3e6),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("window", [None, 7], ids=["tree", "sequential"])
def test_logits_that_are_no_numbers_are_refused(damage, window):
    model = tiny_model("mistral", VOCAB, sliding_window=window)
    if window is None:
        capability(model)  # a verdict from before
    DAMAGES[damage](model)
    row = "row 1, of 1" if damage == "one_token" else "row 0, of 2"
    if damage == "one_token" and int(PROMPTS[0][1, -1]) in PROMPTS[0][0].tolist():
        row = "row 0"
    with pytest.raises(ValueError, match=f"must be numbers .*{row}"):
        scores(model)


def test_nan_does_not_pass_for_agreement():
    model = tiny_model("llama", VOCAB)
    weight = model.lm_head.weight.data[0].clone()
    model.lm_head.weight.data[0] = float("nan")
    assert capability(model).attention is None
    model.lm_head.weight.data[0] = weight  # loaded later: the verdict was not kept
    assert capability(model).attention == "tree"


def test_sequential_ways_are_probed():
    assert sequential(tiny_model("bloom", VOCAB)) == Sequential(use_cache=True, pads=True)
    import transformers

    config = transformers.RwkvConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32,
        context_length=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RwkvForCausalLM(config).eval()
    assert not sequential(model).pads
    check(model)


ROPES = {
    "default": None,
    "linear": dict(rope_type="linear", factor=2.0),
    "dynamic": dict(rope_type="dynamic", factor=2.0),
    "yarn": dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=16),
    "longrope": dict(
        rope_type="longrope", factor=2.0, original_max_position_embeddings=16,
        short_factor=[1.0] * 4, long_factor=[3.0] * 4,
    ),
}  # fmt: skip


def roped(kind, rope):
    extra = {} if ROPES[rope] is None else dict(rope_scaling=dict(ROPES[rope], rope_theta=10000.0))
    return tiny_model(kind, VOCAB, **{**extra, "max_position_embeddings": 16})


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi"])
@pytest.mark.parametrize("length", [6, 14, 15, 30])
def test_ropes_on_both_sides_of_their_limit(kind, rope, length):
    prompt = prompts((length, 5))
    if kind == "phi" and rope == "longrope":
        pytest.skip("its rotary dimension is another")
    # The frequencies are those of the length: each token has a forward pass of its own.
    expected = exact_token_by_token(roped(kind, rope), *prompt)
    torch.testing.assert_close(scores(roped(kind, rope), prompt), expected, atol=1e-4, rtol=1e-4)


def state(model):
    """Everything that a call could change: modules, attributes, tensors and their versions."""
    modules = dict(model.named_modules())
    return {
        "modules": [(name, id(module), module.training) for name, module in modules.items()],
        "attributes": [
            {
                key: value if isinstance(value, (int, float, str, bool)) else id(value)
                for key, value in vars(module).items()
            }
            for module in modules.values()
        ],
        "tensors": [
            (name, id(t), t._version, t.sum().item())
            for tensors in (model.named_parameters(), model.named_buffers())
            for name, t in tensors
        ],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
    }


def unchanged_by_public_calls(model, length=9):
    ids, mask = prompts((length, 4))
    before = state(model)
    common = dict(trie=TRIE, vocab=SIDS, num_beams=5)
    recommend(model, ids, mask, **common)
    assert state(model) == before
    sequential(model)
    assert state(model) == before
    model.generate(
        input_ids=ids, attention_mask=mask, custom_generate=beam_search, max_new_tokens=LEVELS,
        num_return_sequences=5, pad_token_id=0, **common,
    )  # fmt: skip
    assert state(model) == before
    model.train()
    before = state(model)
    recommend(model, ids, mask, **common)
    assert state(model) == before


@pytest.mark.parametrize(
    "kind",
    ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma", "gemma2", "phi", "opt", "neox", "gptj",
     "falcon", "bloom", "mpt", "mamba", "cohere", "granite"],
)  # fmt: skip
def test_the_model_is_never_changed(kind):
    unchanged_by_public_calls(tiny_model(kind, VOCAB))


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("length", [9, 40])
def test_ropes_are_never_changed(kind, rope, length):
    if kind == "qwen3" and rope == "longrope":
        pytest.skip("its factors are of another size")
    unchanged_by_public_calls(roped(kind, rope), length)


def test_a_short_prompt_scores_alike_after_a_long_one():
    model = roped("llama", "dynamic")
    before = scores(model)
    scores(model, prompts((60,)))
    torch.testing.assert_close(scores(model), before, atol=0, rtol=0)


@pytest.mark.parametrize("asked", ["streamer", "num_beam_groups"])
def test_streamers_and_beam_groups_are_refused(asked):
    """Called as `generate` calls it: transformers 5 itself hands no streamer over."""
    config = GenerationConfig(num_beams=2, max_length=20)
    kwargs = {}
    if asked == "streamer":
        kwargs["streamer"] = object()
    else:
        config.num_beam_groups = 2
    with pytest.raises(ValueError, match=f"beam_search: {asked} must be"):
        beam_search(
            tiny_model("llama", VOCAB), PROMPTS[0], [], [], config, trie=TRIE, vocab=SIDS, **kwargs
        )


@pytest.mark.parametrize("shift", [0, 5])
def test_position_ids_of_the_callers_own_are_honoured(shift):
    model = tiny_model("gpt2", VOCAB)  # learned positions: a shift shows
    ids = PROMPTS[0][:1]
    position_ids = torch.arange(ids.shape[1])[None] + shift
    common = dict(
        input_ids=ids, position_ids=position_ids, num_beams=5, num_return_sequences=5,
        max_new_tokens=LEVELS, pad_token_id=0, length_penalty=0.0, return_dict_in_generate=True,
        output_scores=True, do_sample=False,
    )  # fmt: skip
    allowed = [[int(t) for t in level] for level in SIDS.token_ids]
    theirs = model.generate(
        **common, prefix_allowed_tokens_fn=lambda b, row: allowed[min(len(row) - ids.shape[1], 2)]
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = model.generate(**common, custom_generate=beam_search, trie=TRIE, vocab=SIDS)
    assert any("position ids" in str(w.message) for w in caught) == (shift > 0)
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)


def test_embeddings_in_place_of_ids_are_refused_and_beside_them_honoured():
    model, ids = tiny_model("llama", VOCAB), PROMPTS[0][:1]
    embeddings = model.get_input_embeddings()(ids.flip(1))
    common = dict(
        inputs_embeds=embeddings, custom_generate=beam_search, trie=TRIE, vocab=SIDS, num_beams=4,
        max_new_tokens=LEVELS, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="input_ids must be given"):
        model.generate(**common)
    wanted = model.generate(
        input_ids=ids.flip(1), **{k: v for k, v in common.items() if k != "inputs_embeds"}
    )
    with pytest.warns(UserWarning, match="inputs_embeds"):
        got = model.generate(input_ids=ids, **common)
    assert torch.equal(got[:, -LEVELS:], wanted[:, -LEVELS:])
