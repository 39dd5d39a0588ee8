"""Threads share one trie and its ops; on a free-threaded Python they do so without the GIL."""

import os
import subprocess
import sys
import sysconfig
import threading

import pytest
import torch

from crs_fast.ops import number_find, trie_mask, trie_step
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import random_sids, vocab_of

free_threaded = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python"
)
LEVELS, CODES, CALLERS = 3, 20, 8


@free_threaded
def test_the_native_module_leaves_the_gil_off():
    program = (
        "import sys, numpy, torch; assert not sys._is_gil_enabled(), 'on before crs_fast._C';"
        "from crs_fast import _C; assert not sys._is_gil_enabled(), 'crs_fast._C turned it on'"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@free_threaded
def test_these_tests_run_without_the_gil():
    assert not sys._is_gil_enabled()


def at_once(call):
    """What each of the callers gets that begin together."""
    begin, results = threading.Barrier(CALLERS), []

    def run():
        begin.wait()
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    callers = [threading.Thread(target=run) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return results


def flat(values):
    """Tensors as lists, so that results compare by ==."""
    return [v.tolist() if isinstance(v, torch.Tensor) else v for v in values]


def use(trie: SidTrie, vocabulary) -> list:
    """One of each thing that is done with a trie. Some are made at first use."""
    tokens = vocabulary.tensors()
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    nodes = torch.zeros(2, 3, dtype=torch.int64)
    allowed = trie.filter(allow=list(range(0, 300, 2)))
    changed = trie.add([[1, 2, 3], [CODES - 1, 0]], [1000, 1001]).remove([5, 1000])
    return flat(
        [
            *trie_step(logits, torch.zeros(2, 3), nodes, trie.tensors, tokens, 4),
            trie_mask(logits, nodes.flatten(), trie.tensors, tokens, allowed.tensors),
            changed.sids(),
            changed.item_ids.tolist(),
            trie.sids([7, 8]),
            trie.items([[1], [2]]),
            ItemFilter.stack([allowed, None]).mask(),
            number_find(torch.arange(0, 50, 2), torch.tensor([4, 5, 48])),
        ]
    )


def test_threads_share_a_trie_that_no_one_has_used():
    sids = random_sids(0, 300, LEVELS, CODES, ragged=True)
    expected = use(SidTrie.from_sids(sids), vocab_of(LEVELS, CODES, end=3))
    for _ in range(5):
        trie, vocabulary = SidTrie.from_sids(sids), vocab_of(LEVELS, CODES, end=3)
        assert at_once(lambda t=trie, v=vocabulary: use(t, v)) == [expected] * CALLERS


def test_threads_build_tries_at_once():
    sids = random_sids(1, 20_000, LEVELS, CODES)
    expected = flat(SidTrie.from_sids(sids).tensors)
    assert at_once(lambda: flat(SidTrie.from_sids(sids).tensors)) == [expected] * CALLERS
