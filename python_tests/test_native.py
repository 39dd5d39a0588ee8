"""What the compiled module holds, and what is said where that is not enough."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crs_fast import _native
from crs_fast.ops.dtypes import NATIVE_FLOATS, name_of
from crs_fast.ops.trie import NORMALIZE, dispatch

DEFAULT = "80-real 90-real 90-virtual"  # CMakeLists.txt


@pytest.fixture
def built(monkeypatch):
    """Make the module one with kernels for these architectures."""

    def build(architectures):
        _native.has_cuda.cache_clear()
        module = SimpleNamespace(cuda_architectures=architectures)
        monkeypatch.setattr(_native, "load", lambda: module)
        return module

    yield build
    _native.has_cuda.cache_clear()


@pytest.mark.parametrize(
    ("architectures", "runs", "lacks"),
    [
        (DEFAULT, [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1)], [(6, 1), (7, 0), (7, 5)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("75", [(7, 5), (8, 0), (12, 0)], [(7, 0)]),
        ("90a-real", [(9, 0)], [(8, 9), (10, 0)]),
        ("120-virtual", [(12, 0)], [(9, 0)]),
        ("native", [(7, 5), (9, 0)], []),
        ("", [], [(8, 0), (9, 0)]),
    ],
)
def test_which_gpus_the_kernels_run_on(built, architectures, runs, lacks):
    built(architectures)
    assert all(_native.has_cuda(version) for version in runs)
    assert not any(_native.has_cuda(version) for version in lacks)


def test_other_gpus_take_the_reference_and_it_says_so_once(built, monkeypatch):
    module = built(DEFAULT)
    versions = {0: (7, 5), 1: (8, 6)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: versions[device.index])
    tensors = [
        SimpleNamespace(is_cuda=True, device=torch.device("cuda", index)) for index in versions
    ]
    with pytest.warns(RuntimeWarning, match=r"test_op: .* 7\.5; .*ARCHITECTURES=75") as caught:
        found = [dispatch._kernels("test_op", tensor) for tensor in tensors * 2]
    dispatch._version.cache_clear()
    assert found == [None, module] * 2
    assert len(caught) == 1


@pytest.fixture
def clone(tmp_path):
    """A copy of the package's sources, without the compiled module."""
    source = Path(_native.__file__).parent
    ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
    return shutil.copytree(source, tmp_path / "clone" / "crs_fast", ignore=ignored).parent


def warnings_in(clone, *more_paths):
    """What Python says in the clone's folder when the kernels are loaded."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, more_paths))}
    code = "from crs_fast import _native; _native.load()"
    # -S: the environment's own site-packages may hold an installed crs_fast.
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=True
    )
    return done.stderr


def test_a_clone_without_kernels_says_how_to_build_them(clone):
    assert "To build them: in a clone of crs_fast, run pip install" in warnings_in(clone)


def test_a_clone_that_hides_the_installed_package_says_so(clone, tmp_path):
    """README's command run in a clone without -e: the sources come first, without kernels."""
    installed = tmp_path / "site-packages" / "crs_fast"
    installed.mkdir(parents=True)
    (installed / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    said = warnings_in(clone, installed.parent)
    assert f"They are installed in {installed}" in said
    assert "pip install -e ." in said


def stubbed() -> dict[str, list[str]]:
    """Every function and constructor of the stub, with the names of its arguments; "*" where only
    keywords follow."""
    signatures = {}

    def visit(body, prefix=""):
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
                args = [a.arg for a in node.args.args]
                args += ["*"] * bool(node.args.kwonlyargs) + [a.arg for a in node.args.kwonlyargs]
                signatures[prefix + node.name] = args

    visit(ast.parse(Path(_native.__file__).with_name("_C.pyi").read_text()).body)
    return signatures


def built_signatures(module) -> dict[str, list[str]]:
    """The same of the compiled module, from what pybind11 writes into its docstrings."""
    signatures = {}

    def visit(owner, prefix=""):
        for name, value in vars(owner).items():
            if isinstance(value, type):
                if not hasattr(value, "__members__"):
                    visit(value, f"{name}.")
            elif callable(value) and (name == "__init__" or not name.startswith("_")):
                inside = re.match(r"\w+\((.*)\) ->", value.__doc__.strip())[1]
                parts = inside.split(", ") if inside else []
                signatures[prefix + name] = [part.split(":")[0] for part in parts]

    visit(module)
    return signatures


def test_the_stub_says_what_the_module_holds():
    module = _native.load()
    signatures, built = stubbed(), built_signatures(module)
    if not module.cuda_architectures:
        for name in [n for n in signatures if n.endswith("_cuda") or n == "trie_step_workspace"]:
            del signatures[name]
    assert built == signatures
    assert len(signatures) > 10


def test_what_takes_many_addresses_takes_them_by_name():
    many = {name: args for name, args in stubbed().items() if len(args) > 5}
    assert {"Trie.__init__", "StepArgs.__init__", "residual_lookup"} <= set(many)
    assert all("*" in args[:2] for args in many.values())
    with pytest.raises(TypeError):
        _native.load().Trie(0, 0, 0, 0, 0, 0, 0, 0)


def test_python_and_cpp_agree_on_their_constants():
    module = _native.load()
    assert tuple(module.DType.__members__) == tuple(map(name_of, NATIVE_FLOATS))
    assert tuple(module.Normalize.__members__) == NORMALIZE


def test_the_instruction_set_is_named():
    assert _native.describe()["isa"] in ("avx512", "avx2", "portable")
