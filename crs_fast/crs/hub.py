"""Model directories by their names on the Hugging Face hub."""

from __future__ import annotations

from os import PathLike
from pathlib import Path


def local_folder(name: str | PathLike[str], revision: str | None = None) -> Path:
    """The directory of that path or, where there is none, of the hub's repository of that name,
    which is downloaded if it must be. A path on this machine asks no network.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    parts = str(name).split("/")
    if (
        not isinstance(name, str)
        or len(parts) != 2
        or not all(parts)
        or parts[0] in (".", "..", "~")
    ):
        raise FileNotFoundError(f"load_bundle: {name} must be a directory (got no such directory)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision))
    except (OSError, ValueError) as error:  # offline, or no such repository
        raise FileNotFoundError(
            f"load_bundle: {name} must be a directory or a repository on the hub (got no "
            f"directory, and from the hub: {str(error).strip().splitlines()[0]})"
        ) from error


def upload(folder: str | Path, repo_id: str, *, private: bool | None = None) -> str:
    """Make the hub's repository of that name, if there is none, hold the directory's files, those
    of the training run left out. Returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo_id, folder_path=folder, ignore_patterns=["training/*", "training/**"]
    )
    return str(done.commit_url)
