"""Semantic-ID tries: the constraint index, its vocabularies, its filters."""

from .grammar import Grammar
from .item_filter import ItemFilter
from .sid_trie import SidTrie
from .sid_vocab import SidVocab
from .slot import TrieSlot
from .title_vocab import TitleVocab
from .token_ids import TokenIds
from .vocabularies import vocabulary_from_dict
from .vocabulary import Vocabulary

__all__ = [
    "Grammar",
    "ItemFilter",
    "SidTrie",
    "SidVocab",
    "TitleVocab",
    "TokenIds",
    "TrieSlot",
    "Vocabulary",
    "vocabulary_from_dict",
]
