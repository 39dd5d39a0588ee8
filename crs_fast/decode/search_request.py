"""One request for recommendations: everything a caller asks for, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from crs_fast.ops import FilterTensors
from crs_fast.ops.trie import NORMALIZE
from crs_fast.ops.trie.checks import check_temperature
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary
from crs_fast.trie.sid_trie import check_sid_trie
from crs_fast.trie.terminated import Terminator, checked_terminator, with_terminator

# What `num_beams` counts in the items that come out: SIDs, or items themselves.
BY = ("sid", "item")
# Beams of a request stand in one sequence, whose positions are 32-bit numbers.
_MOST_BEAMS = 1 << 24


@dataclass(frozen=True)
class SearchRequest:
    """What a caller asks for a batch of prompts. `batch` is their number; the other fields are the
    arguments of `recommend`.

    Raises:
        ValueError: `num_beams` < 1, an unknown `normalize` or `by`, a temperature that is not above
            0, a vocabulary that lacks codes of the trie, a terminator that stands for one of them,
            filters of another catalogue or for another number of prompts.
    """

    trie: SidTrie
    vocab: Vocabulary | None
    batch: int
    num_beams: int = 50
    normalize: str = "vocab"
    temperature: float = 1.0
    filters: ItemFilter | None = None
    cuda_graph: bool = False
    compile_layers: bool = False
    by: str = "sid"
    terminator: Terminator | None = None

    def __post_init__(self) -> None:
        check_sid_trie("recommend", self.trie)
        if not hasattr(self.num_beams, "__index__"):
            raise ValueError(f"recommend: num_beams must be an integer (got {self.num_beams!r})")
        if not 1 <= self.num_beams < _MOST_BEAMS:
            raise ValueError(
                f"recommend: num_beams must be at least 1 and below {_MOST_BEAMS} "
                f"(got {self.num_beams})"
            )
        if self.normalize not in NORMALIZE:
            raise ValueError(
                f"recommend: normalize must be one of {NORMALIZE} (got {self.normalize!r})"
            )
        if self.by not in BY:
            raise ValueError(f"recommend: by must be one of {BY} (got {self.by!r})")
        check_temperature("recommend", self.temperature)
        if self.filters is not None and not isinstance(self.filters, ItemFilter):
            raise ValueError(
                f"recommend: filters must be an ItemFilter (got {type(self.filters).__name__})"
            )
        if self.filters is not None and self.filters.num_requests not in (1, self.batch):
            raise ValueError(
                f"recommend: filters must hold one filter for all or one a prompt, {self.batch} "
                f"(got {self.filters.num_requests})"
            )
        # Refuse a vocabulary that lacks codes of the trie, and filters of another catalogue.
        _ = self.vocabulary, self.bitmaps, self.ending

    def terminated(self) -> SearchRequest:
        """The same request where the terminator's tokens are the last codes of each SID; itself
        where there is none."""
        if not self.ending:
            return self
        trie, vocab = with_terminator(self.trie, self.vocabulary, self.ending)
        return replace(self, trie=trie, vocab=vocab, terminator=None)

    @cached_property
    def ending(self) -> tuple[int, ...]:
        """The tokens of the terminator."""
        if self.terminator is None:
            return ()
        return checked_terminator("recommend", self.trie, self.vocabulary, self.terminator)

    @property
    def tree_size(self) -> int:
        """Tokens that a prompt's tree holds at most; the last level's are not fed."""
        return self.num_beams * (self.trie.num_levels - 1)

    @property
    def most_items(self) -> int | None:
        """So many items at most come out for each prompt; None means all that the beams name."""
        return self.num_beams if self.by == "item" else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Which token stands for which code, also where `vocab` is None."""
        return self.trie.vocabulary(self.vocab, "recommend")

    @cached_property
    def bitmaps(self) -> FilterTensors | None:
        """The filters as one bitmap per prompt, on the trie's device."""
        filters = self.filters
        if filters is None:
            return None
        if filters.num_requests == 1 and self.batch > 1:
            filters = ItemFilter.stack([filters] * self.batch)
        return filters.over(self.trie).tensors
