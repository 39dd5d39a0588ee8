"""`Recommender` answers messages with the model in a trained directory."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from crs_fast.crs.answer import (
    RankedItem,
    Ranking,
    Response,
    TurnOptions,
    begin_turns,
    rank_items,
    read_contexts,
    response_of,
)
from crs_fast.crs.catalogue_change import changed_bundle, check_change
from crs_fast.crs.checkpoint import Bundle, load_bundle, save_bundle
from crs_fast.crs.conversation import Messages, as_batch, shown_items, turns_of
from crs_fast.crs.data.dialogue import Turn
from crs_fast.crs.data.entity_linking import TitleIndex
from crs_fast.crs.data.tables import items_from
from crs_fast.crs.exposure import (
    ExposedList,
    Exposure,
    GroupsOf,
    ItemGroups,
    exposures_of,
    genres_of,
    named_items,
)
from crs_fast.crs.hub import local_folder, upload
from crs_fast.crs.item_encoder import QUANTIZER, ItemEncoder, save_quantizer
from crs_fast.crs.joined_beams import JoinedBeams, check_share
from crs_fast.crs.reply import placed
from crs_fast.crs.reply_text import ReplyText
from crs_fast.crs.sampling import Sampling
from crs_fast.crs.text_neighbours import TextNeighbours
from crs_fast.crs.turn import TurnBatch, TurnCache

__all__ = ["Messages", "RankedItem", "Ranking", "Recommender", "Response"]


class Recommender:
    """A trained recommender: model, tokenizer, trie and item table of one directory.

    Make one with `Recommender.from_pretrained(dir)`. It holds no state of a conversation; a
    `TurnCache` does.
    """

    def __init__(
        self,
        bundle: Bundle,
        groups_of: GroupsOf = genres_of,
        item_encoder: ItemEncoder | None = None,
        join: JoinedBeams | None = None,
    ) -> None:
        self.bundle, self.groups_of, self.join = bundle, groups_of, join
        self._item_encoder = item_encoder
        self.titles = {item.item_id: item.display() for item in bundle.items}

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        groups_of: GroupsOf = genres_of,
        trust_remote_code: bool = False,
    ) -> Recommender:
        """Load a directory that training wrote; `load_bundle` lists the errors.

        Args:
            directory: a path or, where there is no such directory, a repository's name on the hub,
                which is downloaded.
            revision: that of the hub's repository; None is its newest.
            dtype, device: as in `load_bundle`.
            groups_of: names the groups of an item, by which requests may filter; its genres if
                left out.
            trust_remote_code: as in `load_bundle`.
        """
        folder = local_folder(directory, revision)
        bundle = load_bundle(
            folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        return cls(bundle, groups_of)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the directory that `from_pretrained` loads, completely or not at all;
        `save_bundle` says what it replaces, and lists the errors. The quantizer that encodes new
        items comes along, if the recommender has one."""
        bundle, encoder = self.bundle, self._item_encoder

        def save_encoder(folder: Path) -> None:
            if encoder is not None:
                save_quantizer(folder, encoder.quantizer, encoder.record)
            elif bundle.folder is not None and (bundle.folder / QUANTIZER).is_dir():
                shutil.copytree(bundle.folder / QUANTIZER, folder / QUANTIZER)

        return save_bundle(
            directory,
            (bundle.model, bundle.tokenizer),
            bundle.trie,
            bundle.vocab,
            bundle.control,
            bundle.items,
            quantizer=bundle.quantizer,
            max_length=bundle.builder.max_length,
            more=save_encoder,
        )

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload what `save_pretrained` writes to the hub's repository of that name, which is made
        if there is none, by the account that `huggingface_hub` is logged in to. Returns the
        commit's address."""
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save_pretrained(Path(folder) / "model"), repo_id, private=private)

    @cached_property
    def index(self) -> TitleIndex:
        """The index that finds the catalogue's titles in free text."""
        return TitleIndex(self.bundle.items)

    @cached_property
    def groups(self) -> ItemGroups:
        """The groups of the catalogue's items, with a prepared filter for each."""
        return ItemGroups(self.bundle.items, self.bundle.trie, self.groups_of)

    def with_catalogue(
        self,
        add: Any = (),
        remove: Collection[str] = (),
        *,
        sids: Any = None,
        embeddings: Any = None,
        item_encoder: ItemEncoder | None = None,
    ) -> Recommender:
        """A new recommender for a catalogue with items added and removed; this one if there are
        none. It shares the model with this one, which stays as it is; a `TurnCache` works with
        both.

        New items need no training: the text encoder and the frozen quantizer that made the
        catalogue's SIDs give each of them a free SID near its like, of codes and tokens that exist.
        So the model can recommend them by what their neighbours' codes have taught it, but knows
        nothing that their SIDs don't say. SIDs of old items never change.

        Args:
            add: new items, or a table of them (see `items_from`). One that is in `remove` too is an
                update: its row is replaced, and its SID stays.
            remove: ids of the catalogue.
            sids: int [n, L], the SIDs of the new items, if the caller makes them: codes that have
                tokens, and free.
            embeddings: float [n, D] of the new items in the quantizer's space, in place of their
                encoded texts.
            item_encoder: makes the SIDs; None reads that of the model directory once.

        Raises:
            ValueError: ids that are there and stay, are not there, or are given twice; SIDs that
                are not free; embeddings that are missing or of another shape; another quantizer
                than the catalogue's; there is no free SID.
        """
        change = check_change(self.bundle.items, items_from(add), remove)
        if not change.add and not change.remove:
            return self
        if sids is None and change.add:
            self._item_encoder = item_encoder or self._item_encoder or self._read_item_encoder()
        bundle = changed_bundle(
            self.bundle, change, self._item_encoder, sids=sids, embeddings=embeddings
        )
        changed = self.with_bundle(bundle)
        if "index" in vars(self):
            changed.index = self.index.changed(change.add, change.remove)
        return changed

    def with_bundle(self, bundle: Bundle) -> Recommender:
        """A recommender for another bundle, with this one's groups, way to encode items and
        join."""
        join = None if self.join is None else self.join.for_items(bundle.items)
        return Recommender(bundle, self.groups_of, self._item_encoder, join)

    def with_join(self, join: JoinedBeams | float | None) -> Recommender:
        """A recommender whose every search is joined by the candidates of another source, where a
        call names none of its own. It shares the model with this one.

        Args:
            join: how they join the beams, in every catalogue that `with_catalogue` makes of this
                one. A number is the share of the nearest neighbours by text (`TextNeighbours`), by
                the text encoder that made the catalogue's SIDs or else MiniLM; then all items are
                encoded now. None leaves the beams alone.

        Raises:
            ValueError: a share outside [0, 1].
            ImportError: the text encoder is not installed.
        """
        if isinstance(join, int | float):
            check_share(join)  # before all items are encoded
            # Kept, so that what is added later is encoded once for its SIDs and for the neighbours.
            self._item_encoder = encoder = self._item_encoder or self._read_item_encoder()
            neighbours = TextNeighbours(
                self.bundle.items,
                None if encoder is None else encoder.shared_encoder,
                device=self.bundle.model.device,
            )
            join = JoinedBeams(neighbours, join)
        changed = copy.copy(self)
        changed.join = join
        return changed

    def prepare(self) -> Recommender:
        """Make what the first request would make and wait for. Returns self."""
        assert self.index
        assert self.groups
        placed(self.bundle.trie, self.bundle.model.device)
        return self

    def _read_item_encoder(self) -> ItemEncoder | None:
        folder = self.bundle.folder
        is_there = folder is not None and (folder / QUANTIZER / "config.json").is_file()
        if folder is None or not is_there:
            return None
        return ItemEncoder.read(folder, self.bundle.model.device)

    def respond(
        self,
        messages: Any,
        mode: str | None = None,
        num_items: int = 10,
        exclude: Any = None,
        *,
        allow: Any = None,
        groups: Collection[str] = (),
        max_per_group: int | Mapping[str, int] | None = None,
        repeat_named: bool = True,
        item: str | Sequence[str] | None = None,
        num_named: int = 1,
        only_chosen: bool = False,
        num_beams: int = 50,
        normalize: str = "vocab",
        join: JoinedBeams | None = None,
        cache: TurnCache | None = None,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Any:
        """Write the next recommender turn: its mode, then items, then words, from one prefill.

        Args:
            messages: [{"role": "user" | "assistant", "content": text}, ...], or a batch of such
                lists. Titles in the text are linked to items unless the message brings its own
                "items": [{"item_id", "start", "end"}, ...] (offsets may be absent). A message
                may say in "shown" which items were shown beside its text, [item_id, ...]. It has at
                most 1,000,000 characters.
            mode: "chat" or "rec" forces the intent; None lets the model choose.
            num_items: the most items to return in mode "rec".
            exclude: item ids that may be neither recommended nor named in the reply; for a batch,
                one collection per request.
            allow: ids of the only items that may be recommended or named in the reply; for a batch,
                one collection per request. None allows all.
            groups: names of groups (`recommender.groups.names`; genres, if `groups_of` was left
                out). Items in none of them may be neither recommended nor named.
            max_per_group: the most items of one group in the list, for every group or by name.
            repeat_named: whether items that the messages name or show may be recommended again, as
                in the paper's protocol. If not, the list also holds each film once.
            item: forces mode "rec" with this item, or with these; the model writes the text.
            num_named: how many of the recommended items stand before the reply, best first. In
                training it is one, so a larger number is outside what the model has learned.
            only_chosen: whether a reply that recommends may name no items but these.
            num_beams: width of the beam search over items, at least `num_items`.
            normalize: see `crs_fast.recommend`.
            join: how the candidates of another source join the beams (see `JoinedBeams`), such as
                the nearest neighbours by text; scores are then the joined ones. None takes the
                recommender's own, if it has one (see `with_join`).
            cache: a `TurnCache` that is kept over the turns of one dialogue (or batch). Then the
                model reads only what was said since the last turn.
            max_new_tokens: the most tokens of the reply; an item that is open then is finished.
            do_sample, temperature, top_p: how the reply's words are chosen (greedy by default).

        Returns:
            A `Response`, or a list of them for a batch. If no item may be recommended, the
            mode is "chat".

        Raises:
            ValueError: a role or mode is unknown, an item is given with mode "chat", there is no
                message or one that is too long, an item id or a group is not in the catalogue, an
                item is given twice, or `num_items` exceeds `num_beams`.
        """
        batch, single = as_batch(messages, "respond")
        options = TurnOptions(
            mode=mode,
            given=_as_tuple(item),
            num_items=num_items,
            num_named=num_named,
            num_beams=num_beams,
            normalize=normalize,
            max_new_tokens=max_new_tokens,
            only_chosen=only_chosen,
            join=join or self.join,
        )
        limits = Exposure((), None, groups, max_per_group, repeat_named)
        turns, lists = self._read("respond", batch, single, options, limits, exclude, allow, cache)
        begun = begin_turns(turns, lists, options, self.titles)
        replies = turns.write(
            begun.prefixes,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            filters=begun.filters,
        )
        responses = [
            response_of(self.bundle.builder.naming(one.may_name), self.titles, ranking, reply)
            for one, ranking, reply in zip(lists, begun.rankings, replies, strict=True)
        ]
        return responses[0] if single else responses

    def stream(
        self,
        messages: Messages,
        mode: str | None = None,
        num_items: int = 10,
        exclude: Collection[str] | None = None,
        *,
        allow: Collection[str] | None = None,
        groups: Collection[str] = (),
        max_per_group: int | Mapping[str, int] | None = None,
        repeat_named: bool = True,
        item: str | Sequence[str] | None = None,
        num_named: int = 1,
        only_chosen: bool = False,
        num_beams: int = 50,
        normalize: str = "vocab",
        join: JoinedBeams | None = None,
        cache: TurnCache | None = None,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Iterator[Ranking | str | Response]:
        """`respond` for one conversation, part by part, with the same arguments.

            for part in recommender.stream(messages):
                match part:
                    case Ranking(): ...     # first: the mode and the items
                    case str(): ...         # then: more of the text, many times
                    case Response(): ...    # last: the whole turn, as `respond` returns it

        Raises:
            ValueError: as `respond`, when the first part is asked for.
        """
        batch, single = as_batch(messages, "stream")
        if not single:
            raise ValueError(
                f"stream: messages must be one conversation (got a batch of {len(batch)})"
            )
        options = TurnOptions(
            mode=mode,
            given=_as_tuple(item),
            num_items=num_items,
            num_named=num_named,
            num_beams=num_beams,
            normalize=normalize,
            max_new_tokens=max_new_tokens,
            only_chosen=only_chosen,
            join=join or self.join,
        )
        limits = Exposure((), None, groups, max_per_group, repeat_named)
        turns, lists = self._read("stream", batch, single, options, limits, exclude, allow, cache)
        begun = begin_turns(turns, lists, options, self.titles)
        (ranking,), tokens = begun.rankings, list[int]()
        yield ranking
        builder = self.bundle.builder.naming(lists[0].may_name)
        text = ReplyText(builder, self.titles)
        sampling = Sampling(do_sample, temperature, top_p)
        for (tokens,) in turns.write_steps(begun.prefixes, max_new_tokens, sampling, begun.filters):
            if delta := text.push(tokens):
                yield delta
        if delta := text.finish(tokens):
            yield delta
        yield response_of(builder, self.titles, ranking, tokens)

    def rank(
        self,
        messages: Any,
        num_items: int = 10,
        exclude: Any = None,
        *,
        allow: Any = None,
        groups: Collection[str] = (),
        max_per_group: int | Mapping[str, int] | None = None,
        repeat_named: bool = True,
        num_beams: int | None = None,
        normalize: str = "vocab",
        join: JoinedBeams | None = None,
        cache: TurnCache | None = None,
    ) -> Any:
        """Rank items for the next recommender turn as if it recommended, without writing words.

        Args:
            num_beams: width of the beam search; None takes 50, or `num_items` if it is more.
            cache: as all others in `respond`.

        Returns:
            A list of (item id, title, score), best first, or a list of such lists for a batch.

        Raises:
            ValueError: as `respond`.
        """
        batch, single = as_batch(messages, "rank")
        options = TurnOptions(
            num_items=num_items,
            num_beams=max(50, num_items) if num_beams is None else num_beams,
            normalize=normalize,
            max_new_tokens=0,
            join=join or self.join,
        )
        limits = Exposure((), None, groups, max_per_group, repeat_named)
        turns, lists = self._read("rank", batch, single, options, limits, exclude, allow, cache)
        items = rank_items(turns, range(len(batch)), lists, options, self.titles)
        return items[0] if single else items

    def turns(self, messages: Messages) -> tuple[Turn, ...]:
        """The messages as turns, with titles linked to items."""
        return turns_of(messages, lambda text: self.index.link(text))

    def _read(
        self,
        op: str,
        batch: Sequence[Messages],
        single: bool,
        options: TurnOptions,
        limits: Exposure,
        exclude: Any,
        allow: Any,
        cache: TurnCache | None,
    ) -> tuple[TurnBatch, list[ExposedList]]:
        """The conversations, read by the model after all checks, and an empty list for each."""
        options.check(op, self.titles)
        one_each = None if single else len(batch)
        exposures = exposures_of(op, self.groups, limits, one_each, exclude, allow)
        contexts = [self.turns(one) for one in batch]
        lists = [
            ExposedList(
                exposure,
                self.groups,
                named_items(turns, shown_items(one)),
                options.num_items,
                turns,
            )
            for one, turns, exposure in zip(batch, contexts, exposures, strict=True)
        ]
        return read_contexts(self.bundle, contexts, options, cache), lists


def _as_tuple(item: str | Sequence[str] | None) -> tuple[str, ...]:
    return (item,) if isinstance(item, str) else tuple(item or ())
