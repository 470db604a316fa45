"""What a gate demands: a TOML file of a fixed shape, or a preset that ships. Unknown keys are errors."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantplan.errors import BadPolicy
from quantplan.places import data_file

SCHEMA = "quantplan/policy/1"
PRESETS = ("standard", "strict", "lenient", "code", "reasoning")
DEFAULT = "standard"
SEVERITIES = ("note", "warning", "error")

# name in the file -> (name in statistics, which side is good)
QUALITY = {
    "kld_mean": ("kld_mean", "at_most"),
    "kld_99": ("kld_99", "at_most"),
    "kld_999": ("kld_999", "at_most"),
    "kld_max": ("kld_max", "at_most"),
    "ppl_ratio": ("ln_ppl_ratio", "at_most"),
    "same_top": ("top_changed", "at_least"),
    "rms_delta_p": ("rms_delta_p", "at_most"),
    "kld_of_label": ("kld_of_label", "at_most"),
}
ABSOLUTE_ONLY = ("kld_max", "kld_of_label")
_LIMIT = ("at_most", "at_least", "of_floor", "of_q8_0", "ceiling")
_QUALITY = ("error_rate", "budget_chunks", "reference_ppl_at_most", "corpora")
PERFORMANCE = {
    "decode": "at_least_ratio",
    "prefill": "at_least_ratio",
    "time_to_first_token": "at_most_ratio",
    "load_time": "at_most_ratio",
    "device_memory": "at_most_ratio",
    "host_memory": "at_most_ratio",
}
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "security": ("scan_at_most",),
    "provenance": ("receipt", "signature"),
    "template": ("parity",),
    "size": ("at_most_bytes", "of_reference_at_most", "of_plan_at_most"),
}
_TOP = ("schema", "name", "description", "extends", "quality", "performance", *_SECTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """max(absolute, of_floor × floor, of_q8_0 × Q8_0) of a damage. The last is held under `ceiling`, but never under
    twice Q8_0: a model that 8 bits hurt much would else have no limit at all."""

    absolute: float
    of_floor: float = 0.0
    of_q8_0: float = 0.0
    ceiling: float = math.inf

    def of(self, *, floor: float | None, q8_0: float | None) -> float:
        """The limit for a model whose floor and Q8_0 have these damages; None counts as not asked for."""
        relative = self.of_q8_0 * (q8_0 or 0.0)
        held = min(relative, max(self.ceiling, 2 * (q8_0 or 0.0)))
        return max(self.absolute, self.of_floor * (floor or 0.0), held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A bound on measured / expected. `against` is the baseline's result, or the plan."""

    limit: float
    against: str = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy read and checked. Limits of quality are by damage (names of pipeline.statistics) and hold for every
    corpus; `corpora` has those that replace them on one."""

    name: str
    description: str
    error_rate: float = 0.01
    budget_chunks: int = 200
    reference_ppl_at_most: float = 1000.0
    quality: Mapping[str, Limit]
    corpora: Mapping[str, Mapping[str, Limit]] = field(default_factory=dict)
    performance: Mapping[str, Ratio] = field(default_factory=dict)
    scan_at_most: str | None = None
    receipt: bool = False
    signature: bool = False
    template_parity: bool = False
    size: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"quantplan/{self.name}/1"

    def limits(self, corpus: str) -> Mapping[str, Limit]:
        """The limits on a corpus."""
        return {**self.quality, **self.corpora.get(corpus, {})}

    def without_floor(self) -> Policy:
        """The same where no floor is measured: no limit is relative to it."""

        def bare(limits: Mapping[str, Limit]) -> dict[str, Limit]:
            return {name: replace(limit, of_floor=0.0) for name, limit in limits.items()}

        return replace(self, quality=bare(self.quality), corpora={c: bare(own) for c, own in self.corpora.items()})

    @property
    def needs_label(self) -> bool:
        return any("kld_of_label" in limits for limits in (self.quality, *self.corpora.values()))

    @property
    def needs_floor(self) -> bool:
        return any(limit.of_floor > 0 for limits in (self.quality, *self.corpora.values()) for limit in limits.values())

    @property
    def needs_q8_0(self) -> bool:
        return any(limit.of_q8_0 > 0 for limits in (self.quality, *self.corpora.values()) for limit in limits.values())


def load_policy(given: str | None) -> Policy:
    """A preset by name, or a policy file by path. Raises BadPolicy naming key and reason."""
    name = given or DEFAULT
    if name in PRESETS:
        return parse_policy(_read(data_file("policies", f"{name}.toml")), where=name)
    path = Path(name)
    if not path.is_file():
        near = _near(name, PRESETS) or PRESETS
        raise BadPolicy(policy=name, key=None, why="is neither a preset nor a file", near=near)
    return parse_policy(_read(path), where=path.name)


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadPolicy(policy=path.name, key=None, why=f"cannot be read: {error}") from error


def parse_policy(told: Mapping[str, Any], *, where: str) -> Policy:
    """A policy from its tables. `extends` takes a preset's tables and lays these over them."""
    reader = _Reader(where)
    reader.known(told, _TOP, "")
    if told.get("schema") != SCHEMA:
        raise BadPolicy(policy=where, key="schema", why=f"is {told.get('schema')!r}, expected {SCHEMA!r}")
    if "extends" in told:
        base = told["extends"]
        if base not in PRESETS or base == told.get("name"):
            raise BadPolicy(policy=where, key="extends", why=f"{base!r} is not a preset", near=PRESETS)
        told = _laid_over(_read(data_file("policies", f"{base}.toml")), told)
    return reader.policy(told)


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(base)
    for key, value in own.items():
        under = joined.get(key)
        joined[key] = _laid_over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return joined


def _near(name: object, names: Sequence[str]) -> tuple[str, ...]:
    import difflib

    return tuple(difflib.get_close_matches(str(name), names, n=1, cutoff=0.5))


class _Reader:
    """Reads tables of one policy and names it in every error."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, key: str, why: str) -> BadPolicy:
        return BadPolicy(policy=self.where, key=key, why=why)

    def known(self, table: object, names: Sequence[str], path: str) -> Mapping[str, Any]:
        if not isinstance(table, Mapping):
            raise self.fail(path, "is not a table")
        for key in table:
            if key not in names:
                shown = f"{path}.{key}" if path else str(key)
                raise BadPolicy(policy=self.where, key=shown, why="is not a key of a policy", near=_near(key, names))
        return table

    def number(self, table: Mapping[str, Any], key: str, path: str, *, low: float, high: float) -> float:
        value = table[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.fail(f"{path}.{key}", f"is {value!r}, not a number from {low:g} to {high:g}")
        return float(value)

    def policy(self, told: Mapping[str, Any]) -> Policy:
        quality = self.known(told.get("quality", {}), (*_QUALITY, *QUALITY), "quality")
        corpora = quality.get("corpora", {})
        if not isinstance(corpora, Mapping):
            raise self.fail("quality.corpora", "is not a table")
        limits = self.limits(quality, "quality")
        if not limits:
            raise self.fail("quality", f"sets no limit; it knows {', '.join(QUALITY)}")
        name = told.get("name", Path(self.where).stem)
        if not isinstance(name, str) or not name:
            raise self.fail("name", "is not a text")
        numbers = {
            "error_rate": (1e-6, 0.2),
            "budget_chunks": (20, 100_000),
            "reference_ppl_at_most": (1, 1e9),
        }
        set_: dict[str, Any] = {
            key: self.number(quality, key, "quality", low=low, high=high)
            for key, (low, high) in numbers.items()
            if key in quality
        }
        if "budget_chunks" in set_:
            set_["budget_chunks"] = int(set_["budget_chunks"])
        return Policy(
            name=name, description=str(told.get("description", "")), quality=limits,
            corpora={
                corpus: self.limits(self.known(table, tuple(QUALITY), f"quality.corpora.{corpus}"),
                                    f"quality.corpora.{corpus}")
                for corpus, table in corpora.items()
            },
            performance=self.performance(told), **self.rest(told), **set_,
        )  # fmt: skip

    def limits(self, table: Mapping[str, Any], path: str) -> dict[str, Limit]:
        return {QUALITY[key][0]: self.limit(key, table[key], f"{path}.{key}") for key in table if key in QUALITY}

    def limit(self, metric: str, told: object, path: str) -> Limit:
        side = QUALITY[metric][1]
        table = self.known(told, _LIMIT, path)
        if (other := "at_least" if side == "at_most" else "at_most") in table:
            raise self.fail(f"{path}.{other}", f"has the wrong side: {metric} is bounded by {side}")
        if side not in table:
            raise self.fail(f"{path}.{side}", "is missing: every limit has an absolute part")
        if metric in ABSOLUTE_ONLY and set(table) - {side}:
            raise self.fail(path, "may only be absolute: it has no floor and no Q8_0 to be relative to")
        given = self.number(table, side, path, low=0.0, high=1e6)
        absolute = {"ppl_ratio": lambda: math.log(given) if given > 1 else -1.0, "same_top": lambda: 1.0 - given}.get(
            metric, lambda: given
        )()
        if absolute <= 0:
            raise self.fail(f"{path}.{side}", f"is {given:g}, which no measurement can meet")
        factors = {
            key: self.number(table, key, path, low=0.0, high=1e6) for key in ("of_floor", "of_q8_0") if key in table
        }
        if 0 < factors.get("of_q8_0", 2.0) <= 1:
            raise self.fail(f"{path}.of_q8_0", "is not above 1: Q8_0 itself could not meet it")
        if "ceiling" in table:
            ceiling = self.number(table, "ceiling", path, low=given if side == "at_most" else absolute, high=1e6)
            factors["ceiling"] = math.log(ceiling) if metric == "ppl_ratio" else ceiling
        return Limit(absolute=absolute, **factors)

    def performance(self, told: Mapping[str, Any]) -> dict[str, Ratio]:
        table = self.known(told.get("performance", {}), tuple(PERFORMANCE), "performance")
        found = {}
        for key, told_of_it in table.items():
            path, side = f"performance.{key}", PERFORMANCE[key]
            entry = self.known(told_of_it, (side, "against"), path)
            if side not in entry:
                raise self.fail(f"{path}.{side}", "is missing")
            against = entry.get("against", "baseline")
            if against not in ("baseline", "plan"):
                raise self.fail(f"{path}.against", f"is {against!r}, not baseline or plan")
            found[key] = Ratio(limit=self.number(entry, side, path, low=0.01, high=100), against=against)
        return found

    def rest(self, told: Mapping[str, Any]) -> dict[str, Any]:
        tables = {name: self.known(told.get(name, {}), keys, name) for name, keys in _SECTIONS.items()}
        severity = tables["security"].get("scan_at_most")
        if severity is not None and severity not in SEVERITIES:
            raise self.fail("security.scan_at_most", f"is {severity!r}, not {', '.join(SEVERITIES)}")
        return {
            "scan_at_most": severity,
            "receipt": self.word(tables["provenance"], "provenance", "receipt", "complete"),
            "signature": self.word(tables["provenance"], "provenance", "signature", "required"),
            "template_parity": self.flag(tables["template"], "template", "parity"),
            "size": {key: self.number(tables["size"], key, "size", low=0.0001, high=2.0**60) for key in tables["size"]},
        }

    def word(self, table: Mapping[str, Any], path: str, key: str, only: str) -> bool:
        if key in table and table[key] != only:
            raise self.fail(f"{path}.{key}", f"is {table[key]!r}; it may be {only!r} or left out")
        return key in table

    def flag(self, table: Mapping[str, Any], path: str, key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(f"{path}.{key}", "is not true or false")
        return value
