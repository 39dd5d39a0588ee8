"""Finding items by their text ids."""

from __future__ import annotations

import torch

from crs_fast.ops import text_find, text_table

from .case import Case, Methods, check_equal


def text_ids(size: str, device: str) -> tuple[str, Methods]:
    """Make the table of a catalogue's ids, and find a thousandth of them."""
    count = 1_000_000 if size == "full" else 2_000
    ids = [f"item-{number:07d}" for number in range(count)]
    wanted = ids[:: max(1, count // 1000)]
    text, offsets = _packed(ids)
    wanted_text, wanted_offsets = _packed(wanted)
    table, repeated = text_table(text, offsets)
    places = {name: place for place, name in enumerate(ids)}
    expected = torch.tensor([places[name] for name in wanted])
    found = text_find(text, offsets, table, wanted_text, wanted_offsets)
    check_equal("text_ids", expected, found)
    check_equal("text_ids", torch.tensor(repeated), torch.tensor(-1))

    def by_dict() -> list[int]:
        # From the same packed bytes, as a saved catalogue holds them.
        bounds, raw = offsets.tolist(), text.numpy().tobytes()
        table = {raw[bounds[i] : bounds[i + 1]]: i for i in range(count)}
        return [table[name.encode()] for name in wanted]

    def by_table() -> torch.Tensor:
        return text_find(text, offsets, text_table(text, offsets)[0], wanted_text, wanted_offsets)

    return f"{count} ids of 12 bytes, {len(wanted)} of them found", {
        "dict": by_dict,
        "text_table and text_find": by_table,
        "text_find alone": lambda: text_find(text, offsets, table, wanted_text, wanted_offsets),
    }


def _packed(ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids' bytes one after the other, uint8 [bytes], and where each begins, int64 [n + 1]."""
    encoded = [name.encode() for name in ids]
    offsets = torch.tensor([0, *map(len, encoded)]).cumsum(0)
    return torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8), offsets


CASES = [Case("text-ids", text_ids, ("text_table", "text_find"))]
