"""A catalogue that several processes serve from one folder: each follows what another changes."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from .catalogue import Catalogue, CatalogueStore

logger = logging.getLogger("crs_fast.serve")


class SharedCatalogueStore(CatalogueStore):
    """A `CatalogueStore` whose folder belongs to several processes, on one machine or on a file
    system that they share. Any of them may change the catalogue; the others follow.

        change:  with the folder's lock: refresh(), then change as `CatalogueStore`
        follow:  every so many seconds: refresh()

    The lock is `flock`'s, which ends with the process that holds it. A process that cannot read a
    new version logs the reason, serves the version that it has, and tries again.
    """

    _ended: threading.Event | None = None

    def change(
        self,
        add: Any = (),
        remove: Collection[str] = (),
        *,
        sids: Any = None,
        embeddings: Any = None,
    ) -> Catalogue:
        """See `CatalogueStore.change`. The change is made to what any process made current last.

        Raises:
            ValueError: the store has no directory, or as `CatalogueStore.change`.
        """
        with self._lock():
            self.refresh()
            return super().change(add, remove, sids=sids, embeddings=embeddings)

    def rollback(self, version: str) -> Catalogue:
        """See `CatalogueStore.rollback`. It is the way out for every process if a version that
        another one made cannot be read."""
        with self._lock(), self._changing:
            is_here = str(version) == self._current.version
            # Made current even if it is so here: another process may have gone on.
            self._make_current(self._current if is_here else self._read(str(version)))
            return self._current

    def follow(self, seconds: float = 1.0) -> None:
        """Look for a version that another process made current, in a thread, until `close`."""
        if not seconds > 0:
            raise ValueError(f"follow: seconds must be above 0 (got {seconds})")
        self.close()
        self._ended = threading.Event()
        if self.directory is not None:
            arguments = (seconds, self._ended)
            threading.Thread(target=self._follow, args=arguments, daemon=True).start()

    def close(self) -> None:
        """Follow no more."""
        if self._ended is not None:
            self._ended.set()

    def _follow(self, seconds: float, ended: threading.Event) -> None:
        last_problem = ""
        while not ended.wait(seconds):
            try:
                self.refresh()
                last_problem = ""
            except Exception as error:  # it may be mended: the thread must live on
                if str(error) != last_problem:
                    last_problem, version = str(error), self.current.version
                    logger.error("the catalogue stays at version %s: %s", version, error)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if self.directory is None:
            raise ValueError(
                "SharedCatalogueStore: directory must be a folder that all processes share, or the "
                "catalogue cannot be changed (got None)"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
