"""The values of GGUF keys: every type, and a bound on what is kept of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from quantplan.model.byte_window import Window
from quantplan.units import MIB

# Limits of ours for one header: no file can make it keep more.
MAX_STRINGS = 4_194_304
MAX_KEPT_ARRAY = 4_096
MAX_KEPT_STRING_BYTES = MIB
MAX_KEPT_ELEMENTS = 262_144
MAX_KEPT_BYTES = 4 * MIB

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")
_STRING, _ARRAY, _BOOL = 8, 9, 7
# ggml/include/gguf.h: enum gguf_type
_SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("UINT8", "B"), 1: ("INT8", "b"), 2: ("UINT16", "H"), 3: ("INT16", "h"), 4: ("UINT32", "I"), 5: ("INT32", "i"),
    6: ("FLOAT32", "f"), 7: ("BOOL", "B"), 10: ("UINT64", "Q"), 11: ("INT64", "q"), 12: ("FLOAT64", "d"),
}  # fmt: skip
_SCALAR_STRUCTS = {value: struct.Struct(f"<{code}") for value, (_, code) in _SCALARS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInfo:
    """An array that was skipped: its element type (a name of GGUFValueType) and length. A single text too long to
    keep is told as a UINT8 array."""

    type_name: str
    n: int


class Values:
    """Reads the values of one header and bounds what is kept of them."""

    __slots__ = ("_bytes_left", "_elements_left", "_strings_left", "_window", "types")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._bytes_left, self._elements_left, self._strings_left = MAX_KEPT_BYTES, MAX_KEPT_ELEMENTS, MAX_STRINGS
        self.types: dict[str, int] = {}

    def read(self, key: str) -> object:
        window, at = self._window, self._window.offset
        (kind,) = window.unpack(_U32)
        self.types[key] = kind
        if kind == _STRING:
            return self._text(keep=True)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            window.fail(f"has the unknown value type {kind}", rule="gguf-value-type", offset=at)
        (value,) = window.unpack(_SCALAR_STRUCTS[kind])
        if kind != _BOOL:
            return value
        if value > 1:
            window.fail(f"is a BOOL with the value {value}", rule="gguf-bool", offset=at)
        return bool(value)

    def _text(self, *, keep: bool) -> str | ArrayInfo:
        window, at = self._window, self._window.offset
        (length,) = window.unpack(_U64)
        window.check_remaining(length, f"a string of {length:,} bytes", offset=at)
        if not keep or length > min(MAX_KEPT_STRING_BYTES, self._bytes_left):
            window.skip(length)
            return ArrayInfo(type_name="UINT8", n=length)
        self._bytes_left -= length
        try:
            text = str(window.take(length), "utf-8")
        except UnicodeDecodeError as error:
            window.fail("its text is not UTF-8", rule="gguf-text", offset=at + 8 + error.start)
        if not text.isprintable():
            _refuse_control_characters(window, text, at)
        return text

    def _array(self, key: str) -> tuple[object, ...] | ArrayInfo:
        window, at = self._window, self._window.offset
        kind, n = window.unpack(_ARRAY_HEAD)
        if kind == _ARRAY:
            window.fail("is an array of arrays, which the engine does not read", rule="gguf-value-type", offset=at)
        if kind != _STRING and kind not in _SCALARS:
            window.fail(f"is an array of the unknown value type {kind}", rule="gguf-value-type", offset=at)
        name, code = _SCALARS.get(kind, ("STRING", ""))
        size = 8 if kind == _STRING else _SCALAR_STRUCTS[kind].size
        window.check_remaining(n * size, f"an array of {n:,} {name}", offset=at)
        keep = not key.startswith("tokenizer.") and n <= min(MAX_KEPT_ARRAY, self._elements_left)
        if kind == _STRING:
            return self._strings(n, keep=keep, offset=at)
        if not keep:
            window.skip(n * size)
            return ArrayInfo(type_name=name, n=n)
        self._elements_left -= n
        values = struct.unpack(f"<{n}{code}", window.take(n * size))
        if kind != _BOOL:
            return values
        if any(value > 1 for value in values):
            window.fail(f"is an array of BOOL with the value {max(values)}", rule="gguf-bool", offset=at)
        return tuple(map(bool, values))

    def _strings(self, n: int, *, keep: bool, offset: int) -> tuple[object, ...] | ArrayInfo:
        self._strings_left -= n
        if self._strings_left < 0:
            self._window.fail(
                f"an array of {n:,} STRING: more than {MAX_STRINGS:,} in one header", rule="gguf-too-large",
                offset=offset,
            )  # fmt: skip
        if not keep:
            self._window.skip_strings(n)
            return ArrayInfo(type_name="STRING", n=n)
        self._elements_left -= n
        return tuple(self._text(keep=True) for _ in range(n))


def _refuse_control_characters(window: Window, text: str, at: int) -> None:
    """Refuses what a terminal would act on (C0 but white space, DEL, C1). Templates need the rest of Unicode."""
    for i, char in enumerate(text):
        if (char < " " and char not in "\t\n\v\f\r") or "\x7f" <= char <= "\x9f":
            inside = len(text[:i].encode())
            window.fail(
                f"its text has the control character U+{ord(char):04X}", rule="terminal", offset=at + 8 + inside
            )
