"""Names and texts of files are somebody else's input: a terminal is never given what it would act on."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with control characters, and those that cannot be seen or turn the text around, written out."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() or unicodedata.category(c) == "Zs" else _named(c) for c in text)


def _named(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
