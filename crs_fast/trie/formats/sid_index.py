"""A catalogue with its tokens, read from and written to other people's index files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from crs_fast._gzip import DAMAGED
from crs_fast.trie.sid_trie import SidTrie
from crs_fast.trie.storage import FORMAT as OWN_FORMAT
from crs_fast.trie.token_ids import TokenIds
from crs_fast.trie.vocabulary import Vocabulary

from . import arrays, lc_rec, one_rec, token_jsonl, torch_easy_rec
from .naming import LC_REC, add_names, naming_in, vocabulary
from .rows import MOST_CODES, Rows, broken
from .texts import open_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_READERS: dict[str, Callable[[Path], Rows]] = {
    "index.json": lc_rec.read_index,
    "info.txt": lc_rec.read_info,
    "sid2pid": one_rec.read,
    "flashrec": one_rec.read,
    "jsonl": token_jsonl.read,
    "torcheasyrec": torch_easy_rec.read,
    "array": arrays.read_array,
    "grid": arrays.read_grid,
}
_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".txt": "info.txt",
    ".npy": "array",
    ".safetensors": "array",
    ".json": "index.json",
}


class SidIndex(NamedTuple):
    """A catalogue and the tokens of its codes.

    trie: the catalogue; items that share a SID keep the file's order
    vocab: which language-model token stands for which code; None where no tokenizer was given
    tokens: `tokens[l][c]` is the name of level l's token of code c; None where neither the file
        nor the tokenizer names tokens
    """

    trie: SidTrie
    vocab: Vocabulary | None
    tokens: list[list[str]] | None

    def save(
        self,
        path: str | PathLike[str],
        format: str = "auto",
        titles: Mapping[Any, str] | None = None,
    ) -> None:
        """Write the catalogue, whole or not at all, items in sorted order of their SIDs.

        Args:
            format: as in `load_index`; "auto" goes by the suffix (a name without one becomes a
                TorchEasyRec generation). "flashrec" keeps no items, "array" no item ids but in
                `.safetensors`, where they must be ints.
            titles: the title of each item, which only "info.txt" holds, and needs.

        Raises:
            ValueError: an unknown format, or a catalogue that the format can't hold.
        """
        path = Path(path)
        if format == "auto":
            format = _BY_SUFFIX.get(path.suffix, "torcheasyrec")
        _check_format("SidIndex.save", format)
        if (titles is None) != (format != "info.txt"):
            raise ValueError(
                f"SidIndex.save: titles must be given for info.txt alone (got {format})"
            )
        sids, item_ids = self.trie.sids(), self.trie.item_ids.tolist()
        if format in ("index.json", "info.txt"):
            tokens = self._token_names(sids)
            if format == "index.json":
                lc_rec.write_index(path, item_ids, tokens)
            else:
                lc_rec.write_info(path, item_ids, tokens, titles or {})
        elif format == "sid2pid":
            one_rec.write_sid2pid(path, sids, item_ids)
        elif format == "flashrec":
            one_rec.write_flashrec(path, sids)
        elif format == "jsonl":
            encoded = sids if self.vocab is None else self.vocab.encode(sids)
            token_jsonl.write(path, item_ids, encoded.tolist())
        elif format == "torcheasyrec":
            torch_easy_rec.write(path, item_ids, sids, self.trie.level_sizes())
        else:
            self._save_array(path, sids.t() if format == "grid" else sids)

    def _token_names(self, sids: torch.Tensor) -> list[list[str]]:
        """The tokens of each SID; without names of their own codes are called `<a_0>` ….

        Raises:
            ValueError: codes that are token ids.
        """
        if self.tokens is None and isinstance(self.vocab, TokenIds):
            raise ValueError(
                "SidIndex.save: index.json needs names of tokens, and the codes are token ids "
                "(got no names); save it as .jsonl"
            )
        names = self.tokens
        if names is None:
            named = LC_REC.levels(sids.shape[1])
            return [[named[l].of(c) for l, c in enumerate(sid) if c >= 0] for sid in sids.tolist()]
        return [[names[l][c] for l, c in enumerate(sid) if c >= 0] for sid in sids.tolist()]

    def _save_array(self, path: Path, sids: torch.Tensor) -> None:
        ids = self.trie.item_ids.numbers
        if path.suffix == ".safetensors":
            if ids is None:
                raise ValueError(
                    "SidIndex.save: item ids must be ints in .safetensors (got str); save it as "
                    "index.json, or the trie alone by SidTrie.save"
                )
            arrays.write_safetensors(path, sids, ids.long())
            return
        # Row i of an array is item i.
        if ids is None or not torch.equal(
            ids.long().sort().values, torch.arange(len(ids), device="cpu")
        ):
            raise ValueError(
                "SidIndex.save: item ids must be 0 .. N - 1 in .npy (got others); save it as "
                ".safetensors"
            )
        of_item = ids.long().argsort()
        is_grid = sids.shape[0] != len(ids)
        arrays.write_npy(path, sids[:, of_item] if is_grid else sids[of_item])


def load_index(
    path: str | PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    format: str = "auto",
    *,
    model: PreTrainedModel | None = None,
) -> SidIndex:
    """Read a catalogue of semantic IDs (SIDs) from another project's index file.

        format          what it is                                        item ids
        "index.json"    LC-Rec, MiniOneRec: item -> tokens                 its keys
        "info.txt"      MiniOneRec: SID, title and item per line           its third column
        "sid2pid"       RecIF, OpenOneRec: packed or dotted SID -> items   pid or iid
        "flashrec"      FlashRec: "a,b,c,1" -> 1                           the SIDs "a,b,c"
        "jsonl"         NVIDIA SID-GR: item_id and token_ids per line      item_id
        "torcheasyrec"  a generation's directory: parquet, manifest.json   item_id
        "array"         .npy or .safetensors [items, levels]               0 .. N - 1, or item_ids
        "grid"          the same, [levels, items] as in GRID               likewise

    Codes are the numbers in the tokens' names or in the file; where names hold no number, the rank
    of the token in its level. Keys and ids that are all plain numbers become ints. `.gz` is read
    as it is. Files of `SidTrie.save` are read too.

    Args:
        path: a file, or for TorchEasyRec a directory.
        tokenizer: makes `vocab`. It must have the tokens that the file names, unless `model` is
            given; files of bare numbers are taken to mean `<a_17>` (LC-Rec, MiniOneRec, this
            package) or `<s_a_17>` (OneRec), whichever it has. Not needed for "jsonl", whose codes
            are token ids.
        format: one of the above; "auto" goes by suffix and content.
        model: a model that is to learn the catalogue. The tokens that its tokenizer lacks are
            added, with two that frame a SID in text (`vocab.begin`, `vocab.end`), and its embedding
            grows. Nothing changes where the tokenizer has every token.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: a file that is cut off, damaged, too large or a pickle; items named twice or
            without a SID; mixed levels; tokens that the tokenizer lacks; an unknown format; a model
            without its tokenizer.
    """
    path = Path(path)
    if model is not None and tokenizer is None:
        raise ValueError("load_index: tokenizer must be given beside model (got None)")
    if format != "auto":
        _check_format("load_index", format)
    if not path.exists():
        raise FileNotFoundError(f"load_index: no file {path}")
    if format == "auto" and _is_own(path):
        trie, rows = SidTrie.load(path), None
    else:
        rows = _READERS[format if format != "auto" else _detected(path)](path)
        try:
            trie = SidTrie.from_sids(rows.sids, rows.item_ids)
        except ValueError as error:
            raise broken(path, f"is inconsistent ({error})") from None
    return _with_tokens(path, trie, rows, tokenizer, model)


def _with_tokens(
    path: Path,
    trie: SidTrie,
    rows: Rows | None,
    tokenizer: PreTrainedTokenizerBase | None,
    model: PreTrainedModel | None,
) -> SidIndex:
    if rows is not None and rows.codes_are_tokens:
        eos = None if tokenizer is None else tokenizer.eos_token_id
        size = max(trie.level_sizes())
        if tokenizer is not None and size > len(tokenizer):
            raise broken(
                path, f"must hold token ids of the tokenizer, < {len(tokenizer)} (got {size - 1})"
            )
        return SidIndex(trie, TokenIds(trie.num_levels, size, eos=eos), None)
    names = None if rows is None else rows.names
    if names is None and tokenizer is not None:
        default = None if model is None else LC_REC
        # A tokenizer may have the tokens of some items alone, and so none of code 0.
        codes = [*trie.level_codes[0].tolist(), 0]
        names = naming_in(tokenizer, codes, default).levels(trie.num_levels)
    if names is None:
        return SidIndex(trie, None, None)
    sizes = trie.level_sizes()
    if max(sizes) > MOST_CODES:
        raise broken(path, f"must name codes below {MOST_CODES} (got {max(sizes) - 1})")
    if model is not None and tokenizer is not None:
        add_names(tokenizer, model, names, trie.level_codes)
    vocab = None if tokenizer is None else vocabulary(tokenizer, names, trie.level_codes)
    counts = sizes if vocab is None else vocab.sizes
    return SidIndex(
        trie,
        vocab,
        [[named.of(c) for c in range(count)] for named, count in zip(names, counts, strict=True)],
    )


def _check_format(op: str, format: str) -> None:
    if format not in _READERS:
        raise ValueError(f"{op}: format must be 'auto' or one of {list(_READERS)} (got {format!r})")


def _is_own(path: Path) -> bool:
    """Whether `SidTrie.save` wrote it."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with path.open("rb") as file:
        size = min(int.from_bytes(file.read(8), "little"), 1 << 16)
        return f'"format":"{OWN_FORMAT}"'.encode() in file.read(size)


def _detected(path: Path) -> str:
    """The format of a file.

    Raises:
        ValueError: it can't be told, or is a pickle.
    """
    if path.is_dir():
        return "torcheasyrec"
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if name.suffix in arrays.PICKLES:
        raise arrays.refuse_pickle(path)
    format = _BY_SUFFIX.get(name.suffix)
    if format is None:
        raise ValueError(
            f"load_index: format must be given for {path.name}, whose suffix says nothing: one of "
            f"{list(_READERS)}"
        )
    return _json_format(path) if format == "index.json" else format


def _json_format(path: Path) -> str:
    """By the first key: `{"0": [` of LC-Rec holds strings, `{"8454660": [{` of RecIF objects."""
    with open_text(path) as file:
        try:
            start = file.read(4096).lstrip()
        except (UnicodeDecodeError, OSError, *DAMAGED):
            return "index.json"  # whose reader says what is wrong
    inside = start.removeprefix("{").lstrip()
    try:
        key, end = json.JSONDecoder().raw_decode(inside)
    except (ValueError, RecursionError):
        return "index.json"
    if key == "item_id":
        return "jsonl"
    value = inside[end:].lstrip().removeprefix(":").lstrip()
    holds_text = value[:1] == "[" and value[1:].lstrip()[:1] == '"'
    return "index.json" if holds_text else "sid2pid"
