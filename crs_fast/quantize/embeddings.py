"""Reads embeddings from .npy, .safetensors and .parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from crs_fast._arguments import Rule, check_arguments, check_path
from crs_fast.ops.host import as_tensor

_RULES = (Rule("key ids", str, optional=True),)


def load_embeddings(
    path: str | Path, key: str | None = None, ids: str | None = None
) -> tuple[Any, list[Any] | None]:
    """Read embeddings [N, D] from a .npy, .safetensors or .parquet file, or from a folder of
    .parquet files.

    Args:
        path: the file; a .npy file is memory-mapped, so it may be larger than memory. Of a folder,
            all .parquet files count as one, in the order of their names.
        key: name of the tensor in a .safetensors file, or of the list column in a .parquet file.
            None takes the only one; it is an error if there are several.
        ids: name of the column in a .parquet file that holds item ids.

    Returns:
        The embeddings (a numpy memory map or a tensor of floats) and the item ids, or None for
        the ids if `ids` is None.

    Raises:
        ValueError: the file's ending or the key is unknown, `key` is None and there are several,
            the embeddings are not float [N, D], or `ids` is given for another format.
        ImportError: a .parquet file is given and pyarrow is missing.
        OSError: the file does not exist, or the folder holds no .parquet files.
    """
    check_path("load_embeddings: path", path)
    check_arguments("load_embeddings", _RULES, key=key, ids=ids)
    path = Path(path)
    is_parquet = path.suffix == ".parquet" or path.is_dir()
    if not is_parquet and path.suffix not in (".npy", ".safetensors"):
        raise ValueError(
            f"load_embeddings: path must end with .npy, .safetensors or .parquet (got {path.name})"
        )
    if ids is not None and not is_parquet:
        raise ValueError(
            "load_embeddings: ids must be None, as ids come from .parquet files only "
            f"(got {path.name})"
        )
    if not path.exists():
        raise FileNotFoundError(f"load_embeddings: no file {path}")
    item_ids = None
    if path.suffix == ".npy":
        try:
            x: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"load_embeddings: {path.name} must be a whole .npy file of floats (got {error})"
            ) from None
    elif path.suffix == ".safetensors":
        x = _safetensors(path, key)
    else:
        x, item_ids = _parquet(path, key, ids)
    floats = x.is_floating_point() if isinstance(x, torch.Tensor) else x.dtype.kind == "f"
    if x.ndim != 2 or not floats:
        raise ValueError(
            f"load_embeddings: {path.name} must hold floats [N, D] "
            f"(got {x.dtype}, shape {tuple(x.shape)})"
        )
    return x, item_ids


def check_embeddings(what: str, x: Any, rows: int | None = None) -> None:
    """
    Args:
        rows: how many there must be, if that is known.

    Raises:
        ValueError: x is no tensor or array of floats [N, D] in memory, N and D at least 1; or, if
            `rows` is given, it has another number of rows or holds NaN or infinity.
    """
    is_tensor = isinstance(x, torch.Tensor)
    shape = tuple(getattr(x, "shape", ()))
    floats = x.is_floating_point() if is_tensor else getattr(x, "dtype", np.dtype("O")).kind == "f"
    in_memory = not is_tensor or (x.layout == torch.strided and not x.is_meta)
    count = "N" if rows is None else rows
    fits = len(shape) == 2 and 0 not in shape and rows in (None, shape[0])
    if not (floats and in_memory and fits):
        kind = f"{x.dtype} {list(shape)}" if shape else type(x).__name__
        raise ValueError(f"{what} must be floats [{count}, D] in memory (got {kind})")
    if rows is not None and not bool(torch.isfinite(as_tensor(x)).all()):
        raise ValueError(f"{what} must be finite (got NaN or infinity)")


def _safetensors(path: Path, key: str | None) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_only(path, list(file.keys()), key))
    except SafetensorError as error:
        raise ValueError(
            f"load_embeddings: {path.name} must be a whole .safetensors file (got {error})"
        ) from None


def _parquet(path: Path, key: str | None, ids: str | None) -> tuple[Any, list[Any] | None]:
    try:
        from pyarrow import parquet, types
    except ImportError as error:
        raise ImportError("load_embeddings: .parquet needs `pip install pyarrow`") from error
    files = _parquet_files(path)
    schema = parquet.read_schema(files[0])
    list_columns = [
        field.name
        for field in schema
        if types.is_list(field.type)
        or types.is_large_list(field.type)
        or types.is_fixed_size_list(field.type)
    ]
    key = _only(path, list_columns, key)
    if ids is not None and ids not in schema.names:
        raise ValueError(
            f"load_embeddings: ids must be one of {schema.names} in {path.name} (got {ids!r})"
        )
    table = parquet.read_table(files, columns=[key] if ids is None else [key, ids])
    column = table[key].combine_chunks()
    gaps = column.is_null().to_numpy(zero_copy_only=False).nonzero()[0]
    if len(gaps):
        raise ValueError(
            f"load_embeddings: rows of {path.name} must hold floats (got null in row {gaps[0]})"
        )
    if not len(column):
        raise ValueError(f"load_embeddings: {path.name} must hold rows (got none)")
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != lengths[0]).any():
        other = int((lengths != lengths[0]).argmax())
        raise ValueError(
            f"load_embeddings: rows of {path.name} must have one length "
            f"(got {lengths[0]} in row 0 and {lengths[other]} in row {other})"
        )
    item_ids = None if ids is None else table[ids].to_pylist()
    return torch.from_numpy(np.array(values)).view(len(lengths), -1), item_ids


def _parquet_files(path: Path) -> list[Path]:
    """The file, or those of the folder; names that begin with a dot are of half-written files."""
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.glob("*.parquet")) if not file.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"load_embeddings: {path} must hold .parquet files (got none)")
    return files


def _only(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        raise ValueError(
            f"load_embeddings: key must be one of {sorted(names)} in {path.name} (got {key!r})"
        )
    return key
