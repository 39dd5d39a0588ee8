"""What every residual quantizer shares: encoding, saving, and its identity."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from crs_fast.ops.codebook import beam_lookup, residual_codes
from crs_fast.ops.host import as_tensor
from crs_fast.quantize.sources import Source, open_source

_ENCODE_ROWS = 1 << 14


def rows_of(x: Any, at: int, rows: int) -> torch.Tensor:
    """Rows from `at` on, in memory; those of a memory map are copied, since torch wants memory it
    may write to."""
    part = x[at : at + rows]
    return part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))


class ResidualQuantizerConfig(PretrainedConfig):
    """Sizes of a residual quantizer.

    Args:
        levels: codebooks, and codes a SID has (L).
        codes: codewords a level (K).
        seed: of everything random in `fit`.
        input_dim: width of the embeddings (D); `fit` sets it.
    """

    def __init__(
        self,
        levels: int = 4,
        codes: int = 64,
        seed: int = 0,
        input_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (("levels", levels), ("codes", codes)):
            if value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1 (got {value})")
        self.levels, self.codes, self.seed, self.input_dim = levels, codes, seed, input_dim
        super().__init__(**kwargs)


class ResidualQuantizer(PreTrainedModel):
    """Base of RQVAE and RQKMeans: a Hugging Face model whose weights are codebooks.

    Give a config or its fields: `RQVAE(config)` or `RQVAE(levels=4, codes=64)`. A subclass says
    how to `fit`, into which space items are embedded, and how codes turn back into embeddings.

    `codebooks` is float32 [L, K, D'], in the space `embed` maps to. Every weight and buffer is
    persistent, and embedding runs in float64, so codes are the same after a reload, in any batch.
    """

    config_class: Any = ResidualQuantizerConfig
    base_model_prefix = ""
    main_input_name = "x"
    codebooks: torch.nn.Parameter
    streams = False  # whether `fit` takes batches

    def __init__(self, config: ResidualQuantizerConfig | None = None, **fields: Any) -> None:
        if config is not None and fields:
            raise ValueError(
                f"{type(self).__name__}: give a config or its fields, not both (got both)"
            )
        super().__init__(config if config is not None else self.config_class(**fields))
        if self.config.input_dim is not None:
            self._build(self.config.input_dim)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: `fit` sets every weight, and the library's own would overwrite loaded ones."""

    def _build(self, input_dim: int) -> None:
        """Create the weights for embeddings of this width; codebooks are NaN until fitted."""
        raise NotImplementedError

    def _fit(self, source: Source, progress: bool) -> None:
        """Set the weights from a source of embeddings."""
        raise NotImplementedError

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """float64 [n, D] to float64 [n, D']."""
        raise NotImplementedError

    def _unembed(self, z: torch.Tensor) -> torch.Tensor:
        """float64 [n, D'] to float64 [n, D]."""
        raise NotImplementedError

    def _new_codebooks(self, dim: int) -> torch.nn.Parameter:
        shape = (self.config.levels, self.config.codes, dim)
        return torch.nn.Parameter(torch.full(shape, torch.nan, dtype=torch.float32, device="cpu"))

    def fit(self, x: Any, progress: bool = False, distributed: bool = False) -> Self:
        """Learn the codebooks from a catalogue, afresh at each call.

        Args:
            x: float [N, D], N >= 1, torch or numpy; the fit runs on its device. N may be below
                K (some codes then stay unused), rows may repeat. A numpy memory map is read batch
                by batch; RQKMeans also takes a re-iterable of batches [n, D], or a function that
                returns a new iterator of them.
            progress: show a progress bar.
            distributed: x is this process's share of the rows (torch.distributed's default
                group, shares in rank order); every process gets the same codebooks, those that
                one process would get from all rows, up to rounding. (Mini-batches are cut, and
                Sinkhorn balances, within a process's rows.)

        Returns:
            self. On the CPU, the same seed, x and thread count give the same codes.

        Raises:
            ValueError: x is not a finite float [N, D] with N, D >= 1.
        """
        source = self._source(x, distributed)
        self.config.input_dim = source.dim
        # Forking leaves the caller's random state as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._build(source.dim)
            torch.nn.Module.to(self, source.device)
            with torch.enable_grad():
                self._fit(source, progress)
        return self.eval()

    def _source(self, x: Any, sharded: bool) -> Source:
        batched = callable(x) or not (isinstance(x, list) or hasattr(x, "shape"))
        if batched or (isinstance(x, list) and x and getattr(x[0], "ndim", 0) == 2):
            if not self.streams:
                raise ValueError(
                    f"{type(self).__name__}.fit: x must be an array or a memory map (got batches)"
                )
        elif not isinstance(x, np.memmap):
            x = self._checked(x, "fit").float()
        return open_source(x, sharded)

    @torch.no_grad()
    def embed(self, x: Any) -> torch.Tensor:
        """Embeddings float [N, D] to the codebooks' space, float32 [N, D'], on its device."""
        x = self._fitted("embed")._checked(x, "embed").to(self.codebooks.device)
        if x.shape[1] != self.config.input_dim:
            raise ValueError(
                f"{type(self).__name__}.embed: x must have {self.config.input_dim} columns "
                f"(got {x.shape[1]})"
            )
        return torch.cat([self._embed(rows.double()).float() for rows in x.split(_ENCODE_ROWS)])

    def encode(self, x: Any, beams: int = 1) -> torch.Tensor:
        """Embeddings float [N, D] to codes int64 [N, L]; a numpy memory map is read piece by piece.

        With one beam each level takes its nearest codeword, exactly (`ops.residual_codes`); more
        beams (`ops.beam_lookup`) are slower and leave a smaller error.
        """
        books = self._fitted("encode").codebooks.detach().float()
        if isinstance(x, np.memmap):
            starts = range(0, len(x), _ENCODE_ROWS)
            return torch.cat([self.encode(rows_of(x, at, _ENCODE_ROWS), beams) for at in starts])
        if beams == 1:
            return residual_codes(self.embed(x), books)
        return beam_lookup(self.embed(x), books, beams)[0]

    @torch.no_grad()
    def decode(self, codes: Any) -> torch.Tensor:
        """Codes int [N, L] to the embeddings they stand for, float32 [N, D].

        Raises:
            ValueError: wrong shape, or a code outside [0, K).
        """
        name, book = type(self).__name__, self._fitted("decode").codebooks
        codes = torch.as_tensor(codes, device=book.device).long()
        if codes.ndim != 2 or codes.shape[1] != book.shape[0]:
            raise ValueError(
                f"{name}.decode: codes must have shape [N, {book.shape[0]}] "
                f"(got {tuple(codes.shape)})"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < book.shape[1]:
            raise ValueError(
                f"{name}.decode: codes must lie in [0, {book.shape[1]}) "
                f"(got [{int(codes.min())}, {int(codes.max())}])"
            )
        levels = torch.arange(book.shape[0], device=book.device)
        z = book.double()[levels, codes].sum(1)  # [N, L, D'] -> [N, D']
        return self._unembed(z).float()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the model's type and every weight: equal exactly when codes must be."""
        digest = hashlib.sha256(self.config.model_type.encode())
        for name, value in sorted(self._fitted("fingerprint").state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, **kwargs: Any
    ) -> None:
        """Write config.json and model.safetensors, each put in place whole."""
        target = Path(save_directory)
        self._fitted("save_pretrained")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as temporary:
            super().save_pretrained(temporary, **kwargs)
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, target / path.name)

    @classmethod
    def from_pretrained(cls, directory: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load what `save_pretrained` wrote; codes are bit for bit the same.

        Raises:
            ValueError: weights are missing or unknown, so the codes would be wrong.
            OSError: no such directory or files.
        """
        loaded: Any = super().from_pretrained(directory, output_loading_info=True, **kwargs)
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(problem):
                raise ValueError(
                    f"{cls.__name__}.from_pretrained: weights must match the configuration "
                    f"(got {problem.replace('_', ' ')} {sorted(map(str, info[problem]))})"
                )
        return model

    def _fitted(self, op: str) -> Self:
        if not hasattr(self, "codebooks"):
            raise ValueError(
                f"{type(self).__name__}.{op}: the quantizer must be fitted or loaded first"
            )
        return self

    def _checked(self, x: Any, op: str) -> torch.Tensor:
        x = rows_of(x, 0, len(x)) if isinstance(x, np.memmap) else as_tensor(x).detach()
        if x.ndim != 2 or not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}.{op}: x must be a float tensor [N, D] "
                f"(got {x.dtype}, shape {tuple(x.shape)})"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{type(self).__name__}.{op}: x must be finite (got NaN or infinity)")
        return x
