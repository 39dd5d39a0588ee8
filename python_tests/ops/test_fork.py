"""A child that is forked after threads were used neither hangs nor crashes."""

import multiprocessing

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.ops import residual_lookup
from crs_fast.quantize import RQKMeans
from crs_fast.trie import SidTrie
from python_tests.helpers import random_sids, tiny_model, vocab_of

SECONDS = 60
LEVELS, CODES = 3, 16


def catalogue(items=100_000):
    return SidTrie.from_sids(random_sids(0, items, LEVELS, CODES))


def mask(rows):
    processor = SidLogitsProcessor(catalogue(100), vocab_of(LEVELS, CODES), prompt_length=3)
    ids = torch.zeros(rows, 3, dtype=torch.int64, device="cpu")
    processor(ids, torch.zeros(rows, 4000, device="cpu"))


def quantize():
    RQKMeans(levels=2, codes=4, iterations=2).fit(torch.randn(5000, 8))


def search():
    recommend(
        tiny_model("llama", 100), torch.ones(1, 4, dtype=torch.int64), trie=catalogue(100),
        vocab=vocab_of(LEVELS, CODES), num_beams=60,
    )  # fmt: skip


CALLS = {
    "torch": lambda: torch.randn(2000, 2000).exp() @ torch.randn(2000, 100),
    "from_sids": catalogue,
    "sids": lambda: catalogue().sids(),
    "filter": lambda: catalogue().filter(deny=range(100)),
    "mask": lambda: mask(400),
    "residual_lookup": lambda: residual_lookup(torch.randn(50_000, 16), torch.randn(4, 64, 16)),
    "quantize": quantize,
    "recommend": search,
}


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CALLS)
def test_a_forked_child_works(name, two_threads):
    CALLS["torch"](), CALLS["residual_lookup"](), catalogue()  # the parent's threads are there now
    child = multiprocessing.get_context("fork").Process(target=CALLS[name])
    child.start()
    child.join(SECONDS)
    is_hanging = child.is_alive()
    child.kill()
    assert not is_hanging
    assert child.exitcode == 0
    assert torch.get_num_threads() == 2
