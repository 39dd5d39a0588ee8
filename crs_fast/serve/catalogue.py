"""A catalogue that changes while it is served: versions, each whole, of which one is current."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crs_fast._files import write_text
from crs_fast.crs.catalogue_files import catalogue_fingerprint, read_catalogue, write_catalogue
from crs_fast.crs.recommender import Recommender

FIRST = "0"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One version of the catalogue. It never changes, so a request that holds it ends on the items
    that it began with."""

    version: str
    recommender: Recommender

    @property
    def num_items(self) -> int:
        return len(self.recommender.bundle.items)


class CatalogueStore:
    """The versions of a recommender's catalogue. Any thread may call any method.

        store = CatalogueStore(recommender, "catalogues", on_swap=lambda new: engine.swap(
            new.recommender, new.version))
        store.change(add=[Item("m1", "Heat", 1995)], remove=["m2"])
        store.rollback("0")

    A change is prepared beside the current catalogue, by the calling thread, written to disk, and
    made current by one assignment. If anything fails before that, nothing has changed. Changes wait
    for each other; readers of `current` never wait.

    Args:
        recommender: the model with its first catalogue, which is version "0".
        directory: where versions are kept, so that they survive a restart: the store begins with
            the version that was current last. None keeps them in memory.
        on_swap: called with each new current catalogue, in order, before `change` returns.
        keep: how many of the newest versions are kept, beside "0" and the current one.
        version: the version to begin with; None takes the one that was current last.

    Raises:
        ValueError: `keep` is below 1, the directory holds versions of another model, or the version
            to begin with is damaged; another one can be given then.
        FileNotFoundError: there is no such version.
    """

    def __init__(
        self,
        recommender: Recommender,
        directory: str | Path | None = None,
        *,
        on_swap: Callable[[Catalogue], Any] | None = None,
        keep: int = 10,
        version: str | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"CatalogueStore: keep must be at least 1 (got {keep})")
        self.directory = None if directory is None else Path(directory)
        self.keep = keep
        self._first = Catalogue(FIRST, recommender.prepare())
        self._base = catalogue_fingerprint(recommender.bundle)
        self._changing = threading.Lock()
        self._in_memory: dict[str, Catalogue] = {}  # all versions where there is no directory
        self._current = self._first
        self._current = self._read(self._pointer() if version is None else str(version))
        self._on_swap = on_swap

    @property
    def current(self) -> Catalogue:
        """The catalogue for new requests. Take it once per request and hold on to it."""
        return self._current

    @property
    def versions(self) -> list[str]:
        """The versions that `rollback` takes, oldest first."""
        names = {FIRST, *self._in_memory}
        if self.directory is not None and self._folders.is_dir():
            names |= {path.name for path in self._folders.iterdir() if path.name.isdecimal()}
        return sorted(names, key=int)

    def change(
        self,
        add: Any = (),
        remove: Collection[str] = (),
        *,
        sids: Any = None,
        embeddings: Any = None,
    ) -> Catalogue:
        """Make a version with items added and removed (see `Recommender.with_catalogue`) current.
        Returns it; without items to add or remove, the current version stays.

        Raises:
            ValueError: as `with_catalogue`; nothing has changed then.
            OSError: it can't be written; nothing has changed then.
        """
        with self._changing:
            recommender = self._current.recommender.with_catalogue(
                add, remove, sids=sids, embeddings=embeddings
            )
            if recommender is self._current.recommender:
                return self._current
            made = Catalogue(str(int(self.versions[-1]) + 1), recommender.prepare())
            self._write(made)
            try:
                self._make_current(made)
            finally:
                self._forget_old(made)
            return made

    def rollback(self, version: str) -> Catalogue:
        """Make an earlier version current again, or a later one. The next change goes on from it.

        Raises:
            FileNotFoundError: there is no such version (any more).
            ValueError: it is damaged; nothing has changed then.
        """
        with self._changing:
            if str(version) != self._current.version:
                made = self._read(str(version))
                self._make_current(made)
            return self._current

    def refresh(self) -> Catalogue:
        """Follow the directory where another process made another version current. Nothing is
        written: that process may have gone on meanwhile.

        Raises:
            FileNotFoundError: that version is not there (any more).
            ValueError: it is damaged. In either case nothing has changed.
        """
        with self._changing:
            version = self._pointer()
            if version != self._current.version:
                self._serve(self._read(version))
            return self._current

    @property
    def _folders(self) -> Path:
        assert self.directory is not None
        return self.directory / "versions"

    def _pointer(self) -> str:
        path = None if self.directory is None else self.directory / "current.json"
        if path is None or not path.is_file():
            return self._current.version
        try:
            version, base = (json.loads(path.read_text())[key] for key in ("version", "base"))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"CatalogueStore: {path} must name the current version (got a damaged file)"
            ) from None
        if base != self._base:
            raise ValueError(
                f"CatalogueStore: {self.directory} must hold catalogues of this model, "
                f"{self._base[:12]}… (got {str(base)[:12]}…)"
            )
        return str(version)

    def _make_current(self, catalogue: Catalogue) -> None:
        if self.directory is not None:
            pointer = {"version": catalogue.version, "base": self._base}
            write_text(self.directory / "current.json", json.dumps(pointer) + "\n")
        self._serve(catalogue)

    def _serve(self, catalogue: Catalogue) -> None:
        self._current = catalogue
        if self._on_swap is not None:
            self._on_swap(catalogue)

    def _write(self, catalogue: Catalogue) -> None:
        if self.directory is None:
            self._in_memory[catalogue.version] = catalogue
        else:
            bundle = catalogue.recommender.bundle
            write_catalogue(self._folders / catalogue.version, bundle, self._base)

    def _read(self, version: str) -> Catalogue:
        if version == FIRST:
            return self._first
        if version not in self.versions:
            raise FileNotFoundError(
                f"CatalogueStore: version must be one of {self.versions} (got {version!r})"
            )
        if version in self._in_memory:
            return self._in_memory[version]
        first = self._first.recommender
        bundle = read_catalogue(self._folders / version, first.bundle, self._base)
        return Catalogue(version, first.with_bundle(bundle).prepare())

    def _forget_old(self, made: Catalogue) -> None:
        """Delete the versions that need not be kept, and the one just made if it did not become
        current."""
        old = self.versions[: -self.keep]
        for version in old if self._current is made else [made.version]:
            if version in (FIRST, self._current.version):
                continue
            self._in_memory.pop(version, None)
            if self.directory is not None:
                shutil.rmtree(self._folders / version, ignore_errors=True)
