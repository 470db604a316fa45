"""The tables of a build file, read strictly: a key that nobody knows and a value of another kind are errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantplan.errors import BadFleet, BadPolicy

OPTION_KEYS = (
    "texts", "chunks", "calibration", "calibration_chunks", "imatrix", "outtype", "mmproj", "tensor_types",
    "tensor_type_file", "output_tensor_type", "token_embedding_type", "leave_output_tensor", "pure", "split_max_size",
    "trust_remote_code", "allow_pickle",
)  # fmt: skip
BUILD_KEYS = ("name", "model", "quant", "quants", "gates", "needs", "push", *OPTION_KEYS)
_KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}


def near_names(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Names that were perhaps meant."""
    return tuple(difflib.get_close_matches(name, list(known), n=3))


class Fields:
    """One table with its place in the file. A missing key reads as None, an empty tuple or False."""

    def __init__(
        self, path: Path, where: str, told: Mapping[str, Any], known: Sequence[str], *, without: Sequence[str] = ()
    ) -> None:
        self.path, self.where, self.told = path, where, dict(told)
        allowed = [key for key in known if key not in without]
        for key in self.told:
            if key not in allowed:
                near = near_names(str(key), allowed)
                raise BadFleet(path=path, where=self._at(str(key)), why="is no key that is known here", near=near)

    def _at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def bad(self, key: str, why: str, *, near: Sequence[str] = ()) -> BadFleet:
        return BadFleet(path=self.path, where=self._at(key), why=why, near=near)

    def _value(self, key: str, kind: type) -> Any:
        value = self.told.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.bad(key, f"is {value!r}, expected {_KINDS[kind]}")
        return value

    def text(self, key: str) -> str | None:
        value: str | None = self._value(key, str)
        if value is not None and (not value.strip() or not value.isprintable()):
            raise self.bad(key, f"is {value!r}, expected a word")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        found = self._value(key, list) or []
        if any(not isinstance(one, str) or not one.strip() or not one.isprintable() for one in found):
            raise self.bad(key, f"is {found!r}, expected a list of words")
        if len(set(found)) != len(found):
            raise self.bad(key, "names something twice")
        return tuple(found)

    def number(self, key: str) -> int | None:
        value: int | None = self._value(key, int)
        if value is not None and not 1 <= value <= 10_000:
            raise self.bad(key, f"is {value}, expected 1 to 10,000")
        return value

    def flag(self, key: str) -> bool:
        return bool(self._value(key, bool))

    def maybe(self, key: str) -> bool | None:
        """True, false, or nothing said."""
        value: bool | None = self._value(key, bool)
        return value

    def choice(self, key: str, known: Sequence[str]) -> str | None:
        value = self.text(key)
        if value is not None and value not in known:
            raise self.bad(key, f"is {value!r}, possible are {', '.join(known)}", near=near_names(value, known))
        return value

    def size(self, key: str) -> int | None:
        """Bytes: a whole number, or a text such as 200GB."""
        from quantplan.units import parse_size

        value = self.told.get(key)
        if value is None:
            return None
        try:
            found = parse_size(str(value)) if not isinstance(value, (bool, float)) else 0
        except ValueError:
            found = 0
        if found <= 0:
            raise self.bad(key, f"is {value!r}, expected a size such as 200GB")
        return found

    def table(self, key: str) -> Mapping[str, Any]:
        return self._value(key, dict) or {}

    def tables(self, key: str) -> tuple[Mapping[str, Any], ...]:
        found = self._value(key, list) or []
        if any(not isinstance(one, dict) for one in found):
            raise self.bad(key, "is not a list of tables")
        return tuple(found)

    def file(self, key: str) -> Path | None:
        """A file that is there; a relative name is from the build file's folder."""
        value = self.text(key)
        if value is None:
            return None
        path = self.path.parent / Path(value).expanduser()
        if not path.is_file():
            raise self.bad(key, f"{value}: no such file")
        return path

    def policies(self, key: str) -> tuple[str, ...]:
        """Gate policies by name or file, each one readable."""
        from quantplan.pipeline.policy import load_policy

        found = []
        for name in self.texts(key):
            path = self.path.parent / name
            given = str(path) if path.is_file() else name
            try:
                load_policy(given)
            except BadPolicy as error:
                raise self.bad(key, str(error)) from None
            found.append(given)
        return tuple(found)
