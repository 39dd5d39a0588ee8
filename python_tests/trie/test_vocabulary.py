"""What every vocabulary promises, whatever its class."""

import json
import threading

import pytest
import torch

from crs_fast.trie import SidTrie, SidVocab, TitleVocab, TokenIds, vocabulary_from_dict

VOCABS = {
    "sids": SidVocab([[9, 2, 7], [4, 9], [5]], begin=1, end=3, eos=0),
    "titles": TitleVocab(3, 12, 1, 3, 0),
    "token ids": TokenIds(3, 12),
}
WITH_LEVELS = pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2), (2, 3, 1), (0, 3), (5, 0)])


@WITH_LEVELS
@pytest.mark.parametrize("name", VOCABS)
def test_codes_and_tokens_by_looking_each_one_up(name, shape):
    vocab = VOCABS[name]
    tables = [ids.tolist() for ids in vocab.token_ids]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(-1, 14, shape, generator=generator)
    codes = vocab.decode(tokens)
    assert codes.shape == shape
    level_of = torch.arange(shape[-1]).expand(shape).flatten().tolist()
    expected = [
        tables[level].index(token) if token in tables[level] else -1
        for level, token in zip(level_of, tokens.flatten().tolist(), strict=True)
    ]
    assert codes.flatten().tolist() == expected
    known = tokens.masked_fill(codes < 0, -1)
    assert torch.equal(vocab.encode(codes), known)


@pytest.mark.parametrize("name", VOCABS)
def test_the_trie_ops_get_the_same_table(name):
    vocab = VOCABS[name]
    tensors = vocab.tensors()
    assert torch.equal(tensors.column, vocab.table())
    for level, ids in enumerate(vocab.token_ids):
        assert tensors.column[level, : ids.numel()].tolist() == ids.tolist()
        assert tensors.column[level, ids.numel() :].eq(-1).all()
    assert tensors.num_columns == (10 if name == "sids" else 12)
    expected = {"sids": {2, 3, 4, 5, 7, 9}, "titles": {3}, "token ids": set()}
    assert set(tensors.denied.tolist()) == expected[name]


@pytest.mark.parametrize("name", VOCABS)
def test_described_and_read_again(name):
    vocab = VOCABS[name]
    read = vocabulary_from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert type(read) is type(vocab)
    assert read.to_dict() == vocab.to_dict()
    assert read.code_tokens().tolist() == vocab.code_tokens().tolist()
    with pytest.raises(ValueError, match="kind must be one of"):
        vocabulary_from_dict({**vocab.to_dict(), "kind": "words"})


def test_what_follows_a_whole_sid():
    ids = [[7], [8]]
    assert SidVocab(ids, end=3, eos=0).terminator(5) == 3
    assert SidVocab(ids, eos=0).terminator(5) == 5
    assert SidVocab(ids, eos=0).terminator() == 0
    assert SidVocab(ids).terminator() == -1
    assert [SidVocab(ids, end=3).text_follows, SidVocab(ids, eos=3).text_follows] == [True, False]


def test_the_unused_token_is_no_code_of_the_catalogue():
    trie = SidTrie.from_sids([[0], [0, 1], [1, 1, 3]])
    for vocab in (TitleVocab(3, 12, 1, 3, 0), trie.vocabulary(None)):
        assert vocab.unused_token(trie.level_codes) == 2
    # Tokens of codes that no item has stand for codes all the same.
    assert SidVocab([[0, 1], [2]]).unused_token(SidTrie.from_sids([[0]]).level_codes) == 3


def test_a_trie_without_vocabulary_makes_one_of_its_codes():
    trie = SidTrie.from_sids([[3, 0], [1, 7]])
    assert trie.vocabulary(None) is trie.vocabulary(None)
    # A recorded search is found again by an equal vocabulary, that of the next catalogue say.
    assert trie.vocabulary(None) == SidTrie.from_sids([[7, 7]]).vocabulary(None) == TokenIds(2, 8)
    assert len({TokenIds(2, 8), TokenIds(2, 8), TokenIds(2, 9), TitleVocab(2, 8)}) == 3
    assert SidTrie.from_sids(torch.empty(0, 2, dtype=torch.int64)).vocabulary(None).sizes == [1, 1]
    with pytest.raises(
        ValueError, match=r"any_op: vocab must have a token for each code .*\[4, 8\]"
    ):
        trie.vocabulary(TokenIds(2, 7), "any_op")
    with pytest.raises(ValueError, match="TokenIds: num_levels and size must be at least 1"):
        TokenIds(0, 5)


def test_threads_share_one_set_of_tensors():
    vocab, made, start = TokenIds(4, 1000, end=3), [], threading.Barrier(8)

    def ask():
        start.wait()
        made.append(vocab.tensors())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(tensors) for tensors in made}) == 1


@pytest.mark.parametrize("name", ["titles", "token ids"])
def test_bad_codes_and_shapes_are_refused(name):
    kind = type(VOCABS[name]).__name__
    with pytest.raises(
        ValueError, match=rf"{kind}\.encode: codes of level 1 must lie in \[-1, 12\)"
    ):
        VOCABS[name].encode([[1, 12]])
    with pytest.raises(ValueError, match=rf"{kind}\.decode: token_ids must have at most 3 levels"):
        VOCABS[name].decode([[1, 1, 1, 1]])
