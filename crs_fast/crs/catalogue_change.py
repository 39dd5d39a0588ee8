"""A recommender's catalogue with items added and removed. Model and tokenizer stay as they are.

    items = items - remove + add
    sids of old items stay; sids of new items = codes of the frozen quantizer, each free

An item in both `add` and `remove` is an update: its row changes and its SID stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.data.jsonl import check_items
from crs_fast.crs.item_encoder import ItemEncoder
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.crs.title_sids import title_rows, title_tokens
from crs_fast.trie import SidTrie, TitleVocab, vocabulary_from_dict


class Change(NamedTuple):
    """A change whose ids are checked: items to add, and the rows of items to remove."""

    add: tuple[Item, ...]
    remove: tuple[Item, ...]


def check_change(items: Sequence[Item], add: Sequence[Item], remove: Collection[str]) -> Change:
    """
    Raises:
        ValueError: an id to add that is there and stays, an id to remove that is not there, an id
            given twice, or an item that an items.jsonl can't hold.
    """
    if isinstance(remove, str):
        raise ValueError(f"with_catalogue: remove must be a collection of ids (got {remove!r})")
    check_items("with_catalogue", add)
    rows = {item.item_id: item for item in items}
    gone = dict.fromkeys(remove)
    unknown = [item_id for item_id in gone if item_id not in rows]
    if unknown:
        raise ValueError(
            f"with_catalogue: remove must hold ids of the catalogue (got {unknown[0]!r})"
        )
    known = [item.item_id for item in add if item.item_id in rows and item.item_id not in gone]
    if known:
        raise ValueError(
            "with_catalogue: add must hold new items, or items that are in remove too, which are "
            f"updated (got {known[0]!r}, which the catalogue has)"
        )
    return Change(tuple(add), tuple(rows[item_id] for item_id in gone))


def changed_bundle(
    bundle: Bundle,
    change: Change,
    encoder: ItemEncoder | None = None,
    *,
    sids: Any = None,
    embeddings: Any = None,
) -> Bundle:
    """The bundle after a change.

    Args:
        encoder: makes the SIDs of new items; not needed with `sids` or without new items.
        sids: int [n, L], the SIDs of `change.add`, -1 pads; they must be free.
        embeddings: float [n, D] of `change.add`, see `ItemEncoder.sids`.

    Raises:
        ValueError: SIDs of another shape or number, that no token stands for or that other items
            have; what `ItemEncoder.sids` refuses; there is no encoder for new items.
    """
    gone = {item.item_id for item in change.remove}
    items = (*(item for item in bundle.items if item.item_id not in gone), *change.add)
    kept = bundle.trie.remove(_trie_ids(bundle.trie, list(gone))) if gone else bundle.trie
    if isinstance(bundle.vocab, TitleVocab):
        return _with_titles(bundle, change, items, kept)
    if sids is not None:
        rows = _given_sids(sids, len(change.add), kept)
    else:
        rows = _new_sids(bundle, change, kept, encoder, embeddings)
    added = [item.item_id for item in change.add]
    trie = kept.add(rows, _trie_ids(kept, added)) if added else kept
    vocab = trie.vocabulary(bundle.vocab, "with_catalogue")
    codes = {i: [c for c in row if c >= 0] for i, row in zip(added, rows.tolist(), strict=True)}
    builder = bundle.builder.changed(codes, gone)
    return replace(bundle, trie=trie, vocab=vocab, items=items, builder=builder)


def _new_sids(
    bundle: Bundle,
    change: Change,
    kept: SidTrie,
    encoder: ItemEncoder | None,
    embeddings: Any,
) -> torch.Tensor:
    """SIDs int64 [n, L] of the items to add; an updated item keeps its own."""
    gone = {item.item_id for item in change.remove}
    is_new = torch.tensor([item.item_id not in gone for item in change.add], dtype=torch.bool)
    updated = [item.item_id for item in change.add if item.item_id in gone]
    old = bundle.trie.sids(_trie_ids(bundle.trie, updated))
    rows = old.new_empty(len(change.add), bundle.trie.num_levels)
    rows[~is_new] = old
    if not bool(is_new.any()):
        return rows
    if encoder is None:
        raise ValueError(
            "with_catalogue: sids must be given for new items, because the model directory holds "
            "no quantizer (got None)"
        )
    fingerprint = encoder.quantizer.fingerprint()
    if bundle.quantizer is not None and fingerprint != bundle.quantizer:
        raise ValueError(
            f"with_catalogue: the quantizer must be the one that made the catalogue's SIDs, "
            f"{bundle.quantizer[:12]}… (got {fingerprint[:12]}…)"
        )
    new = [item for item in change.add if item.item_id not in gone]
    if embeddings is not None:
        embeddings = torch.as_tensor(embeddings, device="cpu")
        if len(embeddings) != len(change.add):
            raise ValueError(
                f"with_catalogue: embeddings must have one row per added item, {len(change.add)} "
                f"(got {len(embeddings)})"
            )
        embeddings = embeddings[is_new]
    rows[is_new] = encoder.sids(new, torch.cat([kept.sids(), old]), embeddings)
    return rows


def _given_sids(sids: Any, count: int, kept: SidTrie) -> torch.Tensor:
    """The caller's SIDs, int64 [n, L], as the trie has them."""
    if not len(sids) and not count:
        return kept.sids()[:0]
    given = SidTrie.from_sids(sids)
    if given.num_items != count or given.num_levels > kept.num_levels:
        raise ValueError(
            f"with_catalogue: sids must be one SID per added item, {count}, of at most "
            f"{kept.num_levels} levels (got {given.num_items} of {given.num_levels})"
        )
    rows = given.sids(range(count))
    rows = torch.nn.functional.pad(rows, (0, kept.num_levels - rows.shape[1]), value=-1)
    for row, owners in zip(rows.tolist(), kept.items(rows), strict=True):
        if owners:
            raise ValueError(
                f"with_catalogue: sids must be free (got {row}, the SID of {owners[0]!r})"
            )
    if len(rows.unique(dim=0)) < len(rows):
        raise ValueError("with_catalogue: sids must be distinct (got one twice)")
    return rows


def _with_titles(bundle: Bundle, change: Change, items: Sequence[Item], kept: SidTrie) -> Bundle:
    """A catalogue of titles: an item's SID is its title, so nothing has to be encoded. A longer
    title than all before needs one more level, which needs no new token."""
    others = items[: len(items) - len(change.add)]
    titles = title_tokens(change.add, bundle.tokenizer, others)
    rows = title_rows(titles, bundle.vocab)
    trie = kept.add(rows, list(titles)) if titles else kept
    levels = max(bundle.vocab.num_levels, trie.num_levels)
    vocab = vocabulary_from_dict({**bundle.vocab.to_dict(), "num_levels": levels})
    builder = SequenceBuilder(
        bundle.tokenizer,
        vocab,
        bundle.control,
        trie_sids(trie, vocab),
        bundle.builder.max_length,
        bundle.builder.layout,
    )
    return replace(bundle, trie=trie, vocab=vocab, items=tuple(items), builder=builder)


def _trie_ids(trie: SidTrie, item_ids: Sequence[str]) -> Any:
    """Ids of the item table as the trie has them, which may be integers."""
    if trie.item_ids.numbers is None or not trie.num_items:
        return list(item_ids)
    odd = [i for i in item_ids if not i.lstrip("-").isdecimal()]
    if odd:
        raise ValueError(
            f"with_catalogue: ids must be whole numbers, as the catalogue's are (got {odd[0]!r})"
        )
    return [int(i) for i in item_ids]
