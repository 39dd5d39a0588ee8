"""Not run but type-checked: the public names have signatures of their own, none is `Any`."""

from typing import assert_type

import torch
from transformers import PreTrainedModel

import crs_fast


def shown(model: PreTrainedModel, ids: torch.Tensor) -> None:
    trie = crs_fast.SidTrie.from_sids([[0, 1], [1, 0]], item_ids=["a", "b"])
    assert_type(trie, crs_fast.SidTrie)
    assert_type(trie.num_items, int)
    assert_type(trie.filter(deny=["a"]), crs_fast.ItemFilter)
    vocab = crs_fast.SidVocab([[5, 6], [7, 8]])
    assert_type(vocab, crs_fast.SidVocab)
    assert_type(
        crs_fast.SidLogitsProcessor(trie, vocab, prompt_length=1), crs_fast.SidLogitsProcessor
    )
    out = crs_fast.recommend(model, ids, trie=trie, vocab=vocab)
    assert_type(out, crs_fast.RecommendOutput)
    assert_type(out.scores, torch.Tensor)
    assert_type(crs_fast.RQVAE.from_pretrained("folder"), crs_fast.RQVAE)
    codes, residual = crs_fast.ops.residual_lookup(torch.zeros(1, 2), torch.zeros(1, 2, 2))
    assert_type(codes, torch.Tensor)
    assert_type(residual, torch.Tensor)
    recommender = crs_fast.Recommender.from_pretrained("folder")
    assert_type(recommender, crs_fast.Recommender)
    index = crs_fast.load_index("index.json")
    assert_type(index, crs_fast.SidIndex)
    assert_type(index.trie, crs_fast.SidTrie)
    assert_type(crs_fast.find_items(ids, trie, vocab), list[list[crs_fast.Named]])
    slot = crs_fast.TrieSlot(10, num_levels=2, num_codes=2)
    assert_type(slot.load(trie), crs_fast.SidTrie)
    dataset = crs_fast.crs.load_dataset({"items": [], "train": []})
    assert_type(dataset, crs_fast.crs.CrsDataset)
    assert_type(recommender.with_catalogue(remove=["a"]), crs_fast.Recommender)
    assert_type(next(recommender.stream([{}])), crs_fast.crs.Ranking | str | crs_fast.crs.Response)
    assert_type(crs_fast.crs.evaluate(recommender, dataset), crs_fast.crs.Evaluation)
