"""The call of the codebook lookup into C++, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from ..dtypes import native_dtype


def lookup(
    native: Any,
    x: torch.Tensor,
    codebooks: torch.Tensor,
    exact: bool,
    want_residual: bool,
    statistics: bool,
) -> tuple[bool, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Whether x is finite; and codes, residual, counts and sums, the last three empty unless
    wanted. They mean nothing where x is not finite."""
    x = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    books = codebooks.float().contiguous()
    (rows, dim), (levels, num_codes, _) = x.shape, books.shape
    codes = torch.empty(rows, levels, dtype=torch.int64, device="cpu")
    residual = torch.empty(rows if want_residual else 0, dim, dtype=torch.float32, device="cpu")
    shape = (levels, num_codes) if statistics else (0, 0)
    counts = torch.empty(shape, dtype=torch.int64, device="cpu")
    sums = torch.empty(*shape, dim, dtype=torch.float64, device="cpu")
    finite, _ = native.residual_lookup(
        x=x.data_ptr(),
        dtype=native_dtype(native, x.dtype),
        rows=rows,
        dim=dim,
        row_stride=x.stride(0),
        books=books.data_ptr(),
        levels=levels,
        codes=num_codes,
        exact=exact,
        threads=torch.get_num_threads(),
        out=codes.data_ptr(),
        residual=residual.data_ptr() if want_residual else 0,
        counts=counts.data_ptr() if statistics else 0,
        sums=sums.data_ptr() if statistics else 0,
    )
    return finite, (codes, residual, counts, sums)
