"""Rows of the LM head against the model's own logits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from crs_fast.decode.lm.head import LmHead
from crs_fast.decode.lm.linear import linear
from python_tests.helpers import tiny_model

VOCAB = 83
KINDS = [
    ("llama", {}),
    ("gpt2", {}),
    ("opt", {}),
    ("phi", {}),  # bias
    ("gemma2", {"final_logit_softcapping": 0.5}),
    ("granite", {"logits_scaling": 3.0}),
    ("cohere", {"logit_scale": 0.25}),
]


def own_logits(model, ids):
    with torch.no_grad():
        decoder = model.get_decoder().base_model
        return decoder(input_ids=ids).last_hidden_state[0], model(input_ids=ids).logits[0]


@pytest.mark.parametrize(("kind", "extra"), KINDS, ids=[k for k, _ in KINDS])
def test_rows_and_whole_head_are_the_models_own(kind, extra):
    model = tiny_model(kind, VOCAB, **extra)
    if kind == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    hidden, wanted = own_logits(model, torch.arange(20)[None] + 3)
    head, tokens = LmHead(model), torch.tensor([5, 82, 0, 41])
    with torch.no_grad():
        torch.testing.assert_close(head(hidden), wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(head(hidden, tokens), wanted[:, tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "extra",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 41]}},
    ],
    ids=["lora", "dora", "saved", "tokens"],
)
def test_adapters_on_the_head(extra):
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama", VOCAB), LoraConfig(r=3, lora_alpha=6, **extra))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_B", "delta", "modules_to_save")):
                torch.nn.init.normal_(parameter)
    model.eval()
    ids, tokens = torch.arange(20)[None] + 3, torch.tensor([5, 82, 0, 41])
    hidden, wanted = own_logits(model, ids)
    with torch.no_grad():
        got = LmHead(model)(hidden, tokens)
        torch.testing.assert_close(got, wanted[:, tokens], atol=1e-4, rtol=1e-4)
        with model.disable_adapter():
            hidden, wanted = own_logits(model, ids)
            got = LmHead(model)(hidden, tokens)
            torch.testing.assert_close(got, wanted[:, tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 8, 40, 63, 64, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear(rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, 33), (17, 33), (17,))
    )
    for b in (bias, None):
        wanted = torch.nn.functional.linear(x, weight, b)
        torch.testing.assert_close(linear(x, weight, b), wanted)
        torch.testing.assert_close(linear(x[:, None], weight, b), wanted[:, None])


def test_a_head_with_a_forward_of_its_own_is_asked():
    model = tiny_model("llama", 30)
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: forward(hidden) + torch.arange(30)
    hidden, some = torch.randn(4, model.config.hidden_size), torch.tensor([3, 7])
    wanted = model.lm_head(hidden)
    assert torch.equal(LmHead(model)(hidden), wanted)
    assert torch.equal(LmHead(model)(hidden, some), wanted[:, some])
