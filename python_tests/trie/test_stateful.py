"""A catalogue through any series of changes equals a plain dict that went through the same ones."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from crs_fast.ops import trie_step
from crs_fast.trie import ItemFilter, SidTrie, SidVocab, TrieSlot

LEVELS, CODES, ROOM = 3, 3, 400
SIDS = st.lists(st.integers(0, CODES - 1), min_size=1, max_size=LEVELS).map(tuple)
IDS = st.integers(0, 60)
TOKENS = SidVocab([range(l * CODES, (l + 1) * CODES) for l in range(LEVELS)]).tensors()


def padded(sids):
    return [[*sid, *[-1] * (LEVELS - len(sid))] for sid in sids]


class Catalogue(RuleBasedStateMachine):
    """`model`: the SID of each item, in the order in which the items were given. `allowed`: what
    `filter` allows of them, the items of each request."""

    @initialize(items=st.dictionaries(IDS, SIDS, max_size=30), as_text=st.booleans())
    def from_sids(self, items, as_text):
        self.as_text = as_text
        self.model = {self._id(i): sid for i, sid in items.items()}
        rows = torch.tensor(padded(self.model.values()), dtype=torch.int64).view(-1, LEVELS)
        self.trie = SidTrie.from_sids(rows, list(self.model) if items else None)
        self.slot = TrieSlot(ROOM, num_levels=LEVELS, num_codes=CODES)
        self._all_allowed()

    def _id(self, number):
        return f"item {number}" if self.as_text else number

    def _all_allowed(self):
        self.allowed = [set(self.model)]
        self.filter = ItemFilter(torch.ones(1, len(self.model), dtype=torch.bool))

    def _some(self, data, of=None):
        known = sorted(self.model if of is None else of, key=str)
        return data.draw(st.lists(st.sampled_from(known), unique=True) if known else st.just([]))

    @rule(items=st.dictionaries(IDS, SIDS, min_size=1, max_size=10))
    def add(self, items):
        new = {self._id(i): sid for i, sid in items.items()}
        known = new.keys() & self.model.keys()
        if known:
            with pytest.raises(ValueError, match="must be new"):
                self.trie.add(padded(new.values()), list(new))
            new = {i: sid for i, sid in new.items() if i not in known}
        if not new:
            return
        self.trie = self.trie.add(padded(new.values()), list(new))
        self.model |= new
        self._all_allowed()

    @rule(data=st.data())
    def remove(self, data):
        gone = self._some(data)
        self.trie = self.trie.remove(gone)
        self.model = {i: sid for i, sid in self.model.items() if i not in gone}
        self._all_allowed()

    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            self.trie.save(Path(folder) / "trie")
            self.trie = SidTrie.load(Path(folder) / "trie")

    @rule()
    def to(self):
        self.trie = self.trie.to("cpu")
        self.filter = self.filter.to("cpu")

    @rule()
    def into_the_slot(self):
        """Another catalogue in between leaves remains behind."""
        before = self.trie
        self.slot.load(SidTrie.from_sids([[0, 1, 2]] * 300))
        if type(before) is SidTrie:
            self.trie = self.slot.load(before)
            return
        with pytest.raises(ValueError, match="that of an earlier one, whose catalogue is gone"):
            self.slot.load(before)
        rows = torch.tensor(padded(self.model.values()), dtype=torch.int64).view(-1, LEVELS)
        self.trie = SidTrie.from_sids(rows, list(self.model) if self.model else None)
        self._all_allowed()

    @rule(data=st.data(), kind=st.sampled_from(["allow", "deny", "both"]))
    def new_filter(self, data, kind):
        allow, deny = self._some(data), self._some(data)
        allow, deny = (None if kind == "deny" else allow), (None if kind == "allow" else deny)
        self.filter = self.trie.filter(allow=allow, deny=deny)
        left = set(self.model) if allow is None else set(allow)
        self.allowed = [left - set(deny or ())]

    @rule(data=st.data())
    def join(self, data):
        others = self._some(data)
        other, ids = self.trie.filter(allow=others), set(others)
        if data.draw(st.booleans()):
            self.filter = self.filter & other
            self.allowed = [one & ids for one in self.allowed]
        else:
            self.filter = self.filter | other
            self.allowed = [one | ids for one in self.allowed]

    @rule()
    def invert(self):
        self.filter = ~self.filter
        self.allowed = [set(self.model) - one for one in self.allowed]

    @precondition(lambda self: len(self.allowed) < 4)
    @rule()
    def stack(self):
        self.filter = ItemFilter.stack([self.filter, None])
        self.allowed = [*self.allowed, set(self.model)]

    @rule(data=st.data())
    def select(self, data):
        rows = data.draw(st.lists(st.integers(0, len(self.allowed) - 1), min_size=1, max_size=3))
        self.filter = self.filter.select(rows)
        self.allowed = [self.allowed[row] for row in rows]

    @invariant()
    def equal(self):
        if not hasattr(self, "model"):
            return
        trie, model = self.trie, self.model
        assert trie.num_items == len(model)
        rows = sorted(model.items(), key=lambda item: item[1])  # stable: as given, within a SID
        assert trie.item_ids.tolist() == [item for item, _ in rows]
        assert trie.sids().tolist() == padded(sid for _, sid in rows)
        prefixes = {sid[:n] for sid in model.values() for n in range(1, len(sid) + 1)}
        assert trie.num_nodes == len(prefixes) + 1
        asked = sorted({*model.values(), (0,), (0, 1, 2), (CODES, 0)})
        answers = trie.items(padded(asked))
        assert answers == [[item for item, sid in rows if sid == one] for one in asked]
        order = trie.item_ids.tolist()
        mask = self.filter.over(trie).mask().tolist()
        assert mask == [[item in one for item in order] for one in self.allowed]

    @invariant()
    def search_equals_a_look_at_every_item(self):
        """All SIDs of the allowed items come out, best first, and nothing else."""
        if not hasattr(self, "model"):
            return
        batch = len(self.allowed)
        generator = torch.Generator().manual_seed(len(self.model))
        gains = torch.randn(LEVELS, LEVELS * CODES, generator=generator).log_softmax(1)
        beams = CODES**LEVELS + CODES**2 + CODES
        scores = torch.zeros(batch, 1)
        nodes = torch.zeros(batch, 1, dtype=torch.int64)
        sids = nodes.new_empty(batch, 1, 0)
        filters = self.filter.over(self.trie).tensors
        for level in range(self.trie.num_levels):
            logits = gains[level].repeat(scores.numel(), 1)
            scores, nodes, parents, codes = trie_step(
                logits, scores, nodes, self.trie.tensors, TOKENS, beams, filters=filters
            )
            at = parents[..., None].expand(-1, -1, sids.shape[2])
            sids = torch.cat([sids.gather(1, at), codes[..., None]], 2)
        for request, allowed in enumerate(self.allowed):
            valid = int((scores[request] > -torch.inf).sum())
            found = {
                tuple(itertools.takewhile(lambda c: c >= 0, row)): score
                for row, score in zip(
                    sids[request, :valid].tolist(), scores[request].tolist(), strict=False
                )
            }
            expected = {
                sid: sum(float(gains[l, l * CODES + c]) for l, c in enumerate(sid))
                for sid in {self.model[item] for item in allowed}
            }
            assert len(found) == valid
            assert found == pytest.approx(expected, abs=1e-4)


QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck))


def test_a_catalogue_equals_a_dict():
    run_state_machine_as_test(
        Catalogue, settings=settings(max_examples=15, stateful_step_count=12, **QUIET)
    )


@pytest.mark.long
def test_a_catalogue_equals_a_dict_for_ten_thousand_steps():
    run_state_machine_as_test(
        Catalogue, settings=settings(max_examples=250, stateful_step_count=50, **QUIET)
    )
