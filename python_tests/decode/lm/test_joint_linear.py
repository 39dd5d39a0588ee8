"""Projections of the same input as one product: same results, same parameters, same files."""

import pytest
import torch

from crs_fast.decode import recommend
from crs_fast.decode.lm import joint_linear
from crs_fast.decode.lm.joint_linear import PROJECTIONS, JointLinear, joint_layers, lay_together
from crs_fast.decode.lm.tree_view import tree_view
from crs_fast.trie import SidTrie
from python_tests.helpers import left_padded, random_sids, tiny_model, vocab_of

LEVELS, CODES = 4, 6
VOCABULARY = 7 + LEVELS * CODES


@pytest.fixture
def products(monkeypatch):
    """The outputs of each product, as they are computed."""
    computed = []

    def linear(x, weight, bias=None):
        computed.append(len(weight))
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(joint_linear, "linear", linear)
    return computed


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "phi"])
def test_a_search_finds_the_same(kind, products):
    model = tiny_model(kind, VOCABULARY)
    trie = SidTrie.from_sids(random_sids(4, 200, LEVELS, CODES).unique(dim=0))
    how = dict(trie=trie, vocab=vocab_of(LEVELS, CODES), num_beams=9)
    prompt = left_padded(12, 5)
    wanted = recommend(model, *prompt, **how)
    lay_together(model)
    with PROJECTIONS.using("together"):
        got = recommend(model, *prompt, **how)
    torch.testing.assert_close(got.scores, wanted.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(got.sids, wanted.sids)
    groups = 1 if kind == "phi" else 2  # its MLP has no gate
    assert len(products) == groups * 2 * LEVELS  # once in each layer and forward pass


def test_weights_that_lie_together_are_the_same_parameters(tmp_path):
    model = tiny_model("qwen2", VOCABULARY)
    parameters = dict(model.named_parameters())
    values = {name: value.detach().clone() for name, value in parameters.items()}
    lay_together(model)
    for name, value in model.named_parameters():
        assert value is parameters[name]
        assert torch.equal(value, values[name])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in values.items())
    attention = model.model.layers[0].self_attn
    first, last = (layer.weight.untyped_storage() for layer in (attention.q_proj, attention.v_proj))
    assert first.data_ptr() == last.data_ptr()
    before = attention.q_proj.weight.data_ptr()
    lay_together(model)  # nothing is left to move
    assert attention.q_proj.weight.data_ptr() == before


def test_weights_that_lie_apart_and_layers_with_adapters_stay_as_they_are():
    model = tiny_model("llama", VOCABULARY)
    attention = model.model.layers[0].self_attn
    assert not joint_layers(attention)
    lay_together(model)
    assert set(joint_layers(attention)) == {"q_proj", "k_proj", "v_proj"}
    attention.k_proj = torch.nn.Sequential(attention.k_proj)  # as LoRA wraps a layer
    assert not joint_layers(attention)
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight = torch.nn.Parameter(mlp.up_proj.weight.clone())
    assert not joint_layers(mlp)


def test_another_input_is_computed_afresh(products):
    model = tiny_model("llama", VOCABULARY)
    lay_together(model)
    attention = model.model.layers[0].self_attn
    q, k, v = joint_layers(attention).values()
    x, y = torch.randn(2, 3, 32).unbind()
    for layer, own, given in ((q, attention.q_proj, x), (k, attention.k_proj, y),
                              (q, attention.q_proj, y), (v, attention.v_proj, y),
                              (q, attention.q_proj, y)):  # fmt: skip
        torch.testing.assert_close(layer(given), own(given))
    assert len(products) == 3


def test_they_are_computed_apart_unless_chosen():
    model = tiny_model("llama", VOCABULARY)
    lay_together(model)
    assert not any(isinstance(m, JointLinear) for m in tree_view(model.model).modules())
    with PROJECTIONS.using("together"):
        assert any(isinstance(m, JointLinear) for m in tree_view(model.model).modules())
