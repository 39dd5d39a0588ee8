"""SIDs for items that join a trained catalogue: its text encoder and its frozen quantizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crs_fast._arguments import all_of_kind, check_kind, check_path
from crs_fast._files import write_text
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.shared_encoder import SharedEncoder
from crs_fast.quantize import resolve_collisions
from crs_fast.quantize.text_encoder import EncoderLike

if TYPE_CHECKING:
    from crs_fast.quantize import ResidualQuantizer

QUANTIZER = "quantizer"
RECORD = "item_encoder.json"


class ItemEncoder:
    """Gives new items SIDs in the way in which the catalogue got its own. Nothing is trained.

        codes = quantizer.encode(encode_texts(item.text() for item in items, encoder))
        sids = resolve_collisions(codes, occupied=sids of the catalogue)

    Args:
        quantizer: the quantizer that made the catalogue's SIDs.
        encoder: the text encoder of the catalogue, see `encode_texts`; it is loaded at first use.
        by_text: whether `encoder` made all of the catalogue's embeddings. If not, new items need
            embeddings.
        device: where an encoder given by its name runs; None lets sentence-transformers choose.

    Raises:
        ValueError: no quantizer, or an encoder that is none of what `encode_texts` takes.
    """

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        encoder: EncoderLike = None,
        by_text: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        if quantizer is not None:  # None is refused where it is needed
            _need_quantizer("ItemEncoder", quantizer)
        is_encoder = isinstance(encoder, str | Path) or callable(encoder)
        if encoder is not None and not is_encoder and not hasattr(encoder, "encode"):
            raise ValueError(
                "ItemEncoder: encoder must be a name, a function of texts, an object with a method "
                f"`encode`, or None (got {type(encoder).__name__})"
            )
        check_kind("ItemEncoder: by_text", by_text, bool, "True or False")
        self.quantizer, self.encoder, self.by_text = quantizer, encoder, by_text
        self.shared_encoder = SharedEncoder(encoder, device)

    @classmethod
    def read(cls, folder: str | Path, device: torch.device | str | None = None) -> ItemEncoder:
        """The item encoder of a model directory that training wrote.

        Args:
            device: see the class.

        Raises:
            FileNotFoundError: the directory has no quantizer.
            ValueError: its quantizer is of no known kind.
        """
        check_path("ItemEncoder.read: folder", folder)
        path = Path(folder) / QUANTIZER
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"ItemEncoder.read: {folder} must hold {QUANTIZER}/config.json (got no such file)"
            )
        record = read_record(folder) or encoder_record(None, ())
        return cls(_quantizer(path), record["encoder"], record["by_text"], device)

    @property
    def record(self) -> dict[str, Any]:
        """What `save_quantizer` notes of this one."""
        return encoder_record(self.encoder, ("text",) if self.by_text else ())

    def sids(
        self, items: Sequence[Item], occupied: torch.Tensor, embeddings: Any = None
    ) -> torch.Tensor:
        """SIDs int64 [n, L] for items, all distinct and none in `occupied`.

        Args:
            items: the new items.
            occupied: int64 [M, L], the SIDs of the catalogue; rows that -1 pads are in nobody's
                way.
            embeddings: float [n, D] of the items in the quantizer's space; None encodes their
                texts.

        Raises:
            ValueError: embeddings are needed or of another shape, or there is no free SID.
        """
        items = all_of_kind("ItemEncoder.sids: items", items, Item, "Items")
        _need_quantizer("ItemEncoder.sids", self.quantizer)
        levels = len(self.quantizer.codebooks)
        if not isinstance(occupied, torch.Tensor) or occupied.ndim != 2:
            raise ValueError(
                f"ItemEncoder.sids: occupied must be int64 [M, {levels}] (got {occupied!r:.100})"
            )
        x = self._embeddings(items, embeddings)
        if not len(items):
            return torch.empty(0, occupied.shape[1], dtype=torch.int64)
        whole = occupied[(occupied >= 0).all(1)]
        codes = self.quantizer.encode(x).cpu()
        return resolve_collisions(
            self.quantizer.embed(x), codes, self.quantizer.codebooks, whole
        ).cpu()

    def _embeddings(self, items: Sequence[Item], embeddings: Any) -> torch.Tensor:
        width = self.quantizer.config.input_dim
        if embeddings is None and not self.by_text:
            raise ValueError(
                "with_catalogue: embeddings must be given, because no text encoder that the model "
                "directory names made its SIDs alone (got None)"
            )
        if embeddings is None:
            x = self.shared_encoder.encode_items([item.text() for item in items])
        else:
            try:
                x = torch.as_tensor(embeddings, device="cpu")
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"with_catalogue: embeddings must be numbers (got {error})"
                ) from None
        if x.shape != (len(items), width):
            raise ValueError(
                f"with_catalogue: embeddings must have shape {(len(items), width)} "
                f"(got {tuple(x.shape)})"
            )
        if not bool(x.isfinite().all()):
            raise ValueError("with_catalogue: embeddings must be finite (got NaN or infinity)")
        return x


def _need_quantizer(op: str, quantizer: Any) -> None:
    if not all(hasattr(quantizer, name) for name in ("encode", "embed", "codebooks")):
        raise ValueError(
            f"{op}: quantizer must be a quantizer such as RQVAE or RQKMeans "
            f"(got {type(quantizer).__name__})"
        )


def encoder_record(encoder: EncoderLike, signals: Sequence[str]) -> dict[str, Any]:
    """What is noted beside a quantizer of its embeddings: the text encoder, if it has a name, and
    whether new items can be encoded by it."""
    named = encoder is None or isinstance(encoder, str)
    return {"encoder": encoder if named else None, "by_text": named and list(signals) == ["text"]}


def save_quantizer(
    folder: str | Path, quantizer: ResidualQuantizer, record: dict[str, Any] | None
) -> None:
    """Write a quantizer, and what is known of its embeddings, into a model directory, where
    `ItemEncoder.read` finds them."""
    path = Path(folder) / QUANTIZER
    quantizer.save_pretrained(path)
    if record is not None:
        write_text(path / RECORD, json.dumps(record) + "\n")


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """What `save_quantizer` noted; None if nothing is known."""
    path = Path(folder) / QUANTIZER / RECORD
    return dict(json.loads(path.read_text())) if path.is_file() else None


def _quantizer(path: Path) -> ResidualQuantizer:
    from crs_fast.quantize import RQVAE, RQKMeans

    kinds = {kind.config_class.model_type: kind for kind in (RQVAE, RQKMeans)}
    name = json.loads((path / "config.json").read_text()).get("model_type")
    if name not in kinds:
        raise ValueError(
            f"ItemEncoder.read: {path} must hold a quantizer of {sorted(kinds)} (got {name!r})"
        )
    return kinds[name].from_pretrained(path)
