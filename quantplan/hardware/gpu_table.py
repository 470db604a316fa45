"""Datasheet figures of cards by name: for machines that are not here, and for what a driver does not tell."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantplan.errors import AmbiguousGpu, UnknownGpu
from quantplan.places import data_file

_TRADE_WORDS = frozenset({"nvidia", "amd", "intel", "ati", "geforce", "radeon", "tesla", "instinct", "apple"})
_FILLER_WORDS = frozenset({"graphics", "gpu", "generation", "with", "design", "r", "tm"})
# laptops, system builders' cards, and desktop cards cut from another chip than the first of their name
_VARIANT = re.compile(r"mobile|maxq|oem|(ad|ga|gp|tu|gb)\d{3}$")
_LARGEST_SIZE_ERROR = 0.12  # a driver keeps up to an eighth of a card with ECC inline: L4 23,034 of 24,576 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """A card as sold: memory in bytes (nominal), bandwidth in bytes a second. `unified` cards use the host's RAM."""

    name: str
    vendor: str
    memory_bytes: int
    bandwidth_bytes_per_s: int
    memory_type: str | None = None
    bus_width_bits: int | None = None
    compute_capability: tuple[int, int] | None = None
    pcie: tuple[int, int] | None = None
    power_w: int | None = None
    fp32_flops_per_s: int | None = None
    fp16_flops_per_s: int | None = None  # of the tensor cores, where there are any
    n_multiprocessors: int | None = None
    unified: bool = False
    driver_memory_bytes: int | None = None  # what the driver shows, where that is known to differ
    source: str | None = None
    checked: bool | None = None  # whether a person saw the figures at `source`; None: the package's own


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(data_file("gpus.json").read_text(encoding="utf-8"))
    return table


@functools.cache
def all_specs() -> dict[str, GpuSpec]:
    """Every card by name."""
    return {row["name"]: _spec(row) for row in _table()["cards"]}


@functools.cache
def short_names() -> Mapping[str, str]:
    """Short name -> card, for the names that are not a card's own."""
    names: dict[str, str] = _table()["short_names"]
    return names


def _spec(row: dict[str, Any]) -> GpuSpec:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return GpuSpec(**values)


def short_name(text: str) -> str:
    """A card's name without blanks, trade words and punctuation: `GeForce RTX 4070 Laptop GPU` -> `rtx4070mobile`."""
    return "".join(_words(text))


def _words(text: str) -> list[str]:
    lower = re.sub(r"\((r|tm)\)", " ", text.lower()).replace("laptop gpu", "mobile").replace("laptop", "mobile")
    lower = re.sub(r"(\d+)\s*(?:gb|gib)\b", r"\1gb", lower)
    return [word for word in re.findall(r"[a-z0-9]+", lower) if word not in _TRADE_WORDS | _FILLER_WORDS]


@functools.cache
def _by_short_name() -> dict[str, GpuSpec]:
    return {short_name(name): spec for name, spec in all_specs().items()}


def find_gpu(text: str) -> GpuSpec:
    """The card that a person means: a card's own short name first, then the table of short names, then a bare number
    (`3090`), then the only card whose name goes on from there. Raises UnknownGpu or AmbiguousGpu."""
    wanted = short_name(text)
    for name in (wanted, *(f"{prefix}{wanted}" for prefix in ("rtx", "gtx", "rx") if wanted[:1].isdecimal())):
        if name in _by_short_name():
            return _by_short_name()[name]
        if name in short_names():
            return all_specs()[short_names()[name]]
    candidates = _candidates(wanted, set(_words(text)))
    if not candidates:
        raise UnknownGpu(name=text, near=_near(wanted))
    if len({(c.memory_bytes, c.bandwidth_bytes_per_s) for c in candidates}) == 1:
        return min(candidates, key=lambda c: (len(c.name), c.name))
    raise AmbiguousGpu(name=text, candidates=[short_name(c.name) for c in candidates])


def _candidates(wanted: str, words: set[str]) -> list[GpuSpec]:
    """Cards whose name starts with the whole words of `wanted`, else that have all of `words`; variants that are
    built into something else only where there is no other."""
    starts = [spec for spec in all_specs().values() if wanted and _rest(spec, wanted)]
    if not starts and wanted[:1].isdecimal():
        return next((c for p in ("rtx", "gtx", "rx") if (c := _candidates(p + wanted, {p + wanted}))), [])
    if not starts and len(words) > 1:
        starts = [spec for spec in all_specs().values() if words <= set(_words(spec.name))]
    return [spec for spec in starts if not _VARIANT.search(short_name(spec.name))] or starts


def _rest(spec: GpuSpec, wanted: str) -> list[str]:
    """The words of a card's name after those that make up `wanted`; empty where it does not start with them."""
    words = _words(spec.name)
    for count in range(1, len(words)):
        if "".join(words[:count]) == wanted:
            return words[count:]
    return []


def _near(wanted: str) -> list[str]:
    import difflib

    names = [*_by_short_name(), *short_names()]
    near = difflib.get_close_matches(wanted, names, n=4, cutoff=0.6)
    if wanted[:1].isdecimal():
        near = difflib.get_close_matches(f"rtx{wanted}", names, n=4, cutoff=0.6) or near
    return near


def spec_of_product(product: str, total_bytes: int | None) -> GpuSpec | None:
    """The card a driver names, or None. Memory decides between variants of one name, and must agree."""
    named = _table()["driver_names"].get(product)
    if named:
        return all_specs()[named]
    wanted = short_name(product)
    found = [spec for name, spec in _by_short_name().items() if name == wanted and _agrees(spec, total_bytes)]
    if not found:
        sized = [spec for spec in all_specs().values() if _only_size_after(spec, wanted)]
        found = [spec for spec in sized if _agrees(spec, total_bytes)]
    return found[0] if len({spec.bandwidth_bytes_per_s for spec in found}) == 1 else None


def _agrees(spec: GpuSpec, total_bytes: int | None) -> bool:
    if total_bytes is None or spec.unified:
        return True
    return abs(spec.memory_bytes - total_bytes) <= spec.memory_bytes * _LARGEST_SIZE_ERROR


def _only_size_after(spec: GpuSpec, wanted: str) -> bool:
    """Whether a card's name is `wanted` with nothing but a memory size or the plain form factor after it."""
    rest = _rest(spec, wanted)
    return bool(rest) and all(re.fullmatch(r"\d+gb|pcie", word) for word in rest)


def known_bandwidth(product: str, total_bytes: int) -> tuple[str, int] | None:
    """The name and the bandwidth of the card a driver names."""
    spec = spec_of_product(product, total_bytes)
    return (spec.name, spec.bandwidth_bytes_per_s) if spec else None
