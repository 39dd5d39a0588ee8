"""LoRA on mixtures of experts and state-space models, and runs too short to teach anything."""

import json
import logging

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    FalconH1Config,
    FalconMambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from crs_fast import cli
from crs_fast.crs.backbones import merge_lora, tiny_backbone
from crs_fast.crs.control_tokens import ControlTokens, new_tokens
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.lora import add_lora
from crs_fast.crs.training.train import train
from crs_fast.trie import SidTrie, SidVocab

from ..tiny_system import ITEMS, SIDS, TEXTS, dialogues

SIZE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
HEADS = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8)
MAMBA = dict(hidden_size=32, num_hidden_layers=2, state_size=8)
CONFIGS = {
    "llama": (LlamaConfig, SIZE),
    "mixtral": (MixtralConfig, {**SIZE, "num_local_experts": 4}),
    "qwen2-moe": (Qwen2MoeConfig, {**SIZE, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3-moe": (Qwen3MoeConfig, {**SIZE, **EXPERTS, "head_dim": 8}),
    "qwen3-moe, one layer dense": (
        Qwen3MoeConfig, {**SIZE, **EXPERTS, "head_dim": 8, "mlp_only_layers": [0]},
    ),
    "olmoe": (OlmoeConfig, {**SIZE, "num_experts": 4, "num_experts_per_tok": 2}),
    "mamba": (MambaConfig, MAMBA),
    "mamba2": (Mamba2Config, {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "falcon-mamba": (FalconMambaConfig, MAMBA),
    "falcon-h1": (FalconH1Config, {**SIZE, **HEADS}),
    "bamba": (
        BambaConfig,
        {**SIZE, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
         "attn_layer_indices": [1]},
    ),
}  # fmt: skip


def made(name, tie=True):
    """Model, tokenizer, vocab and control of an architecture, with a fixed seed."""
    kind, shape = CONFIGS[name]
    _, tokenizer = tiny_backbone(TEXTS, hidden_size=32, layers=1, heads=2, vocab_size=300)
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = kind(
        vocab_size=len(tokenizer), **shape, tie_word_embeddings=tie,
        eos_token_id=end, bos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    vocab = SidVocab.extend(tokenizer, model, levels=3, codes=4)
    return model, tokenizer, vocab, ControlTokens.extend(tokenizer, model)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_merging_gives_what_was_trained(name, dropout):
    model, tokenizer, vocab, control = made(name, tie=dropout > 0)
    adapted = add_lora(model, new_tokens(vocab, control), 4, dropout=dropout)
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoraLayer)]
    assert layers
    # Dropout is on all but experts that are one parameter.
    drops = [
        any(isinstance(m, torch.nn.Dropout) and m.p == dropout for m in x.lora_dropout.values())
        for x in layers
        if not hasattr(x, "parameter_name")
    ]
    assert set(drops) == {dropout > 0}
    generator = torch.Generator().manual_seed(1)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    ids = torch.tensor([[*tokenizer("I like Film 1")["input_ids"], vocab.begin]])
    with torch.no_grad():
        want = adapted.eval()(input_ids=ids).logits
        got = merge_lora(adapted)(input_ids=ids).logits
    assert float((got - want).abs().max()) < 1e-3 * float(want.std())


def test_what_is_left_out_is_said_once_and_only_there(caplog):
    for name, said in [("llama", 0), ("mixtral", 1), ("mamba", 0)]:
        for dropout in (0.1, 0.0):
            caplog.clear()
            model, _, vocab, control = made(name)
            add_lora(model, new_tokens(vocab, control), 4, dropout=dropout)
            assert len(caplog.messages) == (said if dropout else 0)


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "mamba", "falcon-h1"])
def test_training_lowers_the_loss(name, tmp_path):
    model, tokenizer, vocab, control = made(name)
    trie = SidTrie.from_sids(SIDS, [item.item_id for item in ITEMS])
    config = TrainConfig(
        epochs=3, learning_rate=1e-2, tokens_per_batch=400, lora_rank=4, logging_steps=1
    )
    result = train(
        (model, tokenizer), dialogues(8), trie, vocab, control,
        output_dir=tmp_path, config=config, progress=False,
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.losses]
    assert losses[-1] < losses[0]
    assert type(result.model) is type(model)


@pytest.mark.parametrize("name", ["qwen3-moe", "mamba"])
def test_from_the_command_line(name, tmp_path, capsys):
    model, tokenizer, *_ = made(name)
    _, tokenizer = tiny_backbone(TEXTS, hidden_size=32, layers=1, heads=2, vocab_size=300)
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "backbone")
    data = tmp_path / "data"
    data.mkdir()
    films = [{"item_id": f"i{n}", "title": f"Film {n}"} for n in range(8)]
    turns = [
        {"role": "seeker", "text": "hi"},
        {"role": "recommender", "text": "try Film 1", "items": [{"item_id": "i1"}]},
    ]
    (data / "items.jsonl").write_text("\n".join(map(json.dumps, films)))
    (data / "train.jsonl").write_text(json.dumps({"dialogue_id": "d", "turns": turns}))
    argv = [
        "train", "--data", str(data), "--model", str(tmp_path / "backbone"), "--levels", "2",
        "--codes", "4", "--method", "rqkmeans", "--lora-rank", "2", "--lora-dropout", "0.2",
        "--epochs", "1", "--out", str(tmp_path / "model"),
    ]  # fmt: skip
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 1


@pytest.mark.parametrize(("epochs", "said"), [(3, True), (49, True), (50, False)])
def test_a_short_run_says_so_before_it_starts(epochs, said, tmp_path, caplog, monkeypatch):
    model, tokenizer, vocab, control = made("llama")
    trie = SidTrie.from_sids(SIDS, [item.item_id for item in ITEMS])
    before = []

    def no_training(self, checkpoint):
        before.extend(caplog.messages)

    from crs_fast.crs.training.trainer import PackedTrainer

    monkeypatch.setattr(PackedTrainer, "train_from", no_training)
    with caplog.at_level(logging.WARNING):
        train(
            (model, tokenizer), dialogues(2), trie, vocab, control, output_dir=tmp_path,
            config=TrainConfig(epochs=epochs, lora_rank=None), progress=False,
        )  # fmt: skip
    assert [m for m in before if "steps" in m] == (
        [m for m in before if f"this run takes {epochs} steps" in m] if said else []
    )
    assert any("fewer than 50" in m for m in before) == said
