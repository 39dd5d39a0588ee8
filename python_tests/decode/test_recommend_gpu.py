"""The whole search on a device against the CPU's, which enumeration covers."""

import pytest
import torch

from crs_fast.decode import capability, recommend
from crs_fast.trie import SidTrie
from python_tests.helpers import random_sids, tiny_model, vocab_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2", "gptj"])
@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
def test_the_device_finds_what_the_cpu_finds(kind, normalize):
    levels, codes = 4, 9
    vocab = vocab_of(levels, codes)
    model = tiny_model(kind, 7 + levels * codes)
    trie = SidTrie.from_sids(random_sids(3, 300, levels, codes).unique(dim=0))
    ids = torch.randint(1, 7, (3, 70), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(70) >= torch.tensor([[0], [30], [69]])
    filters = trie.filter(deny=list(range(40)))
    how = dict(vocab=vocab, num_beams=13, normalize=normalize)
    wanted = recommend(model, ids, mask, trie=trie, filters=filters, **how)
    model, ids, mask = model.cuda(), ids.cuda(), mask.cuda()
    assert capability(model).attention == ("mask" if kind == "gptj" else "tree")
    got = recommend(model, ids, mask, trie=trie.to("cuda"), filters=filters, **how)
    torch.testing.assert_close(got.scores.cpu(), wanted.scores, atol=2e-3, rtol=1e-3)
    same = (got.sids.cpu() == wanted.sids).all(2).float().mean()
    assert same > 0.9  # near-ties may trade places
