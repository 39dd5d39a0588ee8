"""SIDs as arrays: `.npy` and `.safetensors`, as TIGER-like code and GRID hold them in memory.

An array is [items, levels], -1 pads. GRID's tensors are [levels, items] (`format="grid"`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from crs_fast._files import replacing

from .rows import Rows, broken

_MOST_LEVELS = 127  # of a trie
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_NAMES = ("sids", "semantic_ids", "codes")


def refuse_pickle(path: Path) -> ValueError:
    return broken(
        path,
        "is a pickle, which can run any code when it is read. Where you trust it, convert it once: "
        f"numpy.save({path.with_suffix('.npy').name!r}, "
        f"torch.load({path.name!r}, weights_only=True).numpy())",
    )


def read_array(path: Path) -> Rows:
    return _read(path, grid=False)


def read_grid(path: Path) -> Rows:
    return _read(path, grid=True)


def _read(path: Path, grid: bool) -> Rows:
    if not path.is_file():
        raise FileNotFoundError(f"load_index: no file {path}")
    if path.suffix == ".safetensors":
        sids, item_ids = _read_safetensors(path)
    else:
        sids, item_ids = _read_npy(path), None
    if sids.ndim != 2 or sids.dtype == torch.bool or sids.is_floating_point() or sids.is_complex():
        raise broken(
            path, f"must hold integers [items, levels] (got {sids.dtype} {tuple(sids.shape)})"
        )
    if grid:
        sids = sids.t()
    elif sids.shape[1] > sids.shape[0]:
        raise broken(
            path,
            f"must hold [items, levels] (got {tuple(sids.shape)}, more levels than items); if it "
            "is [levels, items], as in GRID, say format='grid'",
        )
    if sids.shape[0] == 0:
        raise broken(path, "must hold at least one item (got none)")
    if sids.shape[1] > _MOST_LEVELS:
        raise broken(path, f"must have at most {_MOST_LEVELS} levels (got {sids.shape[1]})")
    return Rows(sids.to(torch.int64).contiguous(), item_ids)


def _read_npy(path: Path) -> torch.Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # its header is Python, whose parser has errors of many kinds
        if "pickle" in str(error) or "Python objects" in str(error):
            raise refuse_pickle(path) from None
        raise broken(path, f"is no whole .npy file; it may be cut off ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise broken(path, f"must hold integers (got {getattr(array, 'dtype', 'an archive')})")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise broken(path, f"must hold codes below 2^31 (got {array.max()})")
    return torch.from_numpy(array.astype(np.int64))


def _read_safetensors(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise broken(path, f"is no whole safetensors file; it may be cut off ({error})") from None
    item_ids = tensors.pop("item_ids", None)
    name = next((name for name in _NAMES if name in tensors), None)
    if name is None and len(tensors) == 1:
        name = next(iter(tensors))
    if name is None:
        raise broken(path, f"must hold one tensor, or {_NAMES[0]!r} (got {sorted(tensors)})")
    sids = tensors[name]
    if item_ids is not None and item_ids.numel() != max(sids.shape, default=0):
        raise broken(
            path,
            f"must hold one id per item in item_ids (got {item_ids.numel()} for "
            f"{tuple(sids.shape)})",
        )
    return sids, item_ids


def write_npy(path: Path, sids: torch.Tensor) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, sids.numpy(), allow_pickle=False)


def write_safetensors(path: Path, sids: torch.Tensor, item_ids: torch.Tensor | None) -> None:
    from safetensors.torch import save_file

    tensors = {"sids": sids.contiguous()}
    if item_ids is not None:
        tensors["item_ids"] = item_ids
    with replacing(path) as partial:
        save_file(tensors, str(partial))
