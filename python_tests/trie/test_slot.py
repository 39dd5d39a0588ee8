"""A slot that is loaded while threads search, and copies of it in other processes."""

import copy
import multiprocessing
import os
import pickle
import threading
import time

import pytest
import torch

from crs_fast.ops import trie_step, trie_walk
from crs_fast.trie import SidTrie, TrieSlot
from python_tests.helpers import random_sids, vocab_of

LEVELS, CODES = 3, 12
CATALOGUES = [
    SidTrie.from_sids(random_sids(0, 4000, LEVELS, CODES)),
    SidTrie.from_sids(random_sids(1, 90, LEVELS, CODES, ragged=True)),
]
TOKENS = vocab_of(LEVELS, CODES).tensors()


def search(trie, beams=20):
    """The items of a beam search on fixed logits."""
    scores, nodes = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(7)
    for _ in range(trie.num_levels):
        logits = torch.randn(1, 60, generator=generator).expand(scores.numel(), -1)
        scores, nodes, _, _ = trie_step(logits, scores, nodes, trie.tensors, TOKENS, beams)
    begin, end = trie.items_at(nodes)
    return [trie.item_ids[a:b] for a, b in zip(begin[0].tolist(), end[0].tolist(), strict=True)]


def run(*bodies):
    """In threads, each until all are done or one raises an error, which is raised again."""
    errors = []

    def guarded(body):
        try:
            body()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_searches_while_catalogues_change_answer_from_one_catalogue():
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    slot.load(CATALOGUES[0])
    answers = [search(trie) for trie in CATALOGUES]
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            trie = slot.trie
            try:
                with trie.reading():
                    found = search(trie)
            except ValueError as error:
                assert "latest load" in str(error)  # noqa: PT017
                continue
            assert found in answers
            seen.append(answers.index(found))

    def load():
        for number in range(60):
            slot.load(CATALOGUES[number % 2])
            time.sleep(0.002)
        done.set()

    run(read, read, read, load)
    assert set(seen) == {0, 1}


def test_ops_on_the_slot_s_tensors_see_whole_catalogues():
    """Without `reading` a search may meet another catalogue at its next step; no single op may
    meet a half-written one."""
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    slot.load(CATALOGUES[0])
    paths = CATALOGUES[0].sids()
    answers = [trie_walk(trie.tensors, paths) for trie in CATALOGUES]
    done = threading.Event()

    def read():
        while not done.is_set():
            found = trie_walk(slot.tensors, paths)
            assert any(torch.equal(found, answer) for answer in answers)

    def load():
        for number in range(60):
            slot.load(CATALOGUES[number % 2])
        done.set()

    run(read, read, load)


def test_nodes_of_the_catalogue_before_are_refused_and_read_nothing():
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    large = slot.load(CATALOGUES[0])
    nodes = trie_walk(large.tensors, large.sids()[-1:, :1])
    slot.load(CATALOGUES[1])
    with pytest.raises(ValueError, match="trie_step: nodes must be -1 or nodes of this trie"):
        trie_step(torch.zeros(1, 60), torch.zeros(1, 1), nodes[None], slot.tensors, TOKENS, 3)
    for use in (large.sids, lambda: large.items([[1]]), lambda: large.filter(allow=[1])):
        with pytest.raises(ValueError, match="that of an earlier one, whose catalogue is gone"):
            use()


def test_a_search_cannot_load_the_slot_that_it_reads():
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    trie = slot.load(CATALOGUES[0])
    with (
        trie.reading(),
        trie.reading(),
        pytest.raises(RuntimeError, match="must not be read by the thread that loads it"),
    ):
        slot.load(CATALOGUES[1])
    slot.load(CATALOGUES[1])


def test_a_forked_child_does_not_wait_for_its_parent_s_readers():
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    trie = slot.load(CATALOGUES[0])
    with trie.reading():
        child = os.fork()
        if child == 0:
            slot.load(CATALOGUES[1])
            os._exit(0 if search(slot.trie) == search(CATALOGUES[1]) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_of_a_slot_is_a_slot(copied):
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    slot.load(CATALOGUES[0])
    other = copied(slot)
    other.load(CATALOGUES[1])
    assert search(slot.trie) == search(CATALOGUES[0])
    assert search(other.trie) == search(CATALOGUES[1])


def found_by(trie, answers):
    answers.put(search(trie))


def test_a_spawned_process_searches_the_trie_that_it_is_given():
    """Most of its seconds are the start of a Python with torch."""
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=found_by, args=(slot.load(CATALOGUES[1]), answers))
    child.start()
    assert answers.get(timeout=120) == search(CATALOGUES[1])
    child.join(60)
    assert child.exitcode == 0
