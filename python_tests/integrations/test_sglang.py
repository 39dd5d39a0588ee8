"""SGLang's sampler as a double: what it hands a processor per step. The class file of 0.5.23 was
tried once."""

from types import SimpleNamespace

import pytest
import torch

from crs_fast.decode.row_mask import RowMask
from crs_fast.integrations import sglang
from crs_fast.integrations.served import RequestFilters
from crs_fast.trie import SidTrie, SidVocab, typed_catalogue

from .engines import NEW_TOKENS, expected, next_logits


@pytest.fixture(autouse=True)
def schedule(monkeypatch):
    """A server whose overlap schedule is off."""
    sglang._check_schedule.cache_clear()
    monkeypatch.setattr(sglang, "_overlap_is_off", lambda: True)
    yield
    sglang._check_schedule.cache_clear()


@pytest.fixture
def fields(served, monkeypatch):
    """`request_fields` for the served directory, without SGLang's serialisation."""
    monkeypatch.setattr(sglang.SidLogitProcessor, "to_str", classmethod(lambda c: "it"), False)
    return lambda **options: sglang.request_fields(served.folder, **options)["custom_params"]


def test_rows_of_a_batch(served, fields):
    """Greedy answers, whichever rows stand beside them."""
    options = [fields(), fields(deny=["i0", "i1", "i2"]), None, {**fields(), "sid": "off"}]
    processor, requests = sglang.SidLogitProcessor(), []
    for number, prompt in enumerate(served.prompts):
        request = SimpleNamespace(origin_input_ids=list(prompt), output_ids=[])
        params = options[number % 4]
        requests.append((request, None if params is None else {**params, "__req__": request}))
    for _ in range(NEW_TOKENS):
        rows = [[*request.origin_input_ids, *request.output_ids] for request, _ in requests]
        logits = torch.stack([next_logits(served.model, row) for row in rows])
        tokens = processor(logits, [params for _, params in requests]).argmax(1).tolist()
        for (request, _), token in zip(requests, tokens, strict=True):
            request.output_ids.append(token)
        requests = requests[::-1]
    for request, params in requests:
        deny = (params or {}).get("sid_deny")
        constrained = params is not None and params.get("sid") != "off"
        truth = expected(served, request.origin_input_ids, deny, constrained)
        assert request.output_ids == truth


def test_a_sid_right_after_the_prompt(served, fields):
    """`prefix` says so where the prompt lacks the begin token."""
    prompt = served.prompts[0]
    request = SimpleNamespace(origin_input_ids=prompt, output_ids=[])
    params = {**fields(prefix=0), "__req__": request}
    logits = next_logits(served.model, prompt)[None]
    masked = sglang.SidLogitProcessor()(logits, [params])
    legal = (masked[0] > -torch.inf).nonzero().flatten().tolist()
    assert legal == sorted(served.vocab.token_ids[0].tolist())


def test_a_typed_catalogue(served, fields, monkeypatch):
    """The begin token that a row holds chooses the catalogue; `prefix=0` leaves the type open."""
    begins = served.control.rec, served.vocab.begin
    tries = [SidTrie.from_sids([[n, 1, 1]], [f"i{n}"]) for n in (0, 2)]
    vocab = SidVocab(served.vocab.token_ids, end=served.vocab.end)
    typed = typed_catalogue(dict(zip(begins, tries, strict=True)), vocab)
    mask = RowMask(*typed)
    monkeypatch.setattr(sglang, "_mask", lambda *_: (mask, RequestFilters(typed.trie)))
    first = [int(vocab.token_ids[0][n]) for n in (0, 2)]
    start = [5, 6]
    rows = [([*start, begins[0]], fields()), ([*start, begins[1]], fields()),
            (start, fields(prefix=0)), (start, fields(prefix=0, deny=["i0"]))]  # fmt: skip
    wanted = [{first[0]}, {first[1]}, set(begins), {begins[1]}]
    params = [
        {**options, "__req__": SimpleNamespace(origin_input_ids=row, output_ids=[])}
        for row, options in rows
    ]
    masked = sglang.SidLogitProcessor()(torch.zeros(4, 400), params)
    for one, legal in zip(masked, wanted, strict=True):
        assert set((one > -torch.inf).nonzero().flatten().tolist()) == legal


def test_wrong_options_end_the_answer_and_nothing_else(served, fields):
    with pytest.raises(ValueError, match="sid_deny must be a list of item ids"):
        fields(deny={"a": 1})
    prompt = served.prompts[1]
    request = SimpleNamespace(origin_input_ids=prompt, output_ids=[])
    params = [{**fields(), "sid_deny": 1.5, "__req__": request}, {**fields(), "__req__": request}]
    logits = torch.stack([next_logits(served.model, prompt)] * 2)
    with pytest.warns(UserWarning, match="the request's answer is ended"):
        masked = sglang.SidLogitProcessor()(logits, params)
    assert (masked[0] > -torch.inf).nonzero().flatten().tolist() == [served.vocab.end]
    assert int(masked[1].argmax()) == expected(served, prompt, steps=1)[0]


def test_the_overlap_schedule_is_refused(monkeypatch):
    monkeypatch.setattr(sglang, "_overlap_is_off", lambda: False)
    with pytest.raises(RuntimeError, match="--disable-overlap-schedule"):
        sglang.SidLogitProcessor()(torch.zeros(1, 9), [None])
    monkeypatch.setattr(sglang, "_overlap_is_off", lambda: None)
    with pytest.warns(UserWarning, match="--disable-overlap-schedule"):
        sglang.SidLogitProcessor()(torch.zeros(1, 9), [None])
