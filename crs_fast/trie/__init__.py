"""Semantic-ID tries: the constraint index, its vocabulary, its filters."""
