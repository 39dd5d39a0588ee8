"""What setup.py builds without a compiler: one sentence, or the PyTorch reference alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools import build_meta; print(build_meta.build_{}('out'))"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What a wheel is built from, without the C++ sources and the compiled module."""
    folder = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(ROOT / "crs_fast", folder / "crs_fast", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(sources, what="wheel", **environment):
    return subprocess.run(
        [sys.executable, "-c", BUILD.format(what)],
        cwd=sources,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("environment", "got"),
    [
        ({"CXX": "/bin/false"}, "/bin/false: exit status 1"),
        ({"CXX": "no-such-compiler -O2"}, "no-such-compiler -O2: No such file or directory"),
        ({"CXX": "", "PATH": "/no/such/folder"}, "none on PATH"),
    ],
    ids=["broken", "missing", "none"],
)
def test_without_a_compiler_one_sentence_says_so(sources, environment, got):
    done = build(sources, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"crs_fast needs a C++17 compiler (got {got}). Install one ")
    assert "CRS_FAST_NATIVE=0 to install the slower PyTorch reference alone" in done.stderr
    assert done.stderr.count("\n") == 1


def test_switches_take_known_values_only(sources):
    for name, values in {"CRS_FAST_NATIVE": "0, 1", "CRS_FAST_CUDA": "auto, 0, 1"}.items():
        done = build(sources, **{name: "yes"})
        assert done.stderr.strip() == f"{name} must be one of {values} (got 'yes')"


USE = """
import warnings, torch, crs_fast
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    trie = crs_fast.SidTrie.from_sids([[0, 1], [0, 2], [3, 1]])
    tokens = crs_fast.ops.token_tensors([[0, 1, 2, 3]] * 2)
    nodes = crs_fast.ops.trie_walk(trie.tensors, torch.tensor([[0], [3]]))
    mask = crs_fast.ops.trie_mask(torch.zeros(2, 4), nodes, trie.tensors, tokens)
print(mask.isfinite().int().tolist())
print(len([w for w in caught if "the slower PyTorch reference" in str(w.message)]), len(caught))
print(crs_fast.__file__)
"""


def test_without_native_kernels_the_reference_runs_and_says_so_once(sources, tmp_path):
    done = build(sources, CRS_FAST_NATIVE="0", CXX="/bin/false")
    wheel = sources / "out" / done.stdout.splitlines()[-1]
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {path for path in (sources / "crs_fast").rglob("*") if path.is_file()}
        packed = {name for name in archive.namelist() if name.startswith("crs_fast/")}
        assert packed == {path.relative_to(sources).as_posix() for path in files}
        archive.extractall(tmp_path)
    # -S, and the packages by their path: an editable install's finder would offer its own kernels.
    packages = [tmp_path, *(path for path in sys.path if path.endswith("-packages"))]
    used = subprocess.run(
        [sys.executable, "-S", "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages))},
        capture_output=True,
        text=True,
    )
    assert used.stdout.splitlines() == [
        "[[0, 1, 1, 0], [0, 1, 0, 0]]",
        "1 1",
        str(tmp_path / "crs_fast" / "__init__.py"),
    ], used.stderr


def test_an_editable_install_beside_the_clone(sources, tmp_path):
    """A script in the folder that holds the clone, which is named crs_fast: Python would take the
    clone's own folder for the package."""
    clone = shutil.copytree(sources, tmp_path / "crs_fast", ignore=shutil.ignore_patterns("out"))
    done = build(clone, "editable", CRS_FAST_NATIVE="0")
    with zipfile.ZipFile(clone / "out" / done.stdout.splitlines()[-1]) as archive:
        archive.extractall(tmp_path / "site")
    script = "import site; site.addsitedir('site'); import crs_fast; print(crs_fast.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    used = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert used.stdout.strip() == str(clone / "crs_fast" / "__init__.py"), used.stderr
