"""Embeddings in the forms people have them in, for `fit` and `encode`."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader, TensorDataset

from crs_fast.quantize import RQVAE, RQKMeans, load_embeddings

X = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))


class Frame:
    """As pandas hands a table out."""

    def __init__(self, x):
        self.x = x

    def to_numpy(self):
        return self.x.numpy()


ROWS = {
    "list of tensors": list(X),
    "tuple of tensors": tuple(X),
    "list of arrays": list(X.numpy()),
    "tensors and arrays": [X[0].numpy(), *X[1:]],
    "list of lists": X.tolist(),
    "big endian": X.numpy().astype(">f4"),
    "table": Frame(X),
    "reversed": X.numpy()[::-1].copy()[::-1],
}
BATCHES = {
    "tensor": DataLoader(X, batch_size=50),
    "TensorDataset": DataLoader(TensorDataset(X), batch_size=50),
    "dictionaries of one": DataLoader([{"e": row} for row in X], batch_size=50),
    "list": [X[:50], X[50:]],
    "tuple": (X[:50], X[50:]),
    "tuples of one": [(X[:50],), (X[50:],)],
    "arrays": [X[:50].numpy(), X[50:].numpy()],
    "function": lambda: iter([X[:50], [X[50:]]]),
}


@pytest.fixture(scope="module")
def fitted():
    return RQKMeans(levels=2, codes=4).fit(X)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", [RQKMeans, RQVAE])
def test_rows_of_any_kind(name, kind):
    more = dict(epochs=1) if kind is RQVAE else {}
    want = kind(levels=2, codes=4, **more).fit(X)
    got = kind(levels=2, codes=4, **more).fit(ROWS[name])
    assert torch.equal(got.codebooks, want.codebooks)
    assert torch.equal(got.encode(ROWS[name]), want.encode(X))


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_any_kind(name, fitted):
    got = RQKMeans(levels=2, codes=4).fit(BATCHES[name])
    # Read twice and more, in the same order each time.
    assert torch.equal(got.codebooks, RQKMeans(levels=2, codes=4).fit([X[:50], X[50:]]).codebooks)
    assert torch.equal(fitted.encode(BATCHES[name]), fitted.encode(X))


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (DataLoader(TensorDataset(X, X), batch_size=50), "hold just one .*Tensor', 'Tensor'"),
        ([{"a": X, "b": X}], "hold just one|rows of floats"),
        (["ab"], "rows of floats"),
        ([*X[:3], X[0, :3]], "rows of floats"),
        (X.to_sparse(), "float tensor .*sparse"),
        (X.int(), "float tensor"),
        ([list(range(3))], "float tensor"),
        (iter([X]), "cannot be read twice"),
        ([], "float tensor"),
        (5, "float tensor|just one|array"),
    ],
)
def test_other_forms_are_refused_in_one_sentence(x, why):
    with pytest.raises(ValueError, match=why):
        RQKMeans(levels=2, codes=4).fit(x)


def test_a_file_that_is_cut_names_itself(tmp_path):
    np.save(tmp_path / "e.npy", X.numpy())
    whole = (tmp_path / "e.npy").read_bytes()
    (tmp_path / "e.npy").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"load_embeddings: e\.npy must be a whole"):
        load_embeddings(tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([[1.0, 2.0], None, [3.0, 4.0]], "got null in row 1"),
        ([[1.0, 2.0], [3.0]], "got 2 in row 0 and 1 in row 1"),
        ([], "hold rows .got none"),
    ],
)
def test_a_table_with_gaps_names_the_row(rows, why, tmp_path):
    parquet.write_table(
        pa.table({"e": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "e.parquet"
    )
    with pytest.raises(ValueError, match=rf"load_embeddings: .*e\.parquet must .*{why}"):
        load_embeddings(tmp_path / "e.parquet")
