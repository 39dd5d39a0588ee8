"""Items from another source join the beams of a search, each with the language model's own score.

A beam search finds what training named often. A retriever that compares texts also finds items
that no dialogue has ever named; the language model can score those, but would not look there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crs_fast._arguments import check_kind, is_number
from crs_fast.crs.data.dialogue import Item, Turn
from crs_fast.trie import ItemFilter
from crs_fast.trie.item_filter import stacked

if TYPE_CHECKING:
    from crs_fast.crs.turn import TurnBatch
    from crs_fast.decode import RecommendOutput

Scored = tuple[str, float]
# The turns of each conversation -> its candidates, (item id, log-probability), best first.
Source = Callable[[Sequence[Sequence[Turn]]], Sequence[Sequence[Scored]]]
RULES = ("mixture", "product")
_EXACT = ("vocab", "level")  # with these, a filter does not change an item's score


@dataclass(frozen=True, slots=True)
class JoinedBeams:
    """How the candidates of another source join the beams of a search.

        p = probability of the item's SID by the language model    # beams and candidates alike
        q = probability of the item by the source                  # 0 if it is no candidate
        "mixture":  score = log((1 - share) * p + share * q)
        "product":  score = (1 - share) * log p + share * log q    # no candidate: the last one's q

    The language model scores the candidates that are not among the beams in one more search (in
    several, if there are very many), which a filter keeps to these items
    (`trie.filter(allow=...)`) and which prunes none of them.

    Args:
        source: gives each conversation its candidates with log-probabilities, best first, such as a
            `TextNeighbours`. Every id must be one of the catalogue.
        share: weight of the source, in [0, 1]. With 0 the order is the language model's own.
        rule: one of `RULES`.

    Raises:
        ValueError: a source that can't be called, a share outside [0, 1], or an unknown rule.
    """

    source: Source
    share: float = 0.1
    rule: str = "mixture"

    def __post_init__(self) -> None:
        check_kind("JoinedBeams: source", self.source, Callable, "a function of conversations")
        check_share(self.share)
        if self.rule not in RULES:
            raise ValueError(f"JoinedBeams: rule must be one of {RULES} (got {self.rule!r})")

    def for_items(self, items: Sequence[Item]) -> JoinedBeams:
        """The same for another catalogue. A source that has no method `for_items`, as
        `TextNeighbours` has, stays and must know the catalogue by itself."""
        follow = getattr(self.source, "for_items", None)
        return self if follow is None else replace(self, source=follow(items))

    def candidates(self, contexts: Sequence[Sequence[Turn]]) -> Sequence[Sequence[Scored]]:
        """The source's candidates of each conversation.

        Raises:
            ValueError: the source did not give one list for each.
        """
        lists = self.source(contexts) if contexts else []
        if len(lists) != len(contexts):
            raise ValueError(
                f"JoinedBeams: source must give one list for each of {len(contexts)} "
                f"conversations (got {len(lists)})"
            )
        return lists

    def need_exact(self, normalize: str) -> None:
        """
        Raises:
            ValueError: scores of this normalization depend on what a filter allows.
        """
        if normalize not in _EXACT:
            raise ValueError(
                f"JoinedBeams: normalize must be one of {_EXACT} where items join the beams "
                f"(got {normalize!r})"
            )

    def ranked(self, model: Mapping[str, float], candidates: Sequence[Scored]) -> list[Scored]:
        """The items with their joined scores, best first. Ties keep the order of `model`.

        Args:
            model: the language model's score of every item, beams first.
            candidates: those of the source; ids that `model` lacks are left out.
        """
        scores = dict(candidates)
        floor = min(scores.values(), default=0.0) if self.rule == "product" else -math.inf
        joined = {i: self._score(p, scores.get(i, floor)) for i, p in model.items()}
        return sorted(joined.items(), key=lambda scored: -scored[1])

    def _score(self, p: float, q: float) -> float:
        if self.rule == "product":
            weighted = ((1 - self.share, p), (self.share, q))
            return sum(weight * x for weight, x in weighted if weight)  # 0 * -inf would be NaN
        terms = (_log(1 - self.share) + p, _log(self.share) + q)
        largest = max(terms)
        if largest == -math.inf:
            return largest
        return largest + math.log(sum(math.exp(term - largest) for term in terms))


def check_share(share: float) -> None:
    """
    Raises:
        ValueError: the share of a source is no number in [0, 1].
    """
    if not is_number(share):
        raise ValueError(f"JoinedBeams: share must be a number in [0, 1] (got {share!r})")
    if not 0 <= share <= 1:
        raise ValueError(f"JoinedBeams: share must lie in [0, 1] (got {share!r})")


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def join_beams(
    turns: TurnBatch,
    rows: Sequence[int],
    beams: RecommendOutput,
    candidates: Sequence[Sequence[Scored]],
    join: JoinedBeams | None,
    filters: Sequence[ItemFilter | None],
    normalize: str = "vocab",
) -> list[list[Scored]]:
    """The items of a search joined by candidates, for each request of a batch, best first.

    Args:
        turns, rows: the requests that `beams` are of, as in `TurnBatch.rank`.
        candidates: those of each request.
        join: how they join; None leaves the beams as they are.
        filters: the filter of each request; what it denies does not join.

    Raises:
        ValueError: see `JoinedBeams.need_exact`; a candidate that is no item.
    """
    lists = _scored_items(beams)
    if join is None:
        return lists
    join.need_exact(normalize)
    model_scores = [dict(one) for one in lists]
    missing = [
        [i for i, _ in of_request if i not in scores]
        for of_request, scores in zip(candidates, model_scores, strict=True)
    ]
    for at, scored in _model_scores(turns, rows, missing, filters, normalize):
        model_scores[at].update(scored)
    return [join.ranked(m, c) for m, c in zip(model_scores, candidates, strict=True)]


def _model_scores(
    turns: TurnBatch,
    rows: Sequence[int],
    missing: Sequence[list[str]],
    filters: Sequence[ItemFilter | None],
    normalize: str,
) -> Iterator[tuple[int, list[Scored]]]:
    """Yield requests, as indices into `rows`, with the language model's scores of the items that
    their beams miss. One search is as large as `TurnBatch.rows_at_once` says, so a request with
    many items comes several times."""
    trie = turns.bundle.trie
    waiting = {at: ids for at, ids in enumerate(missing) if ids}
    while waiting:
        width = min(max(map(len, waiting.values())), turns.rows_at_once(1))
        some = list(waiting)[: turns.rows_at_once(width)]
        allowed = [trie.filter(allow=waiting[at][:width]) for at in some]
        both = [
            one if (given := filters[at]) is None else one & given
            for at, one in zip(some, allowed, strict=True)
        ]
        exact = turns.rank(
            [rows[at] for at in some], num_beams=width, normalize=normalize, filters=stacked(both)
        )
        yield from zip(some, _scored_items(exact), strict=True)
        for at in some:
            waiting[at] = waiting[at][width:]
        waiting = {at: ids for at, ids in waiting.items() if ids}


def _scored_items(beams: RecommendOutput) -> list[list[Scored]]:
    """The items of each request with their scores, best first."""
    return [
        list(zip(map(str, ids), scores, strict=True))
        for ids, scores in zip(beams.items, beams.item_scores, strict=True)
    ]
