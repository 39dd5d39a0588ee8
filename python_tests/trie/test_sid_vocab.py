"""SidVocab: code ↔ token maps, and adding tokens to tokenizers and models."""

import pytest
import torch

from crs_fast.trie import SidTrie, SidVocab
from python_tests.helpers import tiny_model


def test_encode_and_decode_are_inverse():
    vocab = SidVocab([[30, 10, 20], [10, 40]])
    sids = torch.tensor([[0, 1], [2, 0], [1, -1]])
    tokens = vocab.encode(sids)
    assert tokens.tolist() == [[30, 40], [20, 10], [10, -1]]
    assert torch.equal(vocab.decode(tokens), sids)
    assert vocab.decode([[40, 30]]).tolist() == [[-1, -1]]
    assert vocab.code_tokens().tolist() == [10, 20, 30, 40]
    assert SidVocab(**vocab.to_dict()).to_dict() == vocab.to_dict()


@pytest.mark.parametrize(
    ("sids", "message"),
    [([[3, 0]], r"level 0 must lie in \[-1, 3\)"), ([[0, 0, 0]], "at most 2 levels")],
)
def test_encode_refuses(sids, message):
    with pytest.raises(ValueError, match=message):
        SidVocab([[30, 10, 20], [10, 40]]).encode(sids)


@pytest.mark.parametrize("ids", [[], [[]], [[1, 1]], [[-1]]])
def test_bad_token_ids_are_refused(ids):
    with pytest.raises(ValueError, match="SidVocab: token_ids"):
        SidVocab(ids)


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "</s>", "a", "film", "<", ">", "BOI"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("rows", [7, 200])
def test_extend_finds_rows_by_token_and_never_shrinks(rows):
    """A padded vocabulary (200 rows for 7 tokens, as Qwen's) has room: no row is moved."""
    tokenizer, model = make_tokenizer(), tiny_model("llama", rows)
    before = model.get_input_embeddings().weight.detach().clone()
    vocab = SidVocab.extend(tokenizer, model, levels=2, codes=3)
    after = model.get_input_embeddings().weight
    assert after.shape[0] == max(rows, 7 + 2 + 6)
    assert torch.equal(after[:7], before[:7])
    assert tokenizer.convert_ids_to_tokens(vocab.token_ids[1].tolist()) == [
        "<b_0>",
        "<b_1>",
        "<b_2>",
    ]
    assert tokenizer.convert_ids_to_tokens([vocab.begin, vocab.end]) == ["<BOI>", "<EOI>"]
    assert vocab.eos == tokenizer.eos_token_id
    again = SidVocab.extend(tokenizer, model, levels=2, codes=3)
    assert again.to_dict() == vocab.to_dict()
    assert model.get_input_embeddings().weight.shape == after.shape


def test_extend_refuses():
    for kwargs in (dict(levels=0), dict(levels=27), dict(codes=0)):
        with pytest.raises(ValueError, match=r"SidVocab\.extend"):
            SidVocab.extend(make_tokenizer(), None, **kwargs)


def test_items_survive_the_default_decoding():
    """Pipelines, trainers and servers decode with skip_special_tokens=True."""
    tokenizer = make_tokenizer()
    SidVocab.extend(tokenizer, None, levels=2, codes=2)
    ids = tokenizer("film <BOI> <a_0> <b_1> <EOI>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "film <BOI> <a_0> <b_1> <EOI>"


def test_special_tokens_keep_typed_text_apart():
    tokenizer = make_tokenizer()
    SidVocab.extend(tokenizer, None, levels=2, codes=2, special=True)
    typed = tokenizer("film <a_0>", split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<a_0>") not in typed
    assert tokenizer.convert_tokens_to_ids("<a_0>") in tokenizer("film <a_0>")["input_ids"]
    # Extending it once more, by whatever kind, makes no half special token.
    SidVocab.extend(tokenizer, None, levels=2, codes=2)
    assert tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids("<a_0>")].special


def test_from_tokens_finds_what_is_there():
    tokenizer = make_tokenizer()
    vocab = SidVocab.extend(tokenizer, None, levels=2, codes=2)
    names = [["<a_1>", None, "<a_0>"], ["<b_0>", "<b_1>"]]
    named = SidVocab.from_tokens(tokenizer, names, begin="<BOI>", end="<EOI>")
    a, b = (ids.tolist() for ids in vocab.token_ids)
    assert [ids.tolist() for ids in named.token_ids] == [[a[1], -1, a[0]], b]
    assert (named.begin, named.end, named.eos) == (vocab.begin, vocab.end, vocab.eos)


@pytest.mark.parametrize("missing", ["<a_7>", "<begin>", "<end>"])
def test_from_tokens_refuses_by_name(missing):
    """Looked up, a missing token is the unknown token: every such code would be one token."""
    names = dict(levels=[["a", "film"]], begin=None, end=None)
    if missing == "<a_7>":
        names["levels"] = [["a", missing]]
    else:
        names[missing[1:-1]] = missing
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=f"got none for {missing}: 1 of"):
        SidVocab.from_tokens(tokenizer, **names)
    vocab = SidVocab.from_tokens(tokenizer, **names, add=True)
    assert tokenizer.convert_tokens_to_ids(missing) == len(tokenizer) - 1
    assert vocab.decode([[2]]).tolist() == [[0]]


def test_codes_without_a_token():
    vocab = SidVocab([[30, -1, 20], [10, 40]])
    assert vocab.code_tokens().tolist() == [10, 20, 30, 40]
    assert vocab.decode([[20, 40], [-1, 10]]).tolist() == [[2, 1], [-1, 0]]
    assert vocab.encode([[0, 1], [2, -1]]).tolist() == [[30, 40], [20, -1]]
    assert SidVocab(**vocab.to_dict()).to_dict() == vocab.to_dict()
    with pytest.raises(ValueError, match=r"encode: every code must have a token \(got code 1"):
        vocab.encode([[1, 0]])
    SidTrie.from_sids([[0, 1], [2, 0]]).vocabulary(vocab)
    with pytest.raises(ValueError, match="got none for code 1 of level 0: 1 codes without"):
        SidTrie.from_sids([[0, 1], [1, 0]]).vocabulary(vocab)
