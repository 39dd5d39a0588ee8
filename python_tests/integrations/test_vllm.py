"""vLLM's two model runners and its `LLM`, as doubles of what they call and hand over. The real
engine (0.32 on a CPU) is run by hand, by benchmarks/vllm_engine.py."""

import sys
from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import crs_fast
from crs_fast.decode.lm.prompt import left_pad
from crs_fast.integrations import vllm
from crs_fast.trie import SidIndex, SidTrie, SidVocab, typed_catalogue

from .engines import NEW_TOKENS, expected, next_logits

OPTIONS = [{}, {"sid_deny": ["i0", "i1", "i2"]}, {"sid": "off"}, None]


class Direction(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class Update:
    """vLLM's `BatchUpdate`."""

    removed: list = field(default_factory=list)
    added: list = field(default_factory=list)
    moved: list = field(default_factory=list)


def params(**extra):
    return SimpleNamespace(extra_args=extra or None)


def config(folder, **additional):
    model = SimpleNamespace(
        model=str(folder),
        tokenizer=str(folder),
        hf_config=SimpleNamespace(eos_token_id=0),
        logprobs_mode="processed_logprobs",
        max_logprobs=-1,
        get_vocab_size=lambda: 10_000,
    )
    return SimpleNamespace(additional_config=additional, model_config=model)


def wanted(served, number):
    options = OPTIONS[number % 4] or {}
    deny = options.get("sid_deny")
    return expected(served, served.prompts[number], deny, options.get("sid") != "off")


def test_v1_while_the_batch_changes(served):
    """A persistent batch of three places: a request that ends makes room for the next one, the
    last one moves into a gap, and two change places now and then."""
    processor = vllm.SidLogitsProcessor(config(served.folder), torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    waiting, batch, done = list(range(8)), [], {}
    step = 0
    while waiting or batch:
        update = Update()
        for place in reversed(range(len(batch))):
            if len(batch[place][1]) >= NEW_TOKENS - batch[place][0] % 3:
                number, output = batch[place]
                done[number] = output
                update.removed.append(place)
                last = batch.pop()
                if place < len(batch):  # the last one fills the gap
                    batch[place] = last
                    update.moved.append((len(batch), place, Direction.UNIDIRECTIONAL))
        if waiting and len(batch) < 3 and not update.moved:
            number, output = waiting.pop(0), []
            update.added.append(
                (len(batch), params(**(OPTIONS[number % 4] or {})), served.prompts[number], output)
            )
            batch.append((number, output))
        if step % 3 == 1 and len(batch) > 1:
            batch[0], batch[1] = batch[1], batch[0]
            update.moved.append((0, 1, Direction.SWAP))
        processor.update_state(update if update != Update() else None)
        step += 1
        if not batch:
            continue
        rows = [[*served.prompts[number], *output] for number, output in batch]
        logits = torch.stack([next_logits(served.model, row) for row in rows])
        for (_, output), token in zip(batch, processor.apply(logits).argmax(1), strict=True):
            output.append(int(token))
    for number in range(8):
        assert done[number] == wanted(served, number)[: len(done[number])]


def v2_state(slots=8, length=256):
    return SimpleNamespace(
        device=torch.device("cpu"),
        all_token_ids=SimpleNamespace(gpu=torch.full((slots, length), 7, dtype=torch.int32)),
        total_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32)),
        prompt_len=SimpleNamespace(np=np.zeros(slots, dtype=np.int32)),
    )


@pytest.mark.parametrize("drafts", [1, 3])
def test_v2(served, drafts):
    """Rows in another order at each step. With `drafts` a request has several rows: the tokens of
    all but the first are only drafted."""
    state = v2_state()
    processor = vllm.SidLogitsProcessor(config(served.folder), state)
    slots = [5, 0, 3, 6]
    for number, slot in enumerate(slots):
        prompt = served.prompts[number]
        state.all_token_ids.gpu[slot, : len(prompt)] = torch.tensor(prompt)
        state.prompt_len.np[slot] = state.total_len.gpu[slot] = len(prompt)
        is_on = processor.add_request(slot, params(**(OPTIONS[number] or {})))
        assert is_on == (number != 2)
    answers = {slot: wanted(served, number) for number, slot in enumerate(slots)}
    for step in range(NEW_TOKENS - drafts + 1):
        order = slots if step % 2 else slots[::-1]
        tokens, expanded, position, logits, targets = [], [], [], [], []
        for slot in order:
            number = slots.index(slot)
            for ahead in range(drafts):
                row = [*served.prompts[number], *answers[slot][: step + ahead]]
                tokens.append(row[-1])
                expanded.append(slot)
                position.append(len(row) - 1)
                logits.append(next_logits(served.model, row))
                targets.append(answers[slot][step + ahead])
        context = SimpleNamespace(
            idx_mapping_np=np.array(order),
            expanded_idx_mapping=torch.tensor(expanded),
            input_ids=torch.tensor(tokens, dtype=torch.int32),
            pos=torch.tensor(position),
        )
        assert processor.apply(torch.stack(logits), context).argmax(1).tolist() == targets
        for slot in order:
            at = int(state.total_len.gpu[slot])
            state.all_token_ids.gpu[slot, at] = answers[slot][step]
            state.total_len.gpu[slot] += 1
    assert not processor.add_request(5, params(sid="off"))  # the slot's next request


def test_a_request_is_checked_when_it_arrives():
    vllm.SidLogitsProcessor.validate_params(params(sid_deny=["a", 2], other=object()))
    vllm.SidLogitsProcessor.validate_params(params())
    for wrong, message in (
        ({"sid": "no"}, "sid must be 'on' or 'off' "),
        ({"sid_denny": []}, "must be among sid, sid_allow, sid_deny, sid_prefix"),
        ({"sid_allow": {"a": 1}}, "sid_allow must be a list of item ids"),
        ({"sid_deny": [1.5]}, "sid_deny must be a list of item ids"),
        ({"sid_prefix": -1}, "sid_prefix must be a number from 0 on"),
    ):
        with pytest.raises(ValueError, match=message):
            vllm.SidLogitsProcessor.validate_params(params(**wrong))


def test_tokens_that_the_engine_keeps_back(served):
    """As an entry point, V1 with asynchronous scheduling shows -1 for the newest token."""
    processor = vllm.SidLogitsProcessor(config(served.folder), torch.device("cpu"), False)
    processor.update_state(Update(added=[(0, params(), served.prompts[0], [-1])]))
    with pytest.raises(RuntimeError, match="must hand over the tokens that it has sampled"):
        processor.apply(torch.zeros(1, 400))


def test_unknown_items_deny_nothing(served):
    processor = vllm.SidLogitsProcessor(config(served.folder), torch.device("cpu"), False)
    with pytest.warns(UserWarning, match="should hold items of the catalogue"):
        processor.update_state(
            Update(added=[(0, params(sid_deny=["i0", "gone"]), served.prompts[1], [])])
        )
    logits = processor.apply(next_logits(served.model, served.prompts[1])[None])
    codes = served.vocab.decode([[int(t)] for t in (logits[0] > -torch.inf).nonzero()])
    assert sorted(codes.flatten().tolist()) == [0, 1, 2, 3]  # "i4" has i0's first code


@pytest.mark.parametrize("convention", [True, False])
def test_a_plain_directory_with_an_index_file(tmp_path, served, convention):
    served.tokenizer.save_pretrained(tmp_path)
    index = tmp_path / ("sid_index.json" if convention else "other.json")
    SidIndex(served.trie, served.vocab, None).save(index, "index.json")
    extra = {} if convention else {"sid_index": str(index)}
    processor = vllm.SidLogitsProcessor(config(tmp_path, **extra), torch.device("cpu"))
    prompt = served.prompts[1]
    processor.update_state(Update(added=[(0, params(), prompt, [])]))
    token = int(processor.apply(next_logits(served.model, prompt)[None]).argmax())
    assert token == expected(served, prompt, steps=1)[0]


def test_a_directory_without_a_catalogue(tmp_path):
    with pytest.raises(ValueError, match="must hold a catalogue"):
        vllm.SidLogitsProcessor(config(tmp_path), torch.device("cpu"))


class FakeLLM:
    """`LLM.generate` for one token each, by the processor."""

    def __init__(self, served, vllm_config):
        self.model, self.tokenizer = served.model, served.tokenizer
        self.llm_engine = SimpleNamespace(vllm_config=vllm_config)
        self.processor = vllm.SidLogitsProcessor(vllm_config, torch.device("cpu"))

    def get_tokenizer(self):
        return self.tokenizer

    def generate(self, prompts, sampling_params, use_tqdm):
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        pairs = enumerate(zip(sampling_params, rows, strict=True))
        self.processor.update_state(Update(added=[(i, one, row, []) for i, (one, row) in pairs]))
        logits = torch.stack([next_logits(self.model, row) for row in rows])
        logprobs = self.processor.apply(logits).log_softmax(1)
        for one, row in zip(sampling_params, logprobs, strict=True):
            self.processor.validate_params(one)
            best = row.topk(min(one.logprobs, row.numel()))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            named = {token: SimpleNamespace(logprob=value) for token, value in pairs}
            yield SimpleNamespace(outputs=[SimpleNamespace(logprobs=[named])])


@pytest.fixture
def sampling_params(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))


@pytest.mark.parametrize("deny", [None, ["i0", "i3", "i5"]])
@pytest.mark.parametrize("num_beams", [1, 4, 20])
def test_beam_search(served, sampling_params, num_beams, deny):
    llm = FakeLLM(served, config(served.folder))
    out = vllm.beam_search(llm, served.prompts, num_beams, deny=deny)
    begin = served.vocab.begin
    rows = [p if p[-1] == begin else [*p, begin] for p in served.prompts]
    ids, mask = left_pad(rows, 0)
    filters = None if deny is None else served.trie.filter(deny=deny)
    truth = crs_fast.recommend(
        served.model, ids, mask, trie=served.trie, vocab=served.vocab, num_beams=num_beams,
        normalize="legal", filters=filters,
    )  # fmt: skip
    assert out.items == truth.items
    assert torch.equal(out.sids, truth.sids)
    torch.testing.assert_close(out.scores, truth.scores, atol=1e-4, rtol=1e-4)


def test_beam_search_of_ragged_sids_without_a_begin_token(served, sampling_params, monkeypatch):
    """By enumeration: a SID's score is the sum over its tokens and, where it could go on, its
    end."""
    sids = [[0], [1, 1], [1, 1, 2], [2, 0, 3], [2, 3]]
    trie = SidTrie.from_sids(sids)
    vocab = SidVocab(served.vocab.token_ids, eos=served.tokenizer.eos_token_id)
    monkeypatch.setattr(vllm, "_catalogue", lambda _: (trie, vocab))
    prompt = served.prompts[0]
    out = vllm.beam_search(FakeLLM(served, config("x")), [prompt, prompt], 8)
    scores = {}
    for item, sid in enumerate(sids):
        row, total = list(prompt), 0.0
        for depth in range(len(sid) + 1):
            following = {
                s[depth] if len(s) > depth else -1 for s in sids if s[:depth] == sid[:depth]
            }
            tokens = {c: int(vocab.token_ids[depth][c]) if c >= 0 else vocab.eos for c in following}
            code = sid[depth] if depth < len(sid) else -1
            logits = next_logits(served.model, row)
            total += float(logits[tokens[code]] - logits[list(tokens.values())].logsumexp(0))
            row.append(tokens[code])
            if depth == 2:
                break
        scores[item] = total
    ranking = sorted(scores, key=lambda item: -scores[item])
    assert out.items == [ranking, ranking]
    torch.testing.assert_close(
        out.scores[0, :5], torch.tensor([scores[i] for i in ranking]), atol=1e-4, rtol=1e-4
    )
    assert out.num_valid.tolist() == [5, 5]


@pytest.fixture
def typed(served):
    """Two types of items, opened by tokens of their own, in the served model's vocabulary."""
    begins = served.control.rec, served.vocab.begin
    tries = [SidTrie.from_sids([[n, m, m], [n, 3, m]], [f"{n}{m}", f"{n}3{m}"])
             for n, m in ((0, 1), (2, 0))]  # fmt: skip
    vocab = SidVocab(served.vocab.token_ids, end=served.vocab.end)
    return typed_catalogue(dict(zip(begins, tries, strict=True)), vocab)


@pytest.mark.parametrize("allow", [None, ["01"]])
def test_beam_search_of_a_typed_catalogue(served, typed, sampling_params, monkeypatch, allow):
    monkeypatch.setattr(vllm, "_catalogue", lambda _: typed)
    start = [token for token in served.prompts[0] if token not in typed.vocab.begins]
    prompts = [start, *([*start, begin] for begin in typed.vocab.begins)]
    out = vllm.beam_search(FakeLLM(served, config("x")), prompts, 4, allow=allow)
    ids, mask = left_pad(prompts, 0)
    filters = None if allow is None else typed.trie.filter(allow=allow)
    truth = crs_fast.recommend(
        served.model, ids, mask, trie=typed.trie, vocab=typed.vocab, num_beams=4,
        normalize="legal", filters=filters,
    )  # fmt: skip
    assert out.items == truth.items
    assert out.num_valid.tolist() == ([4, 2, 2] if allow is None else [1, 1, 0])
    torch.testing.assert_close(out.scores, truth.scores, atol=1e-4, rtol=1e-4)


def test_beam_search_refuses_log_probs_that_would_lose_items(served, sampling_params):
    llm = FakeLLM(served, config(served.folder))
    with pytest.raises(ValueError, match="at least one prompt and one beam"):
        vllm.beam_search(llm, [], 4)
    llm.llm_engine.vllm_config.model_config.max_logprobs = 20
    with pytest.raises(ValueError, match=r"max_logprobs=-1 or at least 50 \(got 20\)"):
        vllm.beam_search(llm, served.prompts)
    llm.llm_engine.vllm_config.model_config.logprobs_mode = "raw_logprobs"
    with pytest.raises(ValueError, match=r"logprobs_mode='processed_logprobs' \(got 'raw_logprobs"):
        vllm.beam_search(llm, served.prompts)
