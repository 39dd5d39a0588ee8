"""The judge of vllm_engine.py, without an engine."""

import pytest

from benchmarks import vllm_engine
from benchmarks.vllm_engine import Request, hugging_face_greedy, is_legal, is_right


@pytest.mark.parametrize("typed", [False, True], ids=["one catalogue", "films and books"])
def test_illegal_answers_are_seen(typed, tmp_path):
    system = vllm_engine.make_system(tmp_path / "model", typed)
    requests = vllm_engine.requests_of(system)
    opened = [one for one in requests if one.prompt[-1] in system.vocab.begins]
    assert 0 < len(opened) < len(requests)
    request = next(one for one in opened if "sid_deny" in one.options)
    answer = hugging_face_greedy(system, request)
    assert is_legal(system, request, answer)
    assert is_legal(system, request, answer[:2])  # cut off inside of a SID
    denied = Request(request.prompt, {"sid_deny": system.trie.item_ids.tolist()[:-1]})
    assert not is_legal(system, denied, answer)
    end = answer.index(system.vocab.end)
    assert not is_legal(system, request, [*answer[: end - 1], *answer[end:]])
    assert not is_legal(system, request, [*answer[: end + 1], answer[0]])  # a code in the text


def test_what_counts_as_right():
    assert is_right({"requests": 3, "equal": 3, "items": 2})
    assert not is_right({"requests": 3, "equal": 2})
    assert not is_right({"prompts": 3, "equal": 3, "beams": 60, "equal beams": 59})
    assert not is_right({"samples": 3, "illegal": 1})
