"""Figures, pictures and files around a quantized catalogue."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crs_fast.cli import main
from crs_fast.quantize import RQKMeans, load_embeddings, quantization_report, resolve_collisions
from crs_fast.quantize.metrics import gini, neighbourhood_preservation
from crs_fast.trie import SidTrie


def _items(n: int = 90, dim: int = 6) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_gini_by_hand():
    assert gini(torch.tensor([3, 3, 3])) == pytest.approx(0.0)
    assert gini(torch.tensor([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(torch.tensor([1, 3])) == pytest.approx(0.25)
    assert gini(torch.zeros(4)) == 0.0


def test_neighbourhood_preservation_by_hand():
    # Neighbours in pairs: (0, 1) share both codes, (2, 3) the first, (4, 5) none.
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0], [21.0]])
    codes = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 1], [2, 0], [3, 0]])
    got = neighbourhood_preservation(x, codes)
    assert got["nearest"] == pytest.approx([4 / 6, 2 / 6])
    assert all(c <= n for c, n in zip(got["chance"], got["nearest"], strict=True))
    assert neighbourhood_preservation(x[:1], codes[:1]) == {"nearest": [], "chance": []}


def test_report_is_the_same_for_a_memory_map(tmp_path, monkeypatch):
    x = _items()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    q = RQKMeans(levels=2, codes=12).fit(x)
    codes = q.encode(x)
    monkeypatch.setattr("crs_fast.quantize.residual._ENCODE_ROWS", 40)
    monkeypatch.setattr("crs_fast.quantize.metrics._ROWS", 17)
    assert torch.equal(q.encode(mapped), codes)
    sids = resolve_collisions(q.embed(x), codes, q.codebooks)
    one, two = (quantization_report(source, q, codes, sids) for source in (x, mapped))
    assert one["reconstruction_error"] == pytest.approx(two["reconstruction_error"])
    assert one["collision_rate_after"] == 0.0
    assert one["shared_prefix"] == two["shared_prefix"]
    json.dumps(one)


def _write(kind: str, x: torch.Tensor, folder):
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, x.numpy())
    elif kind == "safetensors":
        save_file({"items": x, "other": torch.ones(1)}, path)
    else:
        import pyarrow
        from pyarrow import parquet

        columns = {"vector": x.tolist(), "id": [f"film {i}" for i in range(len(x))]}
        parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_quantize_command_on_embeddings(kind, tmp_path, capsys):
    x = _items()
    path, out = _write(kind, x, tmp_path), tmp_path / "out"
    argv = ["quantize", "--embeddings", str(path), "--out", str(out), "--levels", "2"]
    argv += ["--codes", "16", "--method", "rqkmeans"]
    argv += {"npy": [], "safetensors": ["--key", "items"], "parquet": ["--ids", "id"]}[kind]
    assert main(argv) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads((out / "report.json").read_text()) == {
        k: v for k, v in printed.items() if k != "out"
    }
    assert printed["unique"] is True
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(out.glob("*partial*"))
    trie = SidTrie.load(out / "trie.safetensors")
    assert trie.num_items == 90
    if kind == "parquet":
        assert trie.sids(["film 3"]).shape == (1, 2)
    assert torch.equal(
        RQKMeans.from_pretrained(out / "quantizer").encode(x),
        RQKMeans(levels=2, codes=16).fit(x).encode(x),
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either --data or --embeddings"),
        (["--embeddings", "x.csv"], "must end with .npy"),
        (["--embeddings", "nowhere.npy"], "nowhere.npy"),
        (["--embeddings", "x.npy", "--ids", "id"], "ids come from .parquet"),
    ],
)
def test_quantize_command_refuses(argv, message, tmp_path, capsys):
    assert main(["quantize", "--out", str(tmp_path / "out"), *argv]) == 2
    assert message in capsys.readouterr().err


def test_load_embeddings_refuses(tmp_path):
    path = _write("safetensors", _items(4), tmp_path)
    with pytest.raises(ValueError, match="key must be one of"):
        load_embeddings(path)
    with pytest.raises(ValueError, match=r"must hold floats \[N, D\]"):
        load_embeddings(path, "other")
    np.save(tmp_path / "ints.npy", np.ones((3, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="must hold floats"):
        load_embeddings(tmp_path / "ints.npy")
