"""A tiny random model of any class behind `AutoModelForCausalLM`."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# What CI tries: one of each kind of answer.
SAMPLE = ["bloom", "gpt2", "gptj", "llama", "mixtral", "rwkv", "mamba", "recurrent_gemma"]
# What follows a token changes its logits.
NOT_CAUSAL = ("cpmant", "prophetnet", "xlnet")
_MOST_PARAMETERS = 30_000_000
# Whatever of these a configuration has.
_SIZES = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 32, "lru_width": 32, "attention_hidden_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "ffn_hidden_size": 48, "d_ff": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "feed_forward_size": 48,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16, "kv_lora_rank": 8, "q_lora_rank": 8, "rotary_dim": 4,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 8,
    "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "ssm_state_size": 4, "n_groups": 1, "time_step_rank": 4, "mamba_dt_rank": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "max_position_embeddings": 256, "n_positions": 256,
    "max_seq_len": 256, "context_length": 64, "attention_window_size": 64,
    "sliding_window": 64, "vocab_size_per_layer_input": None, "hidden_size_per_layer_input": 8,
}  # fmt: skip


def zoo_model(model_type: str, vocab_size: int):
    """In eval mode, float32, with logits that are not nearly uniform.

    Raises:
        Exception: this configuration can't be so small.
    """
    problems = []
    for others in _OTHERS:
        for special in (dict(bos_token_id=None, eos_token_id=None, pad_token_id=0), {}, _TOKENS):
            for keeps_layer_types in (True, False):
                try:
                    return _built(model_type, vocab_size, others, special, keeps_layer_types)
                except Exception as problem:
                    problems.append(problem)
    raise problems[0]


_TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
# What some architectures want beside or in place of `_SIZES`; None leaves the default.
_OTHERS = (
    {},
    {"head_dim": None},
    {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "head_dim": 8, "num_key_value_heads": 4},
    {"num_key_value_heads": 4, "head_dim": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": None},
    {"state_size": 8, "n_groups": 1, "head_dim": 8, "num_heads": 8, "expand": 2},
    {"num_hidden_layers": None, "num_layers": None, "head_dim": None},
    {"num_hidden_layers": 4, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8},
)


def _built(model_type, vocab_size, others, special, keeps_layer_types):
    text = CONFIG_MAPPING[model_type]().get_text_config()
    known = text.to_dict()
    sizes = {
        name: vocab_size if value is None and name not in others else value
        for name, value in {**_SIZES, **others}.items()
        if isinstance(known.get(name), (int, float)) and not (name in others and value is None)
    }
    config = type(text)(vocab_size=vocab_size, **sizes, **special)
    config.is_decoder = True
    if keeps_layer_types and getattr(config, "layer_types", None):
        config.layer_types = (text.layer_types or config.layer_types)[-config.num_hidden_layers :]
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{model_type} stays at {size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
        model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    return model
