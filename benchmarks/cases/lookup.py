"""Residual codebook lookup, its beam search and its training step, beside public quantizers."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from crs_fast.ops import beam_lookup, residual_codes, residual_statistics
from crs_fast.ops.codebook import reference

from .case import Case, Methods


def lookup(size: str, device: str) -> tuple[str, Methods]:
    """Many narrow rows: 4 levels of 256 codes."""
    rows = {"toy": 500, "full": 1_000_000 if device == "cuda" else 200_000}[size]
    return _encode(size, device, rows, 32, 4, 256)


def lookup_wide(size: str, device: str) -> tuple[str, Methods]:
    """Wide rows; on the GPU large codebooks too."""
    if device == "cuda":
        return _encode(size, device, 262_144, 128, 3, 2048)
    return _encode(size, device, 50_000 if size == "full" else 200, 384, 3, 256)


def lookup_step(size: str, device: str) -> tuple[str, Methods]:
    """One training step: assign a batch and move every codebook by its moving average."""
    rows, dim, levels, num_codes = 8192 if size == "full" else 200, 32, 4, 256
    x, books = data(rows, dim, levels, num_codes, device)
    start = books.clone()
    plain, ours = _MovingAverage(books, _plain_statistics), _MovingAverage(books, _our_statistics)
    _check_step(start, plain.step(x), plain.books, ours.step(x), ours.books)
    methods: Methods = {"cdist loop + EMA": lambda: plain.step(x)}
    peer = _vector_quantize(start, training=True)
    if peer is not None:
        train = torch.no_grad()(peer)
        codes = train(x)[1]
        moved = torch.stack([layer._codebook.embed[0] for layer in peer.layers])
        _check_step(start, codes, moved, _MovingAverage(start, _our_statistics).step(x), ours.books)
        methods["vector-quantize-pytorch ResidualVQ.train()"] = lambda: train(x)
    methods["residual_statistics + EMA (exact)"] = lambda: ours.step(x)
    return f"{rows} x {dim}, {levels} levels x {num_codes}, assign + EMA", methods


class _MovingAverage:
    """Codebooks that follow the mean of what each codeword has been given."""

    def __init__(self, books: torch.Tensor, statistics: Callable[..., Any]) -> None:
        self.books, self.statistics = books.clone(), statistics
        self.mean = books.double().clone()
        self.weight = torch.ones(books.shape[:2], device=books.device)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        codes, counts, sums = self.statistics(x, self.books)
        self.weight.lerp_(counts.float(), 0.2)
        self.mean.lerp_(sums.double(), 0.2)
        self.books.copy_(self.mean / self.weight.clamp(min=1e-5)[..., None])
        return codes


def _our_statistics(x: torch.Tensor, books: torch.Tensor) -> tuple[torch.Tensor, ...]:
    codes, _, counts, sums = residual_statistics(x, books)
    return codes, counts, sums


def _plain_statistics(x: torch.Tensor, books: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes, and each codeword's count and sum of inputs."""
    residual, codes = x, []
    counts = torch.zeros(books.shape[:2], device=x.device)
    sums = torch.zeros_like(books)
    for level, book in enumerate(books):
        nearest = torch.cdist(residual, book).argmin(1)
        counts[level] = torch.bincount(nearest, minlength=len(book))
        sums[level].index_add_(0, nearest, residual)
        residual = residual - book[nearest]
        codes.append(nearest)
    return torch.stack(codes, 1), counts, sums


def _check_step(
    start: torch.Tensor,
    codes: torch.Tensor,
    books: torch.Tensor,
    our_codes: torch.Tensor,
    our_books: torch.Tensor,
) -> None:
    """One step of each from the same codebooks: like codes, like codebooks."""
    agree = float((our_codes == codes).float().mean())
    apart = float((books - our_books).norm() / (our_books - start).norm())
    if agree < 0.99 or apart > 0.05:  # the others round in float32, and one smooths the counts
        raise AssertionError(
            f"lookup_step: {agree:.4f} of the codes agree; the codebooks are {apart:.3f} of the "
            "step apart"
        )


def lookup_beam(size: str, device: str) -> tuple[str, Methods]:
    """Encode with five candidates kept per row and level."""
    rows = 4_000 if size == "full" else 100
    beams, dim, levels, num_codes = 5, 32, 4, 256
    x, books = data(rows, dim, levels, num_codes, device)
    methods: Methods = {"matmul beam loop (float32)": lambda: _matmul_beams(x, books, beams)}
    if device == "cpu" and (faiss := _peer("faiss")) is not None:
        methods["faiss ResidualQuantizer, five beams"] = _faiss_encode(faiss, x, books, beams)
    methods["beam_lookup"] = lambda: beam_lookup(x, books, beams)[0]
    few = x[:100]
    if not torch.equal(beam_lookup(few, books, 1)[0], reference.residual_lookup(few, books)[0]):
        raise AssertionError("lookup_beam: one beam is not the greedy lookup, nothing was timed")
    expected = methods["beam_lookup"]()
    for name, run in methods.items():
        agree = float((run().to(device) == expected).float().mean())
        if agree < 0.99:  # the others round in float32
            raise AssertionError(f"lookup_beam: {name} agrees on {agree:.4f} of the codes only")
    return f"{rows} x {dim}, {levels} levels x {num_codes}, {beams} beams", methods


def _matmul_beams(x: torch.Tensor, books: torch.Tensor, beams: int) -> torch.Tensor:
    residual = x[:, None]  # [N, B, D]
    codes = torch.empty(len(x), 1, 0, dtype=torch.int64, device=x.device)
    error = torch.zeros(len(x), 1, device=x.device)
    for book in books:
        change = book.square().sum(-1) - 2 * residual @ book.T  # [N, B, K]
        total = (error[..., None] + change).flatten(1)
        error, best = total.topk(min(beams, total.shape[1]), largest=False)
        parent, code = best // len(book), best % len(book)
        codes = torch.cat([codes.gather(1, _like(parent, codes)), code[..., None]], 2)
        residual = residual.gather(1, _like(parent, residual)) - book[code]
    return codes[:, 0]


def _like(parent: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """An index [N, B] along dimension 1 of a tensor [N, *, W]."""
    return parent[..., None].expand(-1, -1, tensor.shape[2])


def data(rows: int, dim: int, levels: int, num_codes: int, device: str) -> tuple:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator)
    books = torch.randn(levels, num_codes, dim, generator=generator)
    return x.to(device), books.to(device)


def _encode(
    size: str, device: str, rows: int, dim: int, levels: int, num_codes: int
) -> tuple[str, Methods]:
    x, books = data(rows, dim, levels, num_codes, device)
    methods: Methods = {"torch.cdist loop": lambda: _cdist_loop(x, books)}
    if size == "full":  # compiling takes a minute
        compiled = torch.compile(_matmul_loop)
        methods["matmul loop, torch.compile"] = lambda: compiled(x, books)
    peer = _vector_quantize(books, training=False)
    if peer is not None:
        evaluate = torch.no_grad()(peer)
        methods["vector-quantize-pytorch ResidualVQ.eval()"] = lambda: evaluate(x)[1]
    if device == "cpu" and (faiss := _peer("faiss")) is not None:
        methods["faiss ResidualQuantizer, one beam"] = _faiss_encode(faiss, x, books, 1)
    methods["residual_lookup (fast)"] = lambda: residual_codes(x, books, "fast")
    methods["residual_lookup (exact)"] = lambda: residual_codes(x, books)
    want = residual_codes(x, books).cpu()
    for name, run in list(methods.items()):
        try:
            agree = float((run().cpu() == want).float().mean())
        except Exception as error:
            if "compile" not in name:
                raise
            _say(f"{name} is left out: it does not run here ({type(error).__name__})")
            del methods[name]
            continue
        if agree < 0.99:  # the others round in float32 or TF32
            raise AssertionError(f"lookup: {name} agrees on {agree:.4f} of the codes only")
    return f"{rows} x {dim}, {levels} levels x {num_codes}", methods


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


def _faiss_encode(
    faiss: Any, x: torch.Tensor, books: torch.Tensor, beams: int
) -> Callable[[], torch.Tensor]:
    levels, num_codes, dim = books.shape
    faiss.omp_set_num_threads(torch.get_num_threads())
    bits = num_codes.bit_length() - 1
    quantizer = faiss.ResidualQuantizer(dim, levels, bits)
    quantizer.max_beam_size = beams
    faiss.copy_array_to_vector(books.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    rows = x.numpy()

    def encode() -> torch.Tensor:
        packed = quantizer.compute_codes(rows)  # one byte per code, as num_codes is 256
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


_LOOKUP = ("residual_lookup",)
CASES = [
    Case("lookup", lookup, _LOOKUP, ("cpu", "cuda")),
    Case("lookup_wide", lookup_wide, _LOOKUP, ("cpu", "cuda")),
    Case("lookup_step", lookup_step, _LOOKUP, ("cpu", "cuda")),
    Case("lookup_beam", lookup_beam, ("beam_lookup",), ("cpu", "cuda")),
]
