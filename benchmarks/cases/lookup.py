"""Residual codebook lookup and its training step, beside the public quantizers."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from crs_fast.ops.codebook import residual_codes, residual_statistics

from .case import Case, Ways


def lookup(size: str, device: str) -> tuple[str, Ways]:
    """Many narrow rows: 4 levels of 256 codes."""
    rows = {"toy": 500, "full": 1_000_000 if device == "cuda" else 200_000}[size]
    return _encode(size, device, rows, 32, 4, 256)


def lookup_wide(size: str, device: str) -> tuple[str, Ways]:
    """Wide rows; on the GPU large codebooks too."""
    if device == "cuda":
        return _encode(size, device, 262_144, 128, 3, 2048)
    return _encode(size, device, 50_000 if size == "full" else 200, 384, 3, 256)


def lookup_step(size: str, device: str) -> tuple[str, Ways]:
    """One training step: assign a batch and move every codebook by its moving average."""
    rows, dim, levels, num_codes = 8192 if size == "full" else 200, 32, 4, 256
    x, books = _data(rows, dim, levels, num_codes, device)
    ways: Ways = {}
    peer = _vector_quantize(books, training=True)
    mean, weight = books.double().clone(), torch.ones(levels, num_codes, device=device)

    def step() -> torch.Tensor:
        codes, _, counts, sums = residual_statistics(x, books)
        weight.lerp_(counts.float(), 0.2)
        mean.lerp_(sums, 0.2)
        books.copy_(mean / weight.clamp(min=1e-5)[..., None])
        return codes

    if peer is not None:
        theirs = torch.no_grad()(peer)
        _check_step(books.clone(), step, lambda: theirs(x)[1], books, peer)
        ways["vector-quantize-pytorch ResidualVQ.train()"] = lambda: theirs(x)
    ways["residual_statistics + EMA (exact)"] = step
    return f"{rows} x {dim}, {levels} levels x {num_codes}, assign + EMA", ways


def _check_step(
    start: torch.Tensor,
    ours: Callable[[], torch.Tensor],
    theirs: Callable[[], torch.Tensor],
    books: torch.Tensor,
    peer: Any,
) -> None:
    """One step of each from the same codebooks: like codes, like codebooks."""
    agree = float((ours() == theirs()).float().mean())
    moved = torch.stack([layer._codebook.embed[0] for layer in peer.layers])
    apart = float((moved - books).norm() / (books - start).norm())
    if agree < 0.99 or apart > 0.05:  # they round in float32, and smooth the counts
        raise AssertionError(
            f"lookup_step: {agree:.4f} of the codes agree; the codebooks are {apart:.3f} of the "
            "step apart"
        )


def _data(rows: int, dim: int, levels: int, num_codes: int, device: str) -> tuple:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator)
    books = torch.randn(levels, num_codes, dim, generator=generator)
    return x.to(device), books.to(device)


def _encode(
    size: str, device: str, rows: int, dim: int, levels: int, num_codes: int
) -> tuple[str, Ways]:
    x, books = _data(rows, dim, levels, num_codes, device)
    ways: Ways = {"torch.cdist loop": lambda: _cdist_loop(x, books)}
    if size == "full":  # compiling takes a minute
        compiled = torch.compile(_matmul_loop)
        ways["matmul loop, torch.compile"] = lambda: compiled(x, books)
    peer = _vector_quantize(books, training=False)
    if peer is not None:
        theirs = torch.no_grad()(peer)
        ways["vector-quantize-pytorch ResidualVQ.eval()"] = lambda: theirs(x)[1]
    if device == "cpu" and (faiss := _peer("faiss")) is not None:
        ways["faiss ResidualQuantizer, one beam"] = _faiss_encode(faiss, x, books)
    ways["residual_lookup (fast)"] = lambda: residual_codes(x, books, "fast")
    ways["residual_lookup (exact)"] = lambda: residual_codes(x, books)
    want = residual_codes(x, books).cpu()
    for name, run in list(ways.items()):
        try:
            agree = float((run().cpu() == want).float().mean())
        except Exception as error:
            if "compile" not in name:
                raise
            _say(f"{name} is left out: it does not run here ({type(error).__name__})")
            del ways[name]
            continue
        if agree < 0.99:  # the others round in float32 or TF32
            raise AssertionError(f"lookup: {name} agrees on {agree:.4f} of the codes only")
    return f"{rows} x {dim}, {levels} levels x {num_codes}", ways


def _cdist_loop(x: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    residual, codes = x, []
    for book in books:
        codes.append(torch.cdist(residual, book).argmin(1))
        residual = residual - book[codes[-1]]
    return torch.stack(codes, 1)


def _matmul_loop(x: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    residual, codes = x, []
    for book in books:
        codes.append((book.square().sum(-1) - 2 * residual @ book.T).argmin(1))
        residual = residual - book[codes[-1]]
    return torch.stack(codes, 1)


def _vector_quantize(books: torch.Tensor, training: bool) -> Any:
    """Their module over the same codebooks, or None."""
    module = _peer("vector_quantize_pytorch")
    if module is None:
        return None
    levels, num_codes, dim = books.shape
    peer = module.ResidualVQ(dim=dim, num_quantizers=levels, codebook_size=num_codes)
    for layer, book in zip(peer.layers, books, strict=True):
        layer._codebook.embed.data.copy_(book[None])
        layer._codebook.embed_avg.data.copy_(book[None])
    return peer.to(books.device).train(training)


def _faiss_encode(faiss: Any, x: torch.Tensor, books: torch.Tensor) -> Callable[[], torch.Tensor]:
    levels, num_codes, dim = books.shape
    faiss.omp_set_num_threads(torch.get_num_threads())
    bits = num_codes.bit_length() - 1
    quantizer = faiss.ResidualQuantizer(dim, levels, bits)
    quantizer.max_beam_size = 1
    faiss.copy_array_to_vector(books.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    rows = x.numpy()

    def encode() -> torch.Tensor:
        packed = quantizer.compute_codes(rows)  # one byte a code, as num_codes is 256
        return torch.from_numpy(packed.astype("int64"))

    return encode


@functools.cache
def _peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        _say(f"{name} is left out: not installed")
        return None


def _say(text: str) -> None:
    print(f"lookup: {text}", file=sys.stderr)


CASES = [
    Case("lookup", lookup, ("cpu", "cuda")),
    Case("lookup_wide", lookup_wide, ("cpu", "cuda")),
    Case("lookup_step", lookup_step, ("cpu", "cuda")),
]
