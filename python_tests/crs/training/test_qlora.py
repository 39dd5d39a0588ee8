"""QLoRA: what is asked of bitsandbytes, what it refuses, and how its adapter is merged.

Tests marked `qlora` run the real 4-bit layers, on the CPU.
"""

import importlib.metadata
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.recommendation.arms.retrieval import RetrievalHead
from benchmarks.recommendation.reproduce import Plan, make_setting
from crs_fast.crs import backbones
from crs_fast.crs.backbones import in_four_bits, load_backbone, merge_lora, tiny_backbone
from crs_fast.crs.checkpoint import save_bundle
from crs_fast.crs.control_tokens import ControlTokens, new_tokens
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.lora import add_lora
from crs_fast.crs.training.train import train, train_instances
from crs_fast.trie import SidTrie, SidVocab

from ..tiny_system import ITEMS, SIDS, TEXTS, dialogues, system
from .test_lora import retrieval

QLORA = TrainConfig(
    epochs=4, learning_rate=3e-3, tokens_per_batch=400, lora_rank=4, qlora=True, logging_steps=1
)


@pytest.fixture
def pretend(monkeypatch):
    """A machine with (or without) bitsandbytes and a GPU."""

    def set_up(bitsandbytes, gpu):
        spec = SimpleNamespace() if bitsandbytes else None
        monkeypatch.setattr(backbones, "find_spec", lambda name: spec)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        version = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata,
            "version",
            lambda name: "0.50.2" if name == "bitsandbytes" else version(name),
        )

    return set_up


def test_the_request_for_four_bits_reaches_transformers(pretend, monkeypatch):
    import transformers

    pretend(True, True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    asked = {}

    def from_pretrained(name, **kwargs):
        asked.update(kwargs, name=name)
        return "model"

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda name, **_: "tokenizer"
    )
    assert load_backbone("some/path", four_bit=True) == ("model", "tokenizer")
    config = asked["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.bnb_4bit_use_double_quant
    assert (asked["dtype"], asked["device_map"]) == (torch.bfloat16, {"": 3})


@pytest.mark.parametrize(
    ("bitsandbytes", "gpu", "got"),
    [
        (False, False, "bitsandbytes: no, GPU: no"),
        (True, False, "bitsandbytes: yes, GPU: no"),
        (False, True, "bitsandbytes: no, GPU: yes"),
    ],
)
def test_one_error_names_all_that_is_needed(pretend, bitsandbytes, gpu, got):
    pretend(bitsandbytes, gpu)
    with pytest.raises(ImportError, match=r"bitsandbytes, .*qlora.*CUDA GPU") as error:
        load_backbone("some/path", four_bit=True)
    assert got in str(error.value)


def test_what_can_not_be_in_four_bits(tmp_path):
    with pytest.raises(ValueError, match="lora_rank must be at least 1 with qlora"):
        TrainConfig(qlora=True, lora_rank=None)
    with pytest.raises(ValueError, match="needs plain weights"):
        load_backbone("smollm2", four_bit=True)
    plan = Plan("redial", "tiny", ("gcrs",), 100, training=QLORA)
    with pytest.raises(ValueError, match="model must be a path"):
        make_setting(plan, None)
    model, tokenizer, trie, vocab, control, _ = system()
    parts = ((model, tokenizer), dialogues(2), trie, vocab, control)
    with pytest.raises(ValueError, match="backbone must be in 4 bits"):
        train(*parts, output_dir=tmp_path, config=QLORA, progress=False)


def test_packed_weights_are_unpacked_before_the_merge(monkeypatch):
    """Without bitsandbytes: a model that says it is packed, and unpacks to other weights."""
    model, _, _, vocab, control, _ = system()
    tuned = add_lora(model, new_tokens(vocab, control), 4).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    layer = tuned.base_model.model.model.layers[0].mlp.up_proj
    update = layer.get_delta_weight("default").detach()
    rows = model.get_input_embeddings().weight.detach().clone()  # as trained
    base = layer.base_layer.weight.detach().clone()

    def dequantize():
        assert not any("lora" in name for name, _ in model.named_parameters())
        model.model.layers[0].mlp.up_proj.weight.data.add_(1.0)
        return model

    model.dequantize = dequantize
    monkeypatch.setattr(backbones, "in_four_bits", lambda model: True)
    merged = merge_lora(tuned)
    weight = merged.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(weight, base + 1 + update, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged.get_input_embeddings().weight, rows)


@pytest.fixture
def packed(tmp_path):
    """A tiny backbone saved and loaded in 4 bits, with tokens for SIDs, and the plain one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    model, tokenizer = tiny_backbone(TEXTS, hidden_size=64, layers=2, heads=2, vocab_size=300)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain",
        quantization_config=config,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    vocab = SidVocab.extend(tokenizer, packed, levels=3, codes=4, special=True)
    control = ControlTokens.extend(tokenizer, packed)
    return packed, tokenizer, vocab, control


@pytest.mark.qlora
def test_four_bits_train_merge_and_save(packed, tmp_path):
    from transformers import AutoModelForCausalLM

    model, tokenizer, vocab, control = packed
    assert in_four_bits(model)
    trie = SidTrie.from_sids(SIDS, [item.item_id for item in ITEMS])
    new = torch.tensor(new_tokens(vocab, control))
    before = model.get_input_embeddings().weight.detach().clone()
    result = train(
        (model, tokenizer), dialogues(16), trie, vocab, control,
        output_dir=tmp_path / "out", config=replace(QLORA, save_steps=2), progress=False,
    )  # fmt: skip
    assert result.losses[-1]["loss"] < result.losses[0]["loss"] - 0.3
    after = result.model
    assert not in_four_bits(after)
    assert not any("lora" in name for name, _ in after.named_parameters())
    assert {p.dtype for p in after.parameters()} == {torch.bfloat16}
    rows = after.get_input_embeddings().weight
    old = torch.ones(len(rows), dtype=torch.bool)
    old[new] = False
    assert torch.equal(rows[old], before[old])
    assert (rows[new] != before[new]).any(1).float().mean() > 0.5
    path = save_bundle(
        tmp_path / "saved", (after, tokenizer), trie, vocab, control, ITEMS, max_length=768
    )
    again = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.arange(4, 12)[None]
    assert torch.equal(again(ids).logits, after(ids).logits)


@pytest.mark.qlora
def test_the_merged_model_says_what_the_trained_one_said(packed):
    model, _, vocab, control = packed
    new = new_tokens(vocab, control)
    tuned = add_lora(model, new, 4).eval()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    torch.manual_seed(0)
    ids = torch.tensor([[*range(4, 12), *new[:4]]])
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected = tuned(ids).logits.float()
        merged = merge_lora(tuned)
        got = merged(ids).logits.float()
    assert (got - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.qlora
def test_the_retrieval_head_on_four_bits(packed, tmp_path):
    model, tokenizer, vocab, control = packed
    head = RetrievalHead(model, torch.randn(len(ITEMS), 16))
    _, groups, _, _ = retrieval()
    how = dict(
        new_rows=new_tokens(vocab, control), pad_id=tokenizer.eos_token_id, output_dir=tmp_path,
        whole=("head",), progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="lora_rank must be set"):
        train_instances(head, groups, config=TrainConfig(lora_rank=None), **how)
    result = train_instances(head, groups, config=QLORA, **how)
    assert result.losses[-1]["loss"] < result.losses[0]["loss"]
    assert type(result.model) is RetrievalHead
    assert not in_four_bits(result.model)
    assert result.model.head.rows.any()
