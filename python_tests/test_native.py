"""What the compiled module holds, and what is said where that is not enough."""

from types import SimpleNamespace

import pytest
import torch

from crs_fast import _native
from crs_fast.ops.trie import native as trie_native

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
        found = [trie_native._kernels("test_op", tensor) for tensor in tensors * 2]
    trie_native._version.cache_clear()
    assert found == [None, module] * 2
    assert len(caught) == 1
