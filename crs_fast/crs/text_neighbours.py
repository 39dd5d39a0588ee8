"""The items whose texts are nearest to what was said last, by a text encoder. Nothing is trained,
so an item that no dialogue has named is found like any other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from crs_fast._arguments import all_of_kind, is_integer, is_number
from crs_fast.crs.data.dialogue import Item, Turn
from crs_fast.crs.joined_beams import Scored
from crs_fast.crs.shared_encoder import SharedEncoder
from crs_fast.quantize.text_encoder import EncoderLike

_NOTHING_SAID = "hello"


class TextNeighbours:
    """Gives each conversation its candidates for `JoinedBeams`.

        query = encode(the last turns' texts) - the items' mean
        q(item) = softmax(cosine(query, encode(item text) - the items' mean) / temperature)

    Args:
        items: the catalogue.
        encoder: see `encode_texts`; one that is shared with others is locked with them.
        embeddings: float [N, D] of the items' texts by the same encoder; None encodes them.
        turns: how many of the last turns are read.
        num_items: candidates per conversation.
        temperature: divides the cosines.
        device: where an encoder given by its name runs; None lets sentence-transformers choose.

    Raises:
        ValueError: no item, embeddings of another number or that are not finite, or a number that
            is not above 0.
    """

    def __init__(
        self,
        items: Sequence[Item],
        encoder: EncoderLike | SharedEncoder = None,
        *,
        embeddings: Any = None,
        turns: int = 6,
        num_items: int = 50,
        temperature: float = 0.05,
        device: torch.device | str | None = None,
    ) -> None:
        for name, value in (("turns", turns), ("num_items", num_items)):
            if not is_integer(value, 1):
                raise ValueError(
                    f"TextNeighbours: {name} must be an integer above 0 (got {value!r})"
                )
        if not is_number(temperature) or not temperature > 0:
            raise ValueError(
                f"TextNeighbours: temperature must be above 0 and finite (got {temperature!r})"
            )
        items = _checked_items(items)
        self._encoder = SharedEncoder.of(encoder, device)
        self._encoder.load()
        self._turns, self._num_items, self._temperature = turns, num_items, temperature
        texts = [item.text() for item in items]
        known = self._encoder.encode_items(texts) if embeddings is None else embeddings
        rows = _numbers(known).float()
        self._take(items, rows)
        self._encoder.remember(dict(zip(texts, rows, strict=True)))

    def for_items(self, items: Sequence[Item]) -> TextNeighbours:
        """The same for another catalogue. Only texts that neither this one nor another one made
        from it or before it has had are encoded.

        Raises:
            ValueError: there is no item.
        """
        items = _checked_items(items)
        changed = copy.copy(self)
        changed._take(items, self._encoder.encode_items([item.text() for item in items]))
        return changed

    def _take(self, items: Sequence[Item], embeddings: torch.Tensor) -> None:
        if not len(items) or embeddings.ndim != 2 or len(embeddings) != len(items):
            raise ValueError(
                f"TextNeighbours: embeddings must be one row per item, {len(items)} and at least 1 "
                f"(got shape {tuple(embeddings.shape)})"
            )
        self._ids = [item.item_id for item in items]
        self._mean = embeddings.mean(0)
        self._items = F.normalize(embeddings - self._mean, dim=-1)  # [N, D]

    def __call__(self, contexts: Sequence[Sequence[Turn]]) -> list[list[Scored]]:
        """The candidates of each conversation, (item id, log-probability), best first."""
        must_be = "a list with the Turns of each conversation"
        if isinstance(contexts, str) or not isinstance(contexts, Sequence):
            raise ValueError(
                f"TextNeighbours: contexts must be {must_be} (got {type(contexts).__name__})"
            )
        if not contexts:
            return []
        contexts = [
            all_of_kind("TextNeighbours: contexts", turns, Turn, must_be) for turns in contexts
        ]
        said = [" ".join(turn.text for turn in turns[-self._turns :]) for turns in contexts]
        query = self._encoder.encode([text or _NOTHING_SAID for text in said])  # [B, D]
        most = min(self._num_items, len(self._ids))
        cosines = F.normalize(query - self._mean, dim=-1) @ self._items.T  # [B, N]
        log_q, best = (cosines / self._temperature).log_softmax(-1).topk(most)
        return [
            [(self._ids[i], score) for i, score in zip(of_one, scores, strict=True)]
            for of_one, scores in zip(best.tolist(), log_q.tolist(), strict=True)
        ]


def _checked_items(items: Sequence[Item]) -> tuple[Item, ...]:
    items = all_of_kind("TextNeighbours: items", items, Item, "at least one Item")
    if not items:
        raise ValueError("TextNeighbours: items must be at least one Item (got none)")
    return items


def _numbers(embeddings: Any) -> torch.Tensor:
    try:
        made = torch.as_tensor(embeddings, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"TextNeighbours: embeddings must be numbers (got {error})") from None
    if not made.is_floating_point() or not bool(made.isfinite().all()):
        raise ValueError(
            f"TextNeighbours: embeddings must be finite floats (got {made.dtype}"
            f"{', with NaN or infinity' if made.is_floating_point() else ''})"
        )
    return made
