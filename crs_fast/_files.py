"""Files and folders that are there whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2
_AT_FDCWD = -100


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` at which to write a file or make a new folder. When the block ends well
    it is flushed to the disk and takes `path`'s place by one rename; otherwise it is deleted. It
    gets the modes that the umask says. Of two writers of one path, the last one's file stays."""
    path = Path(path)
    partial = _beside(path)
    try:
        yield partial
        _finish(partial)
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        _delete(partial)


@contextmanager
def replacing_folder(path: str | Path, kept: Callable[[str], bool]) -> Iterator[Path]:
    """A new folder beside the folder `path`, which takes its place when the block ends well. At
    every moment `path` is the whole old folder or the whole new one.

    Entries of the old folder for which `kept(name)` is true, and that the block did not write, are
    in the new folder too: as hard links, or copies where the file system has no links.

    Where two folders can't change places in one step (not Linux, a mount point, the working
    directory), files are replaced one by one: each is whole, but a crash can leave some old and
    some new ones.
    """
    # A link stays a link: what it points to is replaced.
    path = Path(os.path.realpath(path))
    partial = _beside(path)
    try:
        partial.mkdir()
        yield partial
        _finish(partial)
        if not path.is_dir():
            try:
                os.rename(partial, path)
                sync_folder(path.parent)
                return
            except OSError:
                if not path.is_dir():
                    raise  # else another writer was faster
        _take_place(partial, path, kept)
    finally:
        _delete(partial)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def umask() -> int:
    """The process's umask. Where the system does not tell it, it can only be read by setting it,
    and for that moment other threads' files get no mask but this strict one."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:")[1].split()[0], 8)
    except (OSError, IndexError, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to the disk."""
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            if not entry.is_symlink():
                sync_tree(entry)
        sync_folder(path)
        return
    file = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names, so that a rename in it outlasts a power cut."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return  # a system on which folders can't be opened
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not of this file system
            raise
    finally:
        os.close(folder)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _finish(partial: Path) -> None:
    """Give what was written the umask's modes, since `mkdtemp` and safetensors create files that
    only their owner may read, and flush it."""
    mask = umask()
    for entry in (partial, *(partial.rglob("*") if partial.is_dir() else ())):
        if not entry.is_symlink():
            with suppress(PermissionError):  # a file system without modes
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~mask)
    sync_tree(partial)


def _take_place(partial: Path, path: Path, kept: Callable[[str], bool]) -> None:
    inside = path == Path.cwd() or path in Path.cwd().parents
    if not inside:
        _link_kept(path, partial, kept)
        if exchange(partial, path):
            sync_folder(path.parent)
            _move_late(partial, path, kept)
            return
    _merge(partial, path, kept)


def _link_kept(old: Path, new: Path, kept: Callable[[str], bool]) -> None:
    for entry in old.iterdir():
        if kept(entry.name) and not (new / entry.name).exists():
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
            else:
                _link(entry, new / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _move_late(old: Path, new: Path, kept: Callable[[str], bool]) -> None:
    """Move what another process put into kept folders after they were linked."""
    for entry in old.iterdir():
        if not kept(entry.name):
            continue
        target = new / entry.name
        if not target.exists():
            os.replace(entry, target)
        elif entry.is_dir() and not entry.is_symlink():
            _move_late(entry, target, lambda name: True)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step. False where the system can't."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)


def _merge(partial: Path, path: Path, kept: Callable[[str], bool]) -> None:
    """Move a folder's files into another one by one, and delete there what is neither new nor
    kept."""
    new = {entry.name for entry in partial.iterdir()}
    for name in sorted(new):
        source, target = partial / name, path / name
        if source.is_dir() and target.is_dir():
            _merge(source, target, lambda name: False)
            continue
        if target.is_dir():
            _delete(target)
        os.replace(source, target)
    for stale in [entry for entry in path.iterdir() if entry.name not in new]:
        if not kept(stale.name):
            _delete(stale)
    sync_folder(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
