"""Looking texts up among many: what the op computes, and every check."""

from __future__ import annotations

import torch

from crs_fast import _native

from ..checked import CheckedContents
from . import native as kernel
from . import reference

# Which tables belong to which texts.
_TABLES = CheckedContents()


def text_table(text: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A table by which `text_find` finds texts.

        for i in range(N): table[hash(text[offsets[i] : offsets[i + 1]])] = i

    Args:
        text: uint8 [bytes], the texts one after the other.
        offsets: int64 [N + 1], ascending from 0: text i is the bytes from `offsets[i]` to
            `offsets[i + 1]`. N < 2^31.

    Returns:
        The table, int64, about 16 N bytes, good for this process and these texts only; and the
        position of a text that stands before it too, -1 where all are distinct.

    Raises:
        ValueError: another dtype, shape or device, or offsets that leave the text.
    """
    _check("text_table: text and offsets", text, offsets)
    table, repeated = _made(text, offsets)
    _TABLES.remember((text, offsets, table))
    return table, repeated


def _made(text: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, int]:
    native = _native.load()
    if native is None:
        return reference.text_table(text, offsets)
    return kernel.text_table(native, text, offsets)


def text_find(
    text: torch.Tensor,
    offsets: torch.Tensor,
    table: torch.Tensor,
    wanted: torch.Tensor,
    wanted_offsets: torch.Tensor,
) -> torch.Tensor:
    """The position of each wanted text, int64 [n]; -1 where it is not among the texts.

    Args:
        text, offsets, table: what `text_table` took and returned.
        wanted, wanted_offsets: the texts to find, as `text` and `offsets`.

    Raises:
        ValueError: another dtype, shape or device, or the table of other texts.
    """
    _check("text_find: text and offsets", text, offsets)
    _check("text_find: wanted and wanted_offsets", wanted, wanted_offsets)
    native = _native.load()
    count = offsets.numel() - 1
    size = count if native is None else kernel.num_slots(count)
    if not isinstance(table, torch.Tensor) or table.layout != torch.strided:
        raise ValueError(
            f"text_find: table must be a dense torch tensor (got {type(table).__name__})"
        )
    if table.dtype != torch.int64 or table.device.type != "cpu" or tuple(table.shape) != (size,):
        raise ValueError(
            f"text_find: table must be that of the texts, int64 [{size}] "
            f"(got {table.dtype} {list(table.shape)})"
        )

    def check() -> None:
        if not torch.equal(table, _made(text, offsets)[0]):
            raise ValueError("text_find: table must be that of the texts (got another)")

    _TABLES.require((text, offsets, table), (), check)
    if native is None:
        return reference.text_find(text, offsets, table, wanted, wanted_offsets)
    return kernel.text_find(native, text, offsets, table, wanted, wanted_offsets)


def _check(names: str, text: torch.Tensor, offsets: torch.Tensor) -> None:
    for tensor, dtype in ((text, torch.uint8), (offsets, torch.int64)):
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{names} must be dense torch tensors (got {type(tensor).__name__})")
        if tensor.dtype != dtype or tensor.ndim != 1 or tensor.device.type != "cpu":
            raise ValueError(
                f"{names} must be uint8 [bytes] and int64 [N + 1] on the CPU "
                f"(got {tensor.dtype} {list(tensor.shape)} on {tensor.device})"
            )
    if (
        not 1 <= offsets.numel() <= 1 << 31
        or int(offsets[0]) != 0
        or int(offsets[-1]) != text.numel()
        or bool((offsets[1:] < offsets[:-1]).any())
    ):
        raise ValueError(
            f"{names} must agree: offsets ascend from 0 to the {text.numel()} bytes "
            f"(got {offsets.numel()} offsets that don't)"
        )
