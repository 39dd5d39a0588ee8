"""Semantic-ID tries: the constraint index, its vocabularies, its filters."""

from .formats import SidIndex, load_index
from .grammar import Grammar
from .item_filter import ItemFilter
from .named_items import Named, find_items
from .sid_trie import SidTrie
from .sid_vocab import SidVocab
from .slot import TrieSlot
from .title_vocab import TitleVocab
from .token_ids import TokenIds
from .typed import TypedCatalogue, TypedVocab, typed_catalogue
from .vocabularies import vocabulary_from_dict
from .vocabulary import Vocabulary

__all__ = [
    "Grammar",
    "ItemFilter",
    "Named",
    "SidIndex",
    "SidTrie",
    "SidVocab",
    "TitleVocab",
    "TokenIds",
    "TrieSlot",
    "TypedCatalogue",
    "TypedVocab",
    "Vocabulary",
    "find_items",
    "load_index",
    "typed_catalogue",
    "vocabulary_from_dict",
]
