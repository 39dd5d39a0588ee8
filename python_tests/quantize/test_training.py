"""How quantizers learn: averages, gradients, balance, batches, processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import crs_fast
from crs_fast.quantize import RQVAE, RQKMeans, quantization_report, sinkhorn_codes
from crs_fast.quantize.ema import ema_update_
from crs_fast.quantize.gradients import rotation, straight_through
from crs_fast.quantize.kmeans import worst_served
from crs_fast.quantize.sources import ArraySource, IterableSource

SMALL = {"hidden_dims": (24, 16), "latent_dim": 8, "epochs": 300, "levels": 2, "codes": 8}


def _items(n: int = 300, dim: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=g)
    return centres[torch.randint(20, (n,), generator=g)] + 0.2 * torch.randn(n, dim, generator=g)


def test_ema_by_hand():
    books = torch.tensor([[[1.0], [7.0]]])
    weights, totals = torch.tensor([[2.0, 0.0]]), torch.tensor([[[2.0], [0.0]]])
    counts, sums = torch.tensor([[4, 0]]), torch.tensor([[[12.0], [0.0]]])
    ema_update_(books, weights, totals, counts, sums.double(), decay=0.5)
    assert weights.tolist() == [[3.0, 0.0]]
    assert totals.tolist() == [[[7.0], [0.0]]]
    assert books[0, 0].item() == pytest.approx(7 / 3)
    assert books[0, 1].item() == 7.0  # never used: it stays


@pytest.mark.parametrize(
    ("update", "gradient", "sinkhorn"),
    [
        ("gradient", "straight_through", 0.0),
        ("gradient", "rotation", 0.05),
        ("ema", "straight_through", 0.05),
        ("ema", "rotation", 0.0),
    ],
)
def test_every_way_of_training_learns(update, gradient, sinkhorn):
    x = _items()
    q = RQVAE(**SMALL, codebook_update=update, gradient=gradient, sinkhorn=sinkhorn).fit(x)
    codes = q.encode(x)
    report = quantization_report(x, q, codes, codes)
    assert report["unexplained_variance"] < 0.5, report
    assert report["usage"] == [1.0, 1.0], report
    with pytest.raises(ValueError, match="must be one of"):
        RQVAE(**{**SMALL, "gradient": "none"})


def test_ema_state_is_saved(tmp_path):
    q = RQVAE(**{**SMALL, "epochs": 5}, codebook_update="ema").fit(_items())
    q.save_pretrained(tmp_path)
    again = RQVAE.from_pretrained(tmp_path)
    assert float(again.ema_weights.sum()) > 0
    # The averages lead where the settled codebooks are, so training may go on from here.
    alive = again.ema_weights > 1e-3
    means = (again.ema_totals / again.ema_weights[..., None])[alive]
    torch.testing.assert_close(means, again.codebooks.detach()[alive])
    assert again.fingerprint() == q.fingerprint()
    assert torch.equal(again.encode(_items()), q.encode(_items()))


def test_rotation_turns_and_scales():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(20, 5, generator=g, dtype=torch.float64, requires_grad=True)
    q = torch.randn(20, 5, generator=g, dtype=torch.float64)
    out = rotation(z, q)
    torch.testing.assert_close(out, q)
    # The Jacobian of each row is |q| / |z| times a rotation that takes z to q.
    jacobian = torch.autograd.functional.jacobian(lambda t: rotation(t, q), z)
    for i in range(20):
        J = jacobian[i, :, i]
        R = J * z[i].norm() / q[i].norm()
        torch.testing.assert_close(R @ R.T, torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(J @ z[i].detach(), q[i])


def test_rotation_where_there_is_none():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 0.0]], requires_grad=True)
    q = torch.tensor([[1.0, 0.0], [-2.0, -4.0], [0.0, 0.0]])
    out = rotation(z, q)
    assert torch.equal(out, q)
    (out * torch.tensor([[1.0, 2.0]])).sum().backward()
    assert z.grad.tolist() == [[1.0, 2.0]] * 3  # straight through
    assert torch.equal(straight_through(z, q), q)


def _dense_sinkhorn(x, book, epsilon, iterations):
    """float64, and a dense N x K of it."""
    d = torch.cdist(x.double(), book.double()).square()
    s = -2 * (d - d.min()) / (d.max() - d.min()) / epsilon
    g = torch.zeros(len(book), dtype=torch.float64)
    for _ in range(iterations):
        f = -(s + g).logsumexp(1)
        g = np.log(len(x) / len(book)) - (s + f[:, None]).logsumexp(0)
    return (s + g).argmax(1)


@pytest.mark.parametrize("epsilon", [0.003, 0.02, 0.3])
def test_sinkhorn_equals_the_dense_float64_one(epsilon, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, book = torch.randn(500, 6, generator=g) + 3, torch.randn(20, 6, generator=g)
    want = _dense_sinkhorn(x, book, epsilon, 50)
    codes = sinkhorn_codes(x, book, epsilon, 50)
    assert float((codes == want).float().mean()) > 0.99
    monkeypatch.setattr("crs_fast.quantize.sinkhorn.BLOCK_ELEMENTS", 700)
    assert float((sinkhorn_codes(x, book, epsilon, 50) == want).float().mean()) > 0.99


def test_sinkhorn_balances():
    g = torch.Generator().manual_seed(0)
    x, book = torch.randn(2000, 8, generator=g), 3 * torch.randn(16, 8, generator=g)
    nearest = torch.cdist(x, book).argmin(1).bincount(minlength=16)
    balanced = sinkhorn_codes(x, book, 0.01, 100).bincount(minlength=16)
    assert int(nearest.max()) > 300
    assert int(balanced.max()) < 180  # 125 each would be even
    assert int(balanced.min()) > 80
    assert sinkhorn_codes(x[:0], book).shape == (0,)
    with pytest.raises(ValueError, match="epsilon and iterations"):
        sinkhorn_codes(x, book, 0.0)


def test_patience_stops_early():
    from crs_fast.quantize.rqvae_training import Training

    q = RQVAE(**{**SMALL, "epochs": 2000}, patience=40, lr=1e-2)
    q.config.input_dim = 12
    q._build(12)
    training = Training(q, ArraySource(_items()))
    training.run(progress=False)
    assert 0.2 * training.steps + 80 <= len(training.losses) < training.steps


@pytest.mark.parametrize("fields", [{}, {"batch_size": 64, "epochs": 4}], ids=["full", "mini"])
def test_memory_map_and_batches_give_what_the_array_gives(fields, tmp_path, monkeypatch):
    x = _items(500)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr("crs_fast.quantize.rqkmeans.BATCH_ROWS", 100)
    fitted = [
        RQKMeans(levels=3, codes=8, **fields).fit(source)
        for source in (mapped, [x[:123], x[123:400], x[400:]], lambda: iter(x.split(70)))
    ]
    whole = RQKMeans(levels=3, codes=8, **fields).fit(x)
    for q in fitted:
        codes = q.encode(x)
        report = quantization_report(x, q, codes, codes)
        want = quantization_report(x, whole, whole.encode(x), codes)
        assert report["unexplained_variance"] < 0.2
        if not fields:
            torch.testing.assert_close(q.codebooks, whole.codebooks, rtol=1e-4, atol=1e-5)
            assert torch.equal(codes, whole.encode(x))
        else:  # batches are cut elsewhere
            assert report["unexplained_variance"] < 1.3 * want["unexplained_variance"] + 0.01


def test_a_memory_map_is_never_held_whole(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", _items(3000).numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr("crs_fast.quantize.rqkmeans.BATCH_ROWS", 256)
    monkeypatch.setattr("crs_fast.quantize.rqkmeans._SEED_ROWS", 300)
    largest = []
    floats = crs_fast.quantize.sources._floats
    monkeypatch.setattr(
        "crs_fast.quantize.sources._floats", lambda x: largest.append(len(x)) or floats(x)
    )
    RQKMeans(levels=2, codes=8, iterations=3).fit(mapped)
    assert max(largest) <= 300


def test_rqvae_reads_a_memory_map(tmp_path):
    x = _items(200)
    np.save(tmp_path / "x.npy", x.numpy())
    q = RQVAE(**{**SMALL, "epochs": 20}).fit(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert q.fingerprint() == RQVAE(**{**SMALL, "epochs": 20}).fit(x).fingerprint()


def test_a_large_sample_is_random_and_the_same_for_all_sources():
    x = torch.arange(5000.0)[:, None]
    one = ArraySource(x).sample(100, torch.Generator().manual_seed(3))
    two = IterableSource(list(x.split(700))).sample(100, torch.Generator().manual_seed(3))
    assert torch.equal(one, two)
    assert len(one.unique()) == 100
    assert 1500 < float(one.mean()) < 3500


def test_worst_served_by_hand():
    x = torch.tensor([[0.0], [1.0], [5.0], [5.0], [9.0]])
    books = torch.tensor([[[0.0], [8.0]]])
    assert worst_served(ArraySource(x), books, 3, 2)[:, 0].tolist() == [5.0, 5.0, 1.0]
    assert worst_served(ArraySource(x[:1]), books, 3, 2).shape == (0, 1)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (iter([torch.ones(2, 3)]), "cannot be read twice"),
        ([torch.ones(2, 3), torch.ones(2, 4)], "every batch of x must have 3 columns"),
        (list, "at least one row"),
        ([torch.ones(2, 3), torch.full((2, 3), torch.nan)], "finite"),
        ([torch.ones(2, 3).long()], r"float tensor \[N, D\]"),
    ],
)
def test_bad_batches(x, match):
    with pytest.raises(ValueError, match=match):
        RQKMeans(levels=1, codes=2).fit(x)


def test_rqvae_refuses_batches():
    with pytest.raises(ValueError, match="an array or a memory map"):
        RQVAE(**SMALL).fit([torch.ones(2, 3)])


_WORKER = """
import sys, torch
from torch import distributed
from crs_fast.quantize import RQVAE, RQKMeans
rank, world, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                               world_size=world)
x = torch.load(out + "/x.pt")
mine = x[:170] if rank == 0 else x[170:]          # unequal shares
for name, q in (
    ("kmeans", RQKMeans(levels=3, codes=16)),
    ("empty", RQKMeans(levels=2, codes=200)),      # empty clusters to refill
    ("mini", RQKMeans(levels=2, codes=8, batch_size=200, epochs=2)),
    ("vae", RQVAE(hidden_dims=(24,), latent_dim=8, epochs=8, levels=2, codes=8, batch_size=128)),
    ("ema", RQVAE(hidden_dims=(24,), latent_dim=8, epochs=8, levels=2, codes=8, batch_size=128,
                  codebook_update="ema", reset_every=7)),
):
    q.fit(mine, distributed=True)
    torch.save((q.codebooks.detach(), q.encode(x), q.fingerprint()), f"{out}/{name}{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_learn_what_one_does(tmp_path):
    import socket

    x = _items()
    torch.save(x, tmp_path / "x.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    paths = os.pathsep.join([str(Path(crs_fast.__file__).parents[1]), *sys.path])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), "2", port, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]

    def results(name):
        return [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)]

    vae = {"hidden_dims": (24,), "latent_dim": 8, "epochs": 8, "batch_size": 128}
    for name, alone in (
        ("kmeans", RQKMeans(levels=3, codes=16)),
        ("empty", RQKMeans(levels=2, codes=200)),
        ("vae", RQVAE(**vae, levels=2, codes=8)),
        ("ema", RQVAE(**vae, levels=2, codes=8, codebook_update="ema", reset_every=7)),
    ):
        alone.fit(x)
        (books, codes, print0), (_, _, print1) = results(name)
        assert print0 == print1, name
        exact = name in ("kmeans", "empty")
        tolerance = 1e-6 if exact else 1e-3
        torch.testing.assert_close(books, alone.codebooks.detach(), rtol=tolerance, atol=tolerance)
        agree = float((codes == alone.encode(x)).float().mean())
        assert agree == 1.0 if exact else agree > 0.98, (name, agree)
    # Mini-batches are cut within a process's rows, so only the processes must agree.
    (_, _, print0), (_, _, print1) = results("mini")
    assert print0 == print1
