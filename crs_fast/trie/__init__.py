"""Semantic-ID tries: the constraint index, its vocabulary, its filters."""

from .item_filter import ItemFilter
from .sid_trie import SidTrie
from .sid_vocab import SidVocab
from .slot import TrieSlot
from .title_vocab import TitleVocab

__all__ = ["ItemFilter", "SidTrie", "SidVocab", "TitleVocab", "TrieSlot"]
