"""Manifests of folders: which files belong together, and whether they are still those files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a manifest says of some files of its folder: their sizes and SHA-256 (hex)."""
    names = list(names)
    return {
        "bytes": {name: (folder / name).stat().st_size for name in names},
        "sha256": {name: sha256_of(folder / name) for name in names},
    }


def read_manifest(op: str, path: Path, kinds: Mapping[str, type | tuple[type, ...]]) -> Any:
    """The JSON object of a manifest, which must have these keys, with values of these kinds.

    Raises:
        ValueError: it is no JSON object, a key is missing or of another kind, or it names a file
            outside its folder.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _malformed(op, path, f"no JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise _malformed(op, path, f"a {type(manifest).__name__} instead of an object")
    for key, kind in kinds.items():
        if key not in manifest:
            raise _malformed(op, path, f"no key {key!r}")
        if not isinstance(manifest[key], kind) or isinstance(manifest[key], bool):
            raise _malformed(op, path, f"{key} = {str(manifest[key])[:60]}")
    for name, digest in manifest["sha256"].items():
        if not _is_inside(name):
            raise _malformed(op, path, f"the file {name!r}, which is outside the folder")
        if not isinstance(digest, str):
            raise _malformed(op, path, f"sha256 of {name} = {str(digest)[:60]}")
    sizes = manifest.setdefault("bytes", {})
    if not isinstance(sizes, dict) or not sizes.keys() <= manifest["sha256"].keys():
        raise _malformed(op, path, f"bytes = {str(sizes)[:60]}")
    return manifest


def check_files(op: str, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the files with their manifest: all sizes first, since they cost nothing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has another size or other contents.
    """
    for name in manifest["sha256"]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{op}: {folder} must hold {name} (got no such file)")
    for name, size in manifest["bytes"].items():
        if (got := (folder / name).stat().st_size) != size:
            raise ValueError(
                f"{op}: {folder / name} must be the file saved with this model, {size} bytes "
                f"(got {got})"
            )
    for name, expected in manifest["sha256"].items():
        if (digest := sha256_of(folder / name)) != expected:
            raise ValueError(
                f"{op}: {folder / name} must be the file saved with this model, sha256 "
                f"{expected[:12]}… (got {digest[:12]}…)"
            )


def refuse_pickles(op: str, folder: Path) -> None:
    """Refuse a model folder whose weights are pickles only: reading one can run any code.

    Raises:
        ValueError: it is such a folder.
    """
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{op}: {folder} must hold its weights as .safetensors (got {pickles[0]}, a pickle, "
            "which can run any code when it is read)"
        )


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_inside(name: str) -> bool:
    paths = PurePosixPath(name), PureWindowsPath(name)
    return bool(name) and not any(p.is_absolute() or p.drive or ".." in p.parts for p in paths)


def _malformed(op: str, path: Path, why: str) -> ValueError:
    return ValueError(f"{op}: {path} must be a whole manifest (got {why})")
