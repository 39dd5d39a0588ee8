"""The CUDA kernels against the plain-PyTorch oracle. Needs only torch and pytest."""

import pytest
import torch

from crs_fast.ops import reference, trie_mask_, trie_walk
from crs_fast.trie import ItemFilter, SidTrie

from ..helpers import DTYPES, random_sids, vocab_of


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [90, 32_011, 300_001])
def test_cuda_kernels_equal_the_reference(dtype, vocab_size):
    sids = random_sids(0, 500, 3, 6, ragged=True)
    trie, tokens = SidTrie.from_sids(sids), vocab_of(3, 6, end=3, begin=2).tensors()
    filters = ItemFilter.stack([trie.filter(allow=range(0, 500, 7)), None]).tensors
    codes = torch.randint(-1, 6, (128, 3))
    nodes = reference.trie_walk(trie.tensors, codes)
    on_gpu = trie.to("cuda").tensors
    assert torch.equal(trie_walk(on_gpu, codes.cuda()).cpu(), nodes)
    gpu_tokens = tokens._replace(column=tokens.column.cuda(), denied=tokens.denied.cuda())
    for chosen in (None, filters):
        logits = torch.randn(128, vocab_size).to(dtype)
        expected = reference.trie_mask(logits, nodes, trie.tensors, tokens, chosen)
        gpu_filters = None if chosen is None else type(chosen)(*(t.cuda() for t in chosen))
        got = trie_mask_(logits.cuda(), nodes.cuda(), on_gpu, gpu_tokens, gpu_filters)
        assert torch.equal(got.cpu(), expected)
