"""Gzipped files, with a limit on what they unpack to."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

# Gzip packs zeros a thousandfold and texts three- to twentyfold.
MOST_TIMES = 200
ALWAYS_ALLOWED = 64 << 20  # bytes

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


class UnpacksToTooMuchError(ValueError):
    """A gzipped file unpacks to more than its limit."""


def open_gzip(path: Path) -> BinaryIO:
    """The unpacked bytes of a file. Reading past the larger of `ALWAYS_ALLOWED` and `MOST_TIMES`
    the size of the file raises `UnpacksToTooMuchError`, and a damaged file one of `DAMAGED`."""
    limit = max(ALWAYS_ALLOWED, MOST_TIMES * path.stat().st_size)
    return cast(BinaryIO, io.BufferedReader(_Limited(path, limit)))


class _Limited(io.RawIOBase):
    def __init__(self, path: Path, limit: int) -> None:
        self._file = gzip.GzipFile(path)
        self._left = self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise UnpacksToTooMuchError(
                f"it unpacks to more than {self._limit >> 20} MiB, the larger of "
                f"{ALWAYS_ALLOWED >> 20} MiB and {MOST_TIMES} times its size"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
