"""Index files of other projects; see `load_index`."""

from .sid_index import SidIndex, load_index

__all__ = ["SidIndex", "load_index"]
