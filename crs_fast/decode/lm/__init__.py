"""A language model that reads token trees: prompt, cache, views, head, and whether it can."""
