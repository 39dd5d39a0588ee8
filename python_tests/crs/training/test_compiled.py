"""Training with compiled layers against training without."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from crs_fast.crs.training import compiled as module
from crs_fast.crs.training.compiled import compiled, decoder_layers

from ..tiny_system import system
from .test_train import FULL, run


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Traced and differentiated as for inductor, but run by PyTorch's own kernels: the compiler's
    are not ours to test, and take a minute to build."""
    monkeypatch.setattr(module, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    "more", [{}, {"lora_rank": 4, "lora_dropout": 0.0, "gradient_checkpointing": True}]
)
def test_compiled_layers_train_the_same(tmp_path, more):
    config = replace(FULL, epochs=2, tokens_per_batch=250, **more)
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        results.append(run(system(), tmp_path / str(on), replace(config, compile_layers=on)))
    plain, traced = results
    assert plain.steps > 8
    for one, two in zip(plain.losses, traced.losses, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    layers = [m for m in traced.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert len(layers) == 2
    assert all(layer._compiled_call_impl is None for layer in layers)
    assert traced.model.state_dict().keys() == plain.model.state_dict().keys()
    again = run(system(), tmp_path / "again", replace(config, compile_layers=True))
    assert again.steps == plain.steps
    # Two layers and batches of many lengths, in two trainings: one compilation, and one for batches
    # of one.
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


def test_layers_are_plain_again_after_an_error():
    model = system()[0]

    def fail():
        with compiled(decoder_layers(model)):
            assert all(m._compiled_call_impl is not None for m in model.model.layers)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(m._compiled_call_impl is None for m in model.model.layers)


def test_a_model_without_layers():
    with pytest.raises(ValueError, match=r"decoder layers .* \(got none in Linear\)"):
        decoder_layers(torch.nn.Linear(2, 2))
