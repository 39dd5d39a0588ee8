"""Which turns come next, and what is kept of conversations."""

from types import SimpleNamespace

import pytest
import torch

from crs_fast.decode.lm.kept_tokens import KeptTokens
from crs_fast.serve.conversations import Conversations
from crs_fast.serve.queue import next_group

CATALOGUE = object()


def turn(arrived, tokens, catalogue=CATALOGUE):
    return SimpleNamespace(arrived=arrived, tokens=tokens, catalogue=catalogue)


def choose(waiting, **options):
    options = {
        "max_tokens": 4096,
        "max_turns": 64,
        "seconds_per_token": 0.001,
        **options,
    }
    return next_group(waiting, lambda turn: turn.tokens, **options)


def test_a_short_turn_passes_a_long_one_but_not_for_ever():
    long = turn(0.0, 2000)
    assert choose([long, turn(0.5, 20)], max_turns=1)[0].tokens == 20
    # What comes after the long one should have ended waits for it.
    assert choose([long, turn(2.1, 20)], max_turns=1) == [long]


def test_a_group_is_little_padded():
    short, long = [turn(0.0, 20) for _ in range(6)], [turn(0.1, 700) for _ in range(2)]
    assert choose([*short, *long]) == short
    assert choose(long) == long
    # Where it is a matter of a few tokens, one forward pass takes all.
    assert len(choose([turn(0.0, 10), turn(0.1, 100)])) == 2


@pytest.mark.parametrize(("options", "size"), [({"max_tokens": 350}, 3), ({"max_turns": 2}, 2)])
def test_a_group_has_limits(options, size):
    waiting = [turn(0.0, 100) for _ in range(9)]
    assert choose(waiting, **options) == waiting[:size]


def test_a_turn_that_is_longer_than_a_forward_pass_goes_alone():
    waiting = [turn(0.0, 900), turn(1.0, 900)]
    assert choose(waiting, max_tokens=500) == waiting[:1]


def test_short_turns_pass_one_that_is_longer_than_a_forward_pass():
    short, long = [turn(0.2, 60), turn(0.3, 90)], turn(0.1, 900)
    assert choose([long, *short], max_tokens=200) == short
    assert choose([long, turn(2.0, 60)], max_tokens=200) == [long]


def test_a_group_has_one_catalogue():
    other = object()
    waiting = [turn(0.0, 5), turn(0.1, 5, other), turn(0.2, 5)]
    assert choose(waiting) == [waiting[0], waiting[2]]


def kept(*ids):
    states = torch.zeros(1, len(ids), 2)  # 8 bytes a token, for keys and values each
    return KeptTokens(list(ids), [(states, states.clone()), None])


def test_the_least_recently_used_conversation_is_dropped():
    conversations = Conversations(limit=16 * 6)
    conversations.keep("a", kept(1, 2))
    conversations.keep("b", kept(1, 2))
    conversations.keep("c", kept(1, 2))
    assert conversations.find("a", [1, 2, 3])[1] == 2
    conversations.keep("d", kept(1, 2))
    assert [conversations.length(name) for name in "abcd"] == [2, 0, 2, 2]
    assert conversations.nbytes == 16 * 6
    conversations.keep("e", kept(*range(7)))  # larger than everything that may be kept
    assert (conversations.length("e"), len(conversations)) == (0, 3)
    conversations.keep("a", kept(1, 2, 3))
    assert conversations.length("a") == 3
    assert conversations.nbytes <= 16 * 6


def test_what_a_context_shares_with_a_conversation():
    conversations = Conversations(limit=1 << 20)
    conversations.keep("a", kept(1, 2, 3, 4))
    assert conversations.find("a", [1, 2, 9, 4])[1] == 2
    assert conversations.find("a", [1, 2, 3])[1] == 2  # its last token is fed for its logits
    assert conversations.find("a", [9, 2, 3]) is None
    assert conversations.find("b", [1, 2, 3]) is conversations.find(None, [1, 2, 3]) is None


def test_a_new_conversation_takes_over_the_beginning_of_another():
    conversations = Conversations(limit=1 << 20)
    conversations.keep("a", kept(*range(30)))
    conversations.keep("b", kept(*range(20), 90, 91))
    context = [*range(25), 7, 8]
    found, shared = conversations.find("new", context)
    assert (found.ids, shared) == (list(range(30)), 25)
    assert conversations.find(None, context)[1] == 25
    assert conversations.find("new", [*range(10), 99, *range(20)]) is None
    conversations.forget("a")
    assert conversations.find("new", context)[1] == 20
    conversations.forget("b")
    assert conversations.find("new", context) is None
    assert not conversations._names
