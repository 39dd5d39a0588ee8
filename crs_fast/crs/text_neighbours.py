"""The items whose texts are nearest to what was said last, by a text encoder. Nothing is trained,
so an item that no dialogue has named is found like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from crs_fast.crs.data.dialogue import Item, Turn
from crs_fast.crs.joined_beams import Scored
from crs_fast.quantize import encode_texts
from crs_fast.quantize.text_encoder import EncoderLike, load_encoder

_NOTHING_SAID = "hello"


class TextNeighbours:
    """Gives each conversation its candidates for `JoinedBeams`.

        query = encode(the last turns' texts) - the items' mean
        q(item) = softmax(cosine(query, encode(item text) - the items' mean) / temperature)

    Args:
        items: the catalogue.
        encoder: see `encode_texts`.
        embeddings: float [N, D] of the items' texts by the same encoder; None encodes them.
        turns: how many of the last turns are read.
        num_items: candidates per conversation.
        temperature: divides the cosines.

    Raises:
        ValueError: no item, embeddings of another number, or a number that is not above 0.
    """

    def __init__(
        self,
        items: Sequence[Item],
        encoder: EncoderLike = None,
        *,
        embeddings: Any = None,
        turns: int = 6,
        num_items: int = 50,
        temperature: float = 0.05,
    ) -> None:
        numbers = (("turns", turns), ("num_items", num_items), ("temperature", temperature))
        for name, value in numbers:
            if not value > 0:
                raise ValueError(f"TextNeighbours: {name} must be above 0 (got {value!r})")
        self._encoder = load_encoder(encoder)
        if embeddings is None:
            embeddings = encode_texts([item.text() for item in items], self._encoder)
        known = torch.as_tensor(embeddings, device="cpu").float()  # [N, D]
        if not len(items) or known.ndim != 2 or len(known) != len(items):
            raise ValueError(
                f"TextNeighbours: embeddings must be one row per item, {len(items)} and at least 1 "
                f"(got shape {tuple(known.shape)})"
            )
        self._ids = [item.item_id for item in items]
        self._mean = known.mean(0)
        self._items = F.normalize(known - self._mean, dim=-1)
        self._turns, self._temperature = turns, temperature
        self._num_items = min(num_items, len(items))

    def __call__(self, contexts: Sequence[Sequence[Turn]]) -> list[list[Scored]]:
        """The candidates of each conversation, (item id, log-probability), best first."""
        if not contexts:
            return []
        said = [" ".join(turn.text for turn in turns[-self._turns :]) for turns in contexts]
        query = encode_texts([text or _NOTHING_SAID for text in said], self._encoder)  # [B, D]
        cosines = F.normalize(query - self._mean, dim=-1) @ self._items.T  # [B, N]
        log_q, best = (cosines / self._temperature).log_softmax(-1).topk(self._num_items)
        return [
            [(self._ids[i], score) for i, score in zip(of_one, scores, strict=True)]
            for of_one, scores in zip(best.tolist(), log_q.tolist(), strict=True)
        ]
