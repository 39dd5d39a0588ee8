import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import crs_fast
from crs_fast.quantize import (
    RQVAE,
    RQKMeans,
    RQVAEConfig,
    build_sids,
    quantization_report,
    resolve_collisions,
)
from crs_fast.quantize.metrics import code_usage
from crs_fast.quantize.rqkmeans import kmeans, kmeans_plus_plus
from crs_fast.quantize.rqvae_training import Training
from crs_fast.quantize.sources import ArraySource

SMALL = {"hidden_dims": (24, 16), "latent_dim": 8, "epochs": 300}


def _items(n: int = 120, dim: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, dim, generator=g)
    x = centres[torch.randint(10, (n,), generator=g)] + 0.3 * torch.randn(n, dim, generator=g)
    return torch.nn.functional.normalize(x, dim=-1)


def _make(kind: str, **fields):
    fields = {"levels": 3, "codes": 8, **fields}
    return RQVAE(**SMALL, **fields) if kind == "rqvae" else RQKMeans(**fields)


@pytest.fixture(params=["rqvae", "rqkmeans"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def fitted():
    return {kind: _make(kind).fit(_items()) for kind in ("rqvae", "rqkmeans")}


def test_shapes_and_reconstruction(kind, fitted):
    x, q = _items(), fitted[kind]
    codes = q.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (120, 3)
    assert q.codebooks.shape == (3, 8, q.embed(x).shape[1])
    report = quantization_report(x, q, codes, resolve_collisions(q.embed(x), codes, q.codebooks))
    assert report["unexplained_variance"] < 0.5
    assert report["usage"] == [1.0, 1.0, 1.0]
    assert report["unique"]


def test_same_seed_same_codes_and_the_callers_random_state_is_kept(kind, fitted):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = _make(kind).fit(_items())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.fingerprint() == fitted[kind].fingerprint()
    other = _make(kind, seed=1).fit(_items())
    assert other.fingerprint() != again.fingerprint()


def test_codes_do_not_depend_on_the_batch(kind, fitted):
    x, q = _items(), fitted[kind]
    one_by_one = torch.cat([q.encode(row[None]) for row in x])
    assert torch.equal(one_by_one, q.encode(x))


def test_reload_in_a_fresh_process_is_bit_exact(fitted, tmp_path):
    x = _items(500, seed=3)
    save_file({"x": x}, tmp_path / "x.safetensors")
    code = (
        "import sys, crs_fast.quantize\n"
        "assert 'transformers' not in sys.modules\n"
        "from safetensors.torch import load_file, save_file\n"
        "from crs_fast.quantize import RQVAE, RQKMeans\n"
        "x = load_file('x.safetensors')['x']\n"
        "for name, cls in (('rqvae', RQVAE), ('rqkmeans', RQKMeans)):\n"
        "    q = cls.from_pretrained(name)\n"
        "    out = {'codes': q.encode(x), 'z': q.embed(x), 'back': q.decode(q.encode(x))}\n"
        "    save_file(out, name + '.safetensors'); print(q.fingerprint())\n"
    )
    for name, q in fitted.items():
        q.save_pretrained(tmp_path / name)
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        assert files == ["config.json", "model.safetensors"]
    paths = os.pathsep.join([str(Path(crs_fast.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.split()[-2:] == [q.fingerprint() for q in fitted.values()]
    for name, q in fitted.items():
        out = load_file(tmp_path / f"{name}.safetensors")
        assert torch.equal(out["codes"], q.encode(x))
        assert torch.equal(out["z"], q.embed(x))
        assert torch.equal(out["back"], q.decode(q.encode(x)))


def test_missing_weights_are_refused(fitted, tmp_path):
    fitted["rqvae"].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["scale"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys.*scale"):
        RQVAE.from_pretrained(tmp_path)


def test_fingerprint_sees_every_weight(fitted):
    q = RQVAE(RQVAEConfig.from_dict(fitted["rqvae"].config.to_dict()))
    q.load_state_dict(fitted["rqvae"].state_dict())
    same = q.fingerprint()
    assert same == fitted["rqvae"].fingerprint()
    for value in q.state_dict().values():
        before = value.clone()
        value.view(-1)[0] += 1e-3
        assert q.fingerprint() != same
        value.copy_(before)


@pytest.mark.parametrize(
    "x",
    [
        _items(5),
        torch.ones(30, 12),
        torch.zeros(1, 12),
        _items(6).repeat(7, 1),
        _items(40).double().numpy(),
    ],
    ids=["fewer items than codes", "constant", "one zero row", "duplicates", "numpy float64"],
)
def test_awkward_catalogues(kind, x):
    q = _make(kind).fit(x)
    codes = q.encode(x)
    assert bool(torch.isfinite(q.codebooks).all())
    assert bool(torch.isfinite(q.decode(codes)).all())
    sids = resolve_collisions(q.embed(x), codes, q.codebooks)
    assert len(torch.unique(sids, dim=0)) == len(x)
    rows = torch.as_tensor(x)
    equal_rows = (rows[:, None] == rows[None]).all(-1)
    equal_codes = (codes[:, None] == codes[None]).all(-1)
    assert bool((equal_codes | ~equal_rows).all())


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_come_back_to_life(update):
    x = _items(200)
    q = RQVAE(**{**SMALL, "warmup": 0.0}, levels=2, codes=8, codebook_update=update)
    q.config.input_dim = 12
    q._build(12)
    training = Training(q, ArraySource(x))
    with torch.no_grad():
        q.codebooks.normal_(generator=torch.Generator().manual_seed(0))
        q.codebooks[:, 4:] = 1e3
        if update == "ema":
            q.ema_weights.fill_(5.0)
            q.ema_totals.copy_(q.codebooks * 5)
        alive = q.codebooks[:, :4].clone()
        training.used[:] = (torch.arange(8) < 4).float()
        training.revive_dead()
    assert float(q.codebooks.detach().abs().max()) < 1e2
    assert torch.equal(q.codebooks[:, :4], alive)
    if update == "ema":  # the averages must not pull the code back to where it was
        assert q.ema_weights.tolist() == [[5.0] * 4 + [1.0] * 4] * 2
        assert torch.equal(q.ema_totals[:, 4:], q.codebooks[:, 4:])


def test_straight_through_gradients_reach_encoder_decoder_and_codebooks(fitted):
    q = RQVAE(RQVAEConfig.from_dict(fitted["rqvae"].config.to_dict()))
    q.load_state_dict(fitted["rqvae"].state_dict())
    out = q(_items())
    assert torch.equal(out.codes, q.encode(_items()))
    out.reconstruction_loss.backward(retain_graph=True)
    assert float(q.encoder[0].weight.grad.abs().sum()) > 0
    assert q.codebooks.grad is None
    out.loss.backward()
    assert float(q.codebooks.grad.abs().sum()) > 0


def test_kmeans_finds_separate_clusters_and_refills_empty_ones():
    x = torch.tensor([[0.0], [0.1], [10.0], [10.1], [20.0]])
    centres, residual = kmeans(x, torch.tensor([[0.0], [500.0], [600.0]]), 20)
    assert sorted(centres[:, 0].tolist()) == pytest.approx([0.05, 10.05, 20.0])
    assert float(residual.abs().max()) == pytest.approx(0.05, abs=1e-5)


def test_kmeans_plus_plus_takes_every_distinct_row_before_repeating():
    x = torch.tensor([[1.0], [1.0], [1.0], [2.0], [3.0]])
    for seed in range(20):
        centres = kmeans_plus_plus(x, 4, torch.Generator().manual_seed(seed))
        assert set(centres[:3, 0].tolist()) == {1.0, 2.0, 3.0}


def test_code_usage_by_hand():
    usage, perplexity = code_usage(torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]]), 8)
    assert usage == [0.5, 0.125]
    assert perplexity == pytest.approx([4.0, 1.0])


def test_report_by_hand(fitted):
    x, q = _items(4), fitted["rqkmeans"]
    codes = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    sids = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0]])
    report = quantization_report(x, q, codes, sids)
    assert report["collision_rate"] == 0.5
    assert report["colliding_items"] == report["largest_bucket"] == 3
    assert report["moved_items"] == 2
    assert report["unique"] is True
    want = (x - q.decode(codes)).square().sum(-1).mean()
    assert report["reconstruction_error"] == pytest.approx(float(want), rel=1e-5)


def test_build_sids():
    x = _items(60)
    q, sids, report = build_sids(x, levels=2, codes=16, method="rqkmeans", seed=2)
    assert isinstance(q, RQKMeans)
    assert sids.shape == (60, 2)
    assert report["items"] == 60
    assert torch.equal(build_sids(x, levels=2, codes=16, method="rqkmeans", seed=2)[1], sids)
    with pytest.raises(ValueError, match="at most codes"):
        build_sids(x, levels=2, codes=7)
    with pytest.raises(ValueError, match="method must be"):
        build_sids(x, method="pq")


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(3, 2).long(), torch.empty(0, 4)])
def test_fit_refuses(kind, x):
    with pytest.raises(ValueError, match=r"fit: x must"):
        _make(kind).fit(x)


def test_bad_use_is_refused(kind, fitted):
    with pytest.raises(ValueError, match="fitted or loaded first"):
        _make(kind).encode(_items())
    with pytest.raises(ValueError, match="must have 12 columns"):
        fitted[kind].encode(torch.ones(2, 5))
    with pytest.raises(ValueError, match="x must be finite"):
        fitted[kind].encode(torch.full((2, 12), torch.nan))
    with pytest.raises(ValueError, match="codes must lie in"):
        fitted[kind].decode([[0, 0, 8]])
    with pytest.raises(ValueError, match="codes must have shape"):
        fitted[kind].decode([[0, 0]])
    with pytest.raises(ValueError, match="codes must be at least 1"):
        _make(kind, codes=0)


def test_beams_leave_a_smaller_error(kind, fitted):
    x, q = _items(), fitted[kind]
    assert torch.equal(q.encode(x, beams=1), q.encode(x))
    z = q.embed(x).double()

    def error(codes):
        return float(
            (z - q.codebooks.detach().double()[torch.arange(3), codes].sum(1)).square().mean()
        )

    assert error(q.encode(x, beams=5)) < error(q.encode(x))


def test_no_items_encode(kind, fitted):
    assert fitted[kind].encode(torch.empty(0, 12)).shape == (0, 3)


def test_auto_classes_load_them(kind, fitted, tmp_path):
    from transformers import AutoConfig, AutoModel

    import crs_fast.quantize

    crs_fast.quantize.register()
    crs_fast.quantize.register()  # a second time changes nothing
    fitted[kind].save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is fitted[kind].config_class
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(fitted[kind])
    assert torch.equal(loaded.encode(_items()), fitted[kind].encode(_items()))
