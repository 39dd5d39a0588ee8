"""The offline text encoder for tests that encode the same texts again: each is encoded once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from crs_fast.quantize import text_encoder

_load_encoder = text_encoder.load_encoder


class RememberedEncoder:
    """The MiniLM that `encode_texts` takes by default."""

    def __init__(self) -> None:
        self.model = _load_encoder(None)
        self.rows: dict[str, torch.Tensor] = {}

    def encode(self, sentences: list[str]) -> Any:
        new = [text for text in dict.fromkeys(sentences) if text not in self.rows]
        if new:
            encoded = self.model.encode(new, convert_to_tensor=True, show_progress_bar=False)
            self.rows |= dict(zip(new, encoded, strict=True))
        return torch.stack([self.rows[text] for text in sentences])


_remembered = lru_cache(maxsize=1)(RememberedEncoder)


def remember_texts(monkeypatch: Any) -> None:
    """Where no other encoder is named, let `encode_texts` take one that all tests share."""
    load = text_encoder.load_encoder
    monkeypatch.setattr(
        text_encoder,
        "load_encoder",
        lambda encoder, device=None: _remembered() if encoder is None else load(encoder, device),
    )
