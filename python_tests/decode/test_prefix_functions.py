"""The constraint of LC-Rec, MiniOneRec and TIGER-like code, a dictionary of prefixes behind Hugging
Face beam search, against ours: the same beams, in their order."""

import pytest
import torch
from transformers import LogitsProcessor

import crs_fast
from python_tests.helpers import clear_places, tiny_model
from python_tests.trie.formats import files


def prefixes(trie, vocab):
    """For each prefix of token ids what may follow, as MiniOneRec's hash_dict."""
    following: dict[tuple[int, ...], set[int]] = {}
    for row in vocab.encode(trie.sids()).tolist():
        for length, token in enumerate(row):
            following.setdefault(tuple(row[:length]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in following.items()}


class PrefixProcessor(LogitsProcessor):
    """Log-softmax once more, and a penalty of 10^6 for what no item has: as MiniOneRec does."""

    def __init__(self, following, prompt_length):
        self.following, self.prompt_length = following, prompt_length

    def __call__(self, input_ids, scores):
        mask = torch.full_like(scores, -1e6)
        for row, ids in enumerate(input_ids.tolist()):
            mask[row, self.following[tuple(ids[self.prompt_length :])]] = 0
        return scores.log_softmax(-1) + mask


def check(index, tokenizer, prompts, beams):
    model = tiny_model("llama", len(tokenizer))
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    length = inputs["input_ids"].shape[1]
    following = prefixes(index.trie, index.vocab)
    call = dict(
        **inputs, max_new_tokens=index.trie.num_levels, num_beams=beams, num_return_sequences=beams,
        do_sample=False, length_penalty=0.0, eos_token_id=None, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    lc_rec = model.generate(
        **call, prefix_allowed_tokens_fn=lambda _, ids: following[tuple(ids[length:].tolist())]
    )
    mini_one_rec = model.generate(**call, logits_processor=[PrefixProcessor(following, length)])
    ours = model.generate(
        **call, custom_generate=crs_fast.beam_search, trie=index.trie, vocab=index.vocab
    )
    out = crs_fast.recommend(model, **inputs, trie=index.trie, vocab=index.vocab, num_beams=beams)
    shape = len(prompts), beams, -1
    tokens = index.vocab.encode(out.sids)
    sure = clear_places(out.scores)
    assert sure.float().mean() > 0.5
    for theirs in (lc_rec, mini_one_rec, ours):
        assert torch.equal(theirs.sequences[:, length:].view(shape)[sure], tokens[sure])
        torch.testing.assert_close(
            theirs.sequences_scores.view(shape[:2]), out.scores, atol=1e-3, rtol=1e-4
        )
    return out


def test_the_beams_of_a_prefix_dictionary(tmp_path):
    tokenizer = files.tokenizer_of(token for level in files.names("") for token in level)
    tokenizer.pad_token = tokenizer.eos_token
    index = crs_fast.load_index(files.index_json(tmp_path / "index.json"), tokenizer)
    prompts = ["film <a_0> <b_3> <c_1>", "a film a film", "<a_2> <b_0> <c_0> <a_0> <b_3> <c_1>"]
    check(index, tokenizer, prompts, beams=3)  # as many as the first level has codes


@pytest.mark.data
def test_on_minionerec_industrial(data_root):
    """Real histories; items that share a SID all come out, and all count."""
    path = data_root / "minionerec_industrial" / "Industrial_and_Scientific.index.json.gz"
    names = crs_fast.load_index(path).tokens
    tokenizer = files.tokenizer_of(token for level in names for token in level)
    tokenizer.pad_token = tokenizer.eos_token
    index = crs_fast.load_index(path, tokenizer)
    sids = index.trie.sids().tolist()
    texts = ["".join(names[l][c] for l, c in enumerate(sid)) for sid in sids]
    prompts = ["".join(texts[user : user + 1 + user % 7]) for user in range(12)]
    out = check(index, tokenizer, prompts, beams=20)
    for beams, items in zip(out.sids, out.items, strict=True):
        assert items == [item for of_sid in index.trie.items(beams) for item in of_sid]
