"""The native ops' threads are guests: any number of them, of callers and of forks."""

import os
import threading

import pytest
import torch

from crs_fast.ops import residual_lookup, trie_mask, trie_step
from crs_fast.trie import SidTrie
from python_tests.helpers import vocab_of


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def work():
    """Runs each op on enough work for several threads."""
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(100, (200_000, 3), generator=generator)
    tokens = vocab_of(3, 100).tensors()
    logits = torch.randn(200, 4000, generator=generator)
    scores = torch.randn(4, 50, generator=generator)
    x, books = (torch.randn(s, generator=generator) for s in ((3000, 24), (3, 64, 24)))

    def run():
        trie = SidTrie.from_sids(sids).tensors
        nodes = torch.zeros(4, 50, dtype=torch.int64)
        step = trie_step(logits, scores, nodes, trie, tokens, 30)
        return [
            *trie,
            *step,
            trie_mask(logits, nodes.flatten(), trie, tokens),
            *residual_lookup(x, books),
        ]

    return run


def equal(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_results_do_not_depend_on_the_number_of_threads(threads, work):
    threads(1)
    expected = work()
    for number in (2, 5):
        threads(number)
        assert equal(work(), expected)


def test_several_callers_at_once(threads, work):
    threads(3)
    expected, agreed = work(), []
    callers = [
        threading.Thread(target=lambda: agreed.append(equal(work(), expected))) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert agreed == [True] * 4


def test_a_forked_child_has_threads_of_its_own(threads):
    threads(3)
    generator = torch.Generator().manual_seed(0)
    x, books = (torch.randn(s, generator=generator) for s in ((3000, 24), (3, 64, 24)))

    def codes():
        return residual_lookup(x, books)[0].tolist()

    expected = codes()
    child = os.fork()
    if child == 0:
        os._exit(0 if codes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert codes() == expected
