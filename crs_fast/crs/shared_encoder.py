"""One text encoder for all who encode item texts: it is loaded once, serves one thread at a time,
and remembers the items' embeddings."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from crs_fast.quantize import encode_texts
from crs_fast.quantize.text_encoder import EncoderLike, load_encoder

# Texts that are encoded before another thread may encode its own.
_BATCH = 64


class SharedEncoder:
    """A text encoder that any thread may use.

    Args:
        encoder: see `encode_texts`; one that is given by its name is loaded at first use.
        device: where an encoder given by its name runs; None lets sentence-transformers choose.
    """

    def __init__(
        self, encoder: EncoderLike = None, device: torch.device | str | None = None
    ) -> None:
        self._encoder, self._device = encoder, device
        self._loaded: Any = None
        self._encoding = threading.Lock()  # a tokenizer serves one thread at a time
        self._remembering = threading.Lock()
        # The embedding [D] of each text; the texts that were asked for last are at the end.
        self._embeddings: dict[str, torch.Tensor] = {}
        self._most = 0  # how many texts are remembered

    @classmethod
    def of(
        cls, encoder: EncoderLike | SharedEncoder, device: torch.device | str | None = None
    ) -> SharedEncoder:
        """The encoder itself if it is shared already. It then takes the device if it has none and
        is not loaded."""
        if not isinstance(encoder, SharedEncoder):
            return cls(encoder, device)
        if encoder._device is None:
            encoder._device = device
        return encoder

    def load(self) -> Any:
        """What `load_encoder` gives, which is called once."""
        with self._encoding:
            if self._loaded is None:
                self._loaded = load_encoder(self._encoder, self._device)
            return self._loaded

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings [n, D], a few texts at a time: a query need not wait for a whole catalogue."""
        encoder = self.load()
        # Texts of one length together: half the time of a catalogue's is padding otherwise.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = []
        for first in range(0, max(len(texts), 1), _BATCH):
            some = [texts[n] for n in order[first : first + _BATCH]]
            with self._encoding:
                parts.append(encode_texts(some, encoder))
        rows = torch.cat(parts)
        return rows[torch.tensor(order, dtype=torch.int64, device="cpu").argsort()]

    def encode_items(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings [n, D] of items' texts. A text that is remembered is not encoded again, and
        the others are remembered too if somebody has called `remember`."""
        if not texts:
            return self.encode(texts)
        with self._remembering:
            known = {text: self._embeddings[text] for text in texts if text in self._embeddings}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known |= dict(zip(new, self.encode(new), strict=True))
        if self._most:
            self.remember(known)
        return torch.stack([known[text] for text in texts])

    def remember(self, embeddings: Mapping[str, torch.Tensor]) -> None:
        """Take the embeddings [D] of a catalogue's texts. Those of earlier catalogues stay, until
        there are more than twice as many texts as the largest catalogue has; then the texts that
        were not asked for for longest are forgotten."""
        with self._remembering:
            self._most = max(self._most, 2 * len(embeddings))
            older = {t: row for t, row in self._embeddings.items() if t not in embeddings}
            excess = max(0, len(older) + len(embeddings) - self._most)
            self._embeddings = dict(islice(older.items(), excess, None)) | dict(embeddings)
