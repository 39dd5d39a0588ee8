"""Text that UTF-8 can hold."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """The text with every half of a surrogate pair that has lost its other half, as JSON may hold
    it, replaced by U+FFFD; two halves that stand together become their character. Neither
    tokenizers nor UTF-8 files can hold such halves."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
