"""Recorded searches on a device give what eager ones give."""

import threading
import warnings

import pytest
import torch

from crs_fast.decode import recommend
from crs_fast.trie import SidTrie, TrieSlot
from python_tests.helpers import left_padded, random_sids, tiny_model, vocab_of

pytestmark = pytest.mark.gpu

LEVELS, CODES = 4, 9


def system(kind="qwen3"):
    model = tiny_model(kind, 7 + LEVELS * CODES).cuda()
    trie = SidTrie.from_sids(random_sids(3, 300, LEVELS, CODES).unique(dim=0))
    return model, trie.to("cuda"), vocab_of(LEVELS, CODES)


def prompts(*lengths, seed=0):
    return tuple(t.cuda() for t in left_padded(*lengths, seed=seed))


def check(model, trie, vocab, prompt, **how):
    """Recorded and eager scores agree; so do all beams but near-ties."""
    how = dict(trie=trie, vocab=vocab, num_beams=13, **how)
    wanted = recommend(model, *prompt, **how | dict(compile_layers=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*given up.*")  # it was recorded
        got = recommend(model, *prompt, cuda_graph=True, **how)
    torch.testing.assert_close(got.scores, wanted.scores, atol=2e-3, rtol=1e-3)
    assert (got.sids == wanted.sids).all(2).float().mean() > 0.9
    return got


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
def test_prompts_of_like_length(kind, normalize):
    arguments = system(kind)
    for lengths in ((70, 33), (65, 72), (72, 72), (72, 1)):
        check(*arguments, prompts(*lengths, seed=lengths[1]), normalize=normalize)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_compiled_layers(kind):
    arguments = system(kind)
    for lengths in ((70, 33), (65, 72)):
        check(*arguments, prompts(*lengths, seed=lengths[1]), compile_layers=True)


def test_filters_and_catalogues_that_change():
    model, trie, vocab = system()
    for deny in ([0, 1], list(range(200))):
        check(model, trie, vocab, prompts(40, 20), filters=trie.filter(deny=deny))
    slot = TrieSlot(400, num_levels=LEVELS, num_codes=CODES, device="cuda")
    for seed in range(3):
        sids = random_sids(seed, 350, LEVELS, CODES).unique(dim=0)
        slot.load(SidTrie.from_sids(sids).to("cuda"))
        check(model, slot.trie, vocab, prompts(40, 20))


def test_weights_that_change():
    model, trie, vocab = system()
    prompt = prompts(40, 20)
    first = check(model, trie, vocab, prompt)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    second = check(model, trie, vocab, prompt)
    assert not torch.equal(first.scores, second.scores)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    check(model, trie, vocab, prompt)


def test_threads_on_streams_of_their_own():
    model, trie, vocab = system()
    cases = [prompts(40, 20, seed=seed) for seed in range(4)]
    how = dict(trie=trie, vocab=vocab, num_beams=13)
    wanted = [recommend(model, *case, **how).scores for case in cases]
    torch.cuda.synchronize()
    worst = [0.0] * len(cases)

    def serve(which):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                got = recommend(model, *cases[which], cuda_graph=True, **how)
                error = (got.scores - wanted[which]).abs().max()
                worst[which] = max(worst[which], float(error))

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) < 5e-3


def test_memory_is_bounded():
    """Recordings share their memory, and only the newest are kept."""
    model, trie, vocab = system()
    taken = []
    for beams in range(1, 25):
        recommend(model, *prompts(200), trie=trie, vocab=vocab, num_beams=beams, cuda_graph=True)
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_reserved())
    assert taken[-1] - taken[11] <= 64 << 20
