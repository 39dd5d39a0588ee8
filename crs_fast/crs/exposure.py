"""Which items one turn may show: deny and allow lists, groups, and what was named or shown before.

    allowed = every item
    allowed &= allow; allowed &= union of groups; allowed -= exclude
    allowed -= films named or shown before                     # without repeat_named
    for item in allowed, best first:
        skip it if one of its groups has max_per_group items in the list, or, without
        repeat_named, if its film is in the list
        list += item

`respond`, `rank`, `crs-fast chat` and the server all take their lists from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from crs_fast._arguments import all_of_kind, check_kind, is_integer
from crs_fast.crs.checkpoint import check_items_of
from crs_fast.crs.data.dialogue import Item, Turn
from crs_fast.crs.joined_beams import JoinedBeams, Scored, join_beams
from crs_fast.trie import ItemFilter, SidTrie
from crs_fast.trie.item_filter import stacked

if TYPE_CHECKING:
    from crs_fast.crs.turn import TurnBatch

GroupsOf = Callable[[Item], Iterable[str]]


def genres_of(item: Item) -> list[str]:
    """The item's genres as group names: the field `genres`, cut at commas, in lower case."""
    return [name for part in item.fields.get("genres", "").split(",") if (name := group_name(part))]


def group_name(text: str) -> str:
    """The name of a group as it is compared: in lower case, without space around it."""
    return text.strip().lower()


class ItemGroups:
    """The groups and films of a catalogue's items, with a prepared filter for each group.

    Args:
        items: the catalogue.
        trie: the trie of the same items.
        groups_of: the names of the groups that an item belongs to.

    Raises:
        ValueError: items that are no `Item`s or not those of the trie, or names of groups that are
            no strings.
    """

    def __init__(
        self, items: Sequence[Item], trie: SidTrie, groups_of: GroupsOf = genres_of
    ) -> None:
        items = all_of_kind("ItemGroups: items", items, Item, "Items")
        check_kind("ItemGroups: trie", trie, SidTrie, "a SidTrie")
        check_kind("ItemGroups: groups_of", groups_of, Callable, "a function of an Item")
        check_items_of("ItemGroups", trie, items)
        self.trie = trie
        self._ids = {item.item_id for item in items}
        self._groups: dict[str, tuple[str, ...]] = {}  # of each item that has any
        self._members: dict[str, list[str]] = {}
        self._film = {item.item_id: item.imdb_id for item in items if item.imdb_id is not None}
        self._entries: dict[str, list[str]] = {}  # the items of each film
        for item in items:
            groups = all_of_kind(
                "ItemGroups: groups_of", groups_of(item), str, "a function that gives names"
            )
            names = dict.fromkeys(map(group_name, groups))
            if names:
                self._groups[item.item_id] = tuple(names)
            for name in names:
                self._members.setdefault(name, []).append(item.item_id)
            if item.imdb_id is not None:
                self._entries.setdefault(item.imdb_id, []).append(item.item_id)
        self._filters: dict[str, ItemFilter] = {}

    def __contains__(self, item_id: object) -> bool:
        """Whether the catalogue has this item."""
        return item_id in self._ids

    @property
    def names(self) -> list[str]:
        """The names of all groups, sorted."""
        return sorted(self._members)

    def of(self, item_id: str) -> tuple[str, ...]:
        """The groups of an item."""
        return self._groups.get(item_id, ())

    def film(self, item_id: str) -> str:
        """What the entries of one film have in common: its `imdb_id`, or the id of its only
        entry."""
        return self._film.get(item_id, item_id)

    def entries(self, item_ids: Iterable[str]) -> list[str]:
        """These items and all other entries of their films; ids of no item are left out."""
        films = dict.fromkeys(self.film(i) for i in item_ids if i in self._ids)
        return [entry for film in films for entry in self._entries.get(film, [film])]

    def members(self, names: Iterable[str]) -> list[str]:
        """The items of some groups, each once."""
        return list(dict.fromkeys(i for name in names for i in self._members[name]))

    def filter(self, names: Collection[str]) -> ItemFilter:
        """A filter that allows the items of these groups, made once for each group."""
        filters = [self._filter(name) for name in names]
        union = filters[0]
        for one in filters[1:]:
            union = union | one
        return union

    def _filter(self, name: str) -> ItemFilter:
        made = self._filters.get(name)
        if made is None:
            made = self._filters[name] = self.trie.filter(allow=self._members[name])
        return made


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one request may be shown.

    Args:
        exclude: ids of items that may be neither recommended nor named in the reply.
        allow: ids of the only items that may; None allows all.
        groups: names of groups; an item must be in one of them. Empty for all items.
        max_per_group: the most items of one group in the list, for every group or by name. An item
            without groups is not counted.
        repeat_named: whether items that the conversation named or showed may be recommended again.
            If not, their films' other entries (items with the same `imdb_id`) may not either, and a
            list holds a film once. The reply may name them in any case.

    Raises:
        ValueError: what is no collection of names, or a limit that is no integer from 1 on.
    """

    exclude: Collection[str] = ()
    allow: Collection[str] | None = None
    groups: Collection[str] = ()
    max_per_group: int | Mapping[str, int] | None = None
    repeat_named: bool = True

    def __post_init__(self) -> None:
        for name in ("exclude", "allow", "groups"):
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Collection):
                if value is None and name != "exclude":
                    continue
                raise ValueError(f"Exposure: {name} must be a collection of names (got {value!r})")
        groups = all_of_kind("Exposure: groups", self.groups or (), str, "a collection of names")
        object.__setattr__(self, "groups", tuple(map(group_name, groups)))
        check_kind("Exposure: repeat_named", self.repeat_named, bool, "True or False")
        limits = self.max_per_group
        if isinstance(limits, Mapping):
            all_of_kind("Exposure: max_per_group", [*limits], str, "limits by the names of groups")
            limits = {group_name(name): limit for name, limit in limits.items()}
            object.__setattr__(self, "max_per_group", limits)
        numbers = limits.values() if isinstance(limits, Mapping) else [limits]
        if limits is not None and not all(is_integer(n, 1) for n in numbers):
            raise ValueError(
                "Exposure: max_per_group must be at least 1, an integer for all groups or for "
                f"each by name (got {self.max_per_group!r})"
            )

    def known(self, catalogue: ItemGroups) -> tuple[Exposure, list[str]]:
        """This exposure without the ids and groups that the catalogue lacks, and these. What only
        lacking ids or groups were allowed to do, nothing may."""
        allow, names = self.allow, [name for name in self.groups if name in catalogue._members]
        limits = self.max_per_group
        by_name = limits if isinstance(limits, Mapping) else {}
        lacking = [i for i in (*self.exclude, *(allow or ())) if i not in catalogue]
        lacking += [n for n in (*self.groups, *by_name) if n not in catalogue._members]
        if not lacking:
            return self, []
        if by_name:
            limits = {n: most for n, most in by_name.items() if n in catalogue._members}
        allow = None if allow is None else [i for i in allow if i in catalogue]
        known = replace(
            self,
            exclude=[i for i in self.exclude if i in catalogue],
            allow=() if self.groups and not names else allow,
            groups=names,
            max_per_group=limits,
        )
        return known, list(dict.fromkeys(lacking))

    def need_known(self, catalogue: ItemGroups, op: str) -> None:
        """
        Raises:
            ValueError: an id or a group that the catalogue lacks.
        """
        ids = [i for i in (*self.exclude, *(self.allow or ())) if i not in catalogue]
        if ids:
            raise ValueError(
                f"{op}: exclude, allow and item must be ids of the catalogue (got {ids[0]!r})"
            )
        _, lacking = self.known(catalogue)
        if lacking:
            raise ValueError(
                f"{op}: groups must be among {catalogue.names[:20]} (got {lacking[0]!r})"
            )

    def reply_filter(self, catalogue: ItemGroups) -> ItemFilter | None:
        """The items that the request may be told of at all; None for all."""
        made: ItemFilter | None = None
        if self.exclude or self.allow is not None:
            deny = list(self.exclude) or None
            allow = None if self.allow is None else list(self.allow)
            made = catalogue.trie.filter(allow=allow, deny=deny)
        if self.groups:
            of_groups = catalogue.filter(self.groups)
            made = of_groups if made is None else made & of_groups
        return made

    def may_name(self, item_id: str, catalogue: ItemGroups) -> bool:
        """Whether `reply_filter` allows this item."""
        if item_id in self.exclude or (self.allow is not None and item_id not in self.allow):
            return False
        return not self.groups or not set(self.groups).isdisjoint(catalogue.of(item_id))

    def limit(self, group: str) -> int | None:
        """The most items of this group in a list; None for any number."""
        limits = self.max_per_group
        return limits.get(group) if isinstance(limits, Mapping) else limits


def exposures_of(
    op: str,
    catalogue: ItemGroups,
    limits: Exposure,
    batch: int | None,
    exclude: Any,
    allow: Any,
) -> list[Exposure]:
    """What each request of a call may be shown.

    Args:
        limits: what all requests have in common.
        batch: the number of requests; None for a single one.
        exclude, allow: a collection of ids or None; for a batch, one for each request or None.

    Raises:
        ValueError: not one collection per request; an id or a group that the catalogue lacks.
    """
    both = [
        _one_each(op, name, value, batch)
        for name, value in (("exclude", exclude), ("allow", allow))
    ]
    exposures = [
        replace(limits, exclude=list(denied or ()), allow=_collection(allowed))
        for denied, allowed in zip(*both, strict=True)
    ]
    for exposure in exposures:
        exposure.need_known(catalogue, op)
    return exposures


def _collection(ids: Any) -> Any:
    """What can be read only once (a generator) as a list."""
    return ids if ids is None or isinstance(ids, Collection) else list(ids)


def _one_each(op: str, name: str, value: Any, batch: int | None) -> list[Any]:
    values = [value] if batch is None else list(value or [None] * batch)
    odd = [ids for ids in values if ids is not None and not isinstance(ids, Iterable)]
    if odd:
        raise ValueError(f"{op}: {name} must be a collection of item ids (got {odd[0]!r})")
    if batch is None:
        return values
    if len(values) != batch:
        raise ValueError(
            f"{op}: {name} must hold one collection per request, {batch} (got {len(values)})"
        )
    return values


class ExposedList:
    """A request's list while it is made from one ranking or several.

    Args:
        exposure: its ids and groups must be known (see `Exposure.known`).
        catalogue: the catalogue's groups.
        named: ids that the conversation named or showed; ids of no item are ignored.
        num_items: the most items of the list.
        turns: the conversation, for which a source gives the candidates that join the beams.
    """

    def __init__(
        self,
        exposure: Exposure,
        catalogue: ItemGroups,
        named: Iterable[str],
        num_items: int,
        turns: Sequence[Turn] = (),
    ) -> None:
        self.turns = turns
        self.exposure, self.catalogue, self.num_items = exposure, catalogue, num_items
        self.items: list[Scored] = []
        self.complete = False
        self._films: set[str] = set()
        self._counts: Counter[str] = Counter()
        self.reply_filter = exposure.reply_filter(catalogue)
        self._filter = self.reply_filter
        if not exposure.repeat_named:
            self._deny(catalogue.entries(named))

    def filter(self) -> ItemFilter | None:
        """The items that may still come into the list; None for all."""
        return self._filter

    def may_name(self, item_id: str) -> bool:
        """Whether the reply may show this item."""
        return self.exposure.may_name(item_id, self.catalogue)

    def take(self, ranking: Iterable[Scored], exhausted: bool) -> None:
        """Take what may be taken of a ranking of the items that `filter` allows, best first.

        Args:
            exhausted: whether the ranking holds all of these items.
        """
        skipped = False
        before = len(self.items)
        for item_id, score in ranking:
            if len(self.items) == self.num_items:
                break
            if self._may_take(item_id):
                self._put(item_id, score)
            else:
                skipped = True
        added = [item_id for item_id, _ in self.items[before:]]
        full = len(self.items) == self.num_items
        self.complete = full or exhausted or not skipped or not added
        if not self.complete:
            self._deny(self.catalogue.entries(added) if self._once() else added)
            self._deny(self.catalogue.members(self._full_groups()))

    def _once(self) -> bool:
        return not self.exposure.repeat_named

    def _may_take(self, item_id: str) -> bool:
        if self._once() and self.catalogue.film(item_id) in self._films:
            return False
        return not any(map(self._is_full, self.catalogue.of(item_id)))

    def _put(self, item_id: str, score: float) -> None:
        self.items.append((item_id, score))
        self._films.add(self.catalogue.film(item_id))
        self._counts.update(self.catalogue.of(item_id))

    def _is_full(self, group: str) -> bool:
        limit = self.exposure.limit(group)
        return limit is not None and self._counts[group] >= limit

    def _full_groups(self) -> list[str]:
        return [group for group in self._counts if self._is_full(group)]

    def _deny(self, item_ids: list[str]) -> None:
        if item_ids:
            rest = self.catalogue.trie.filter(deny=item_ids)
            self._filter = rest if self._filter is None else self._filter & rest


def fill_lists(
    turns: TurnBatch,
    rows: Sequence[int],
    lists: Sequence[ExposedList],
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    join: JoinedBeams | None = None,
) -> None:
    """Fill the lists of some requests of a batch, of `rows`, from searches over their items, which
    `join` joins by candidates for each list's conversation. A list that a limit leaves short is
    filled up by another search, without what is full."""
    candidates: Sequence[Sequence[Scored]] = [()] * len(lists)
    if join is not None:
        candidates = join.candidates([one.turns for one in lists])
    pending = list(zip(rows, lists, candidates, strict=True))
    while pending:
        filters = [one.filter() for _, one, _ in pending]
        some = [row for row, _, _ in pending]
        out = turns.rank(some, num_beams=num_beams, normalize=normalize, filters=stacked(filters))
        own = [of_list for _, _, of_list in pending]
        ranked = join_beams(turns, some, out, own, join, filters, normalize)
        for (_, one, _), items, beams in zip(pending, ranked, out.num_valid.tolist(), strict=True):
            one.take(items, exhausted=beams < num_beams)
        pending = [request for request in pending if not request[1].complete]


def named_items(turns: Iterable[Turn], shown: Iterable[str] = ()) -> list[str]:
    """The distinct items that a conversation has named, by either side, or shown."""
    return list(dict.fromkeys([*(i for turn in turns for i in turn.item_ids()), *shown]))
