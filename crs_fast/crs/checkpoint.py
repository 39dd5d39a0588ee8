"""A trained recommender as one directory. When it is read, its parts are checked against each
other.

    config.json, model.safetensors, tokenizer*   the model; `AutoModelForCausalLM` loads it too
    sids/trie.safetensors                        the catalogue's SIDs, or titles (`SidTrie.save`)
    items.jsonl                                  the item table
    crs_fast.json                                the manifest: token ids, and sizes and checksums of
                                                 weights, trie and items
    chat_template.jinja, README.md               for servers and the hub

A LoRA adapter is merged into the model before saving, so that loading needs no PEFT. The adapter
itself is in the training checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from crs_fast._arguments import (
    Rule,
    at_least,
    check_arguments,
    check_device,
    check_kind,
    check_path,
)
from crs_fast._files import replacing_folder
from crs_fast._version import __version__
from crs_fast.crs import chat_template, model_card
from crs_fast.crs.backbones import check_dtype, merge_lora
from crs_fast.crs.control_tokens import ControlTokens, new_tokens
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.data.jsonl import read_items, write_items
from crs_fast.crs.manifest import check_files, checksums, read_manifest, refuse_pickles
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.trie import SidTrie, Vocabulary, vocabulary_from_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from crs_fast.crs.backbones import Backbone

FORMAT_VERSION = 1
MANIFEST = "crs_fast.json"
TRIE = "sids/trie.safetensors"
ITEMS = "items.jsonl"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "vocab": dict,
    "control": dict,
    "max_length": int,
    "tokens": dict,
    "tokenizer_size": int,
    "quantizer": (str, type(None)),
    "sha256": dict,
}
_SETTINGS = (Rule("quantizer", str, optional=True), Rule("max_length", int, *at_least(1)))
_LOADING = (Rule("quantizer", str, optional=True), Rule("trust_remote_code", bool))
KEPT = ("training",)  # a folder of the training run, which saving must not delete


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything that a recommender needs. `items` are in catalogue order; `folder` is the model
    directory that it was read from, if it was."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trie: SidTrie
    vocab: Vocabulary
    control: ControlTokens
    items: tuple[Item, ...]
    builder: SequenceBuilder
    quantizer: str | None
    folder: Path | None = None


def save_bundle(
    path: str | Path,
    backbone: Backbone,
    trie: SidTrie,
    vocab: Vocabulary,
    control: ControlTokens,
    items: Sequence[Item],
    *,
    quantizer: str | None = None,
    max_length: int = 768,
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Write a model directory, either completely or not at all. An earlier bundle there is
    replaced in one step, but its folder `training/` is kept (see `replacing_folder` for systems
    that can't do it in one).

    Args:
        path: the directory.
        backbone: model and tokenizer; the adapter of a PEFT model is merged first.
        items: the catalogue; the trie must hold the same items.
        quantizer: `fingerprint()` of the quantizer that made the SIDs, or None.
        max_length: maximum length of the sequences that the model was trained on.
        more: writes what else belongs to the model into the directory before it takes its place.

    Raises:
        ValueError: the parts do not fit together, or `path` holds something other than a bundle.
    """
    _check_parts(path, backbone, trie, vocab, control, items)
    check_arguments("save_bundle", _SETTINGS, quantizer=quantizer, max_length=max_length)
    if not (more is None or callable(more)):
        raise ValueError(f"save_bundle: more must be a function or None (got {more!r})")
    path = Path(path)
    check_items_of("save_bundle", trie, items)
    check_folder("save_bundle: path", path)
    model, tokenizer = backbone
    model = merge_lora(model)
    _check_model("save_bundle", model, vocab, control)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(path, KEPT.__contains__) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / TRIE).parent.mkdir()
        trie.save(partial / TRIE)
        write_items(partial / ITEMS, items)
        if more is not None:
            more(partial)
        manifest = {
            "format_version": FORMAT_VERSION,
            "crs_fast": __version__,
            "vocab": vocab.to_dict(),
            "control": asdict(control),
            "max_length": max_length,
            "tokens": _token_names(tokenizer, vocab, control),
            "tokenizer_size": len(tokenizer),
            "quantizer": quantizer,
            **checksums(partial, _checked_files(partial)),
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        builder = SequenceBuilder(tokenizer, vocab, control, {})
        (partial / chat_template.FILE).write_text(chat_template.CHAT_TEMPLATE)
        card = model_card.model_card(
            type(model).__name__,
            model.num_parameters(),
            trie,
            quantizer,
            max_length,
            chat_template.agrees(tokenizer, builder),
        )
        (partial / model_card.FILE).write_text(card)
    return path


def _check_parts(path: Any, backbone: Any, trie: Any, vocab: Any, control: Any, items: Any) -> None:
    op = "save_bundle"
    check_path(f"{op}: path", path)
    check_backbone(op, backbone)
    check_kind(f"{op}: trie", trie, SidTrie, "a SidTrie")
    if not hasattr(vocab, "to_dict") or not hasattr(vocab, "token_ids"):
        raise ValueError(f"{op}: vocab must be a vocabulary (got {type(vocab).__name__})")
    check_kind(f"{op}: control", control, ControlTokens, "ControlTokens")
    is_list = isinstance(items, Sequence) and not isinstance(items, str)
    wrong = [item for item in items if not isinstance(item, Item)] if is_list else [items]
    if wrong:
        raise ValueError(f"{op}: items must be a sequence of Items (got {type(wrong[0]).__name__})")


def check_backbone(op: str, backbone: Any) -> None:
    """
    Raises:
        ValueError: `backbone` is no pair of a language model and its tokenizer.
    """
    is_pair = isinstance(backbone, tuple | list) and len(backbone) == 2
    names = ("get_input_embeddings", "convert_tokens_to_ids")
    if not is_pair or not all(map(hasattr, backbone, names)):
        kinds = [type(one).__name__ for one in backbone] if is_pair else type(backbone).__name__
        raise ValueError(f"{op}: backbone must be a model and its tokenizer (got {kinds})")


def check_folder(argument: str, path: Path) -> None:
    """Refuse a path that saving a bundle must not replace.

    Args:
        argument: the function and the argument that the error names.

    Raises:
        ValueError: the path is a file, or a folder that holds something other than a bundle.
    """
    entries = {entry.name for entry in path.iterdir()} - set(KEPT) if path.is_dir() else set()
    if path.is_file() or (entries and MANIFEST not in entries):
        raise ValueError(f"{argument} must be empty or hold a bundle (got {path})")


def load_bundle(
    path: str | Path,
    *,
    quantizer: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> Bundle:
    """Read a model directory; refuse it if its parts do not belong together. All weights are hashed
    before they are loaded (see docs/reliability.md for what that costs).

    Args:
        quantizer: `fingerprint()` of the quantizer that must have made the SIDs; None accepts any.
        dtype: dtype of the weights; None keeps the saved one.
        device: where the model goes, the CPU if None. The trie stays on the CPU.
        trust_remote_code: run Python files that the directory brings along for its model. Say so
            only of a directory that you trust; without it, such a model is refused.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the format version is another, the manifest is malformed, a file was changed or
            exchanged, the weights are pickles, the tokenizer has other ids, the embedding lacks the
            new rows, or the SIDs are of another quantizer.
    """
    check_path("load_bundle: path", path)
    check_arguments(
        "load_bundle", _LOADING, quantizer=quantizer, trust_remote_code=trust_remote_code
    )
    check_dtype("load_bundle: dtype", dtype)
    check_device("load_bundle: device", device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(path)
    manifest = _manifest(path, quantizer)
    vocab, control = manifest["vocab"], manifest["control"]
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    _check_tokenizer(path, tokenizer, manifest)
    trie, items = SidTrie.load(path / TRIE), read_items(path / ITEMS)
    check_items_of("load_bundle", trie, items)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=trust_remote_code
    )
    _check_model("load_bundle", model, vocab, control)
    sids = trie_sids(trie, vocab)
    builder = SequenceBuilder(tokenizer, vocab, control, sids, manifest["max_length"])
    model = model.to(device or "cpu").eval()
    return Bundle(
        model, tokenizer, trie, vocab, control, items, builder, manifest["quantizer"], path
    )


def is_bundle(path: str | Path) -> bool:
    """Whether training wrote this directory."""
    return (Path(path) / MANIFEST).is_file()


def load_catalogue(path: str | Path) -> tuple[SidTrie, Vocabulary]:
    """The catalogue of a model directory without its model.

    Raises:
        FileNotFoundError, ValueError: as `load_bundle`.
    """
    vocab: Vocabulary = _manifest(Path(path), None, weights=False)["vocab"]
    return SidTrie.load(Path(path) / TRIE), vocab


def _manifest(path: Path, quantizer: str | None, weights: bool = True) -> dict[str, Any]:
    refuse_pickles("load_bundle", path)
    for name in (MANIFEST, TRIE, ITEMS, "config.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"load_bundle: {path} must hold {name} (got no such file)")
    manifest: dict[str, Any] = read_manifest("load_bundle", path / MANIFEST, _KINDS)
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"load_bundle: {path / MANIFEST} must have format_version {FORMAT_VERSION} "
            f"(got {manifest['format_version']})"
        )
    try:
        manifest["vocab"] = vocabulary_from_dict(manifest["vocab"])
        manifest["control"] = ControlTokens(**manifest["control"])
        needed = max(new_tokens(manifest["vocab"], manifest["control"])) + 1
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"load_bundle: {path / MANIFEST} must be a whole manifest (got {error})"
        ) from None
    if weights:
        _check_config(path, needed)
    else:
        for key in ("bytes", "sha256"):
            manifest[key] = {n: v for n, v in manifest[key].items() if n in (TRIE, ITEMS)}
    check_files("load_bundle", path, manifest)
    if quantizer is not None and quantizer != manifest["quantizer"]:
        raise ValueError(
            f"load_bundle: {path} must hold SIDs of quantizer {quantizer} "
            f"(got {manifest['quantizer']})"
        )
    return manifest


def _check_config(path: Path, needed: int) -> None:
    """Refuse a model that is too small by its configuration, before its weights are read."""
    try:
        config = json.loads((path / "config.json").read_bytes())
        rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"load_bundle: {path / 'config.json'} must be a JSON object (got {error})"
        ) from None
    if isinstance(rows, int) and rows < needed:
        _refuse_embedding("load_bundle", needed, rows)


def _checked_files(folder: Path) -> list[str]:
    """Files whose contents decide what the recommender says, and which nobody edits by hand."""
    names = {ITEMS} | {
        file.relative_to(folder).as_posix()
        for pattern in ("*.safetensors", "*.safetensors.index.json")
        for file in folder.rglob(pattern)
    }
    return sorted(names)


def _token_names(
    tokenizer: PreTrainedTokenizerBase, vocab: Vocabulary, control: ControlTokens
) -> dict[str, int]:
    ids = new_tokens(vocab, control)
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))


def _check_tokenizer(
    path: Path, tokenizer: PreTrainedTokenizerBase, manifest: dict[str, Any]
) -> None:
    for name, expected in manifest["tokens"].items():
        if (got := tokenizer.convert_tokens_to_ids(name)) != expected:
            raise ValueError(
                f"load_bundle: the tokenizer in {path} must give {name} the id {expected} "
                f"(got {got})"
            )
    if len(tokenizer) != manifest["tokenizer_size"]:
        raise ValueError(
            f"load_bundle: the tokenizer in {path} must have {manifest['tokenizer_size']} tokens "
            f"(got {len(tokenizer)})"
        )


def check_items_of(op: str, trie: SidTrie, items: Sequence[Item]) -> None:
    in_trie = {str(item_id) for item_id in trie.item_ids.tolist()}
    listed = {item.item_id for item in items}
    if in_trie != listed or len(listed) != len(items):
        in_one = sorted(in_trie ^ listed)[:3]
        raise ValueError(
            f"{op}: the trie and the item table must hold the same items "
            f"(got {len(in_trie)} and {len(items)}; in one only: {in_one})"
        )


def _check_model(op: str, model: Any, vocab: Vocabulary, control: ControlTokens) -> None:
    needed = max(new_tokens(vocab, control)) + 1
    got = model.get_input_embeddings().weight.shape[0]
    if got < needed:
        _refuse_embedding(op, needed, got)


def _refuse_embedding(op: str, needed: int, got: int) -> NoReturn:
    raise ValueError(f"{op}: the model's embedding must have {needed} rows (got {got})")
