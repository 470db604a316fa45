"""results/<kind>-<time>.json beside a receipt: what was measured of an artifact, one file a measurement."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from quantplan.artifact.receipt import write_atomically
from quantplan.errors import BadArtifact

SCHEMA = "quantplan/result/1"


class Verdict(Enum):
    """What a measurement says of an artifact."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    UNMEASURED = "unmeasured"


class Severity(Enum):
    """How bad a finding is; SARIF's levels."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found by a check that is no number: of a gate, a scan or a lint. `help` is what to do about it; `where`
    is a key, tensor or member inside the file, `offset` a byte of it."""

    rule: str  # gate/missing-result, scan/not-finite, lint/unpinned …
    severity: Severity
    message: str
    file: str | None = None
    line: int | None = None
    help: str | None = None
    where: str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measured value with its standard error, its confidence bounds and the limit it was held to.

    `value` is None where a limit asks for what was not measured: then `verdict` is inconclusive and `reason` says why.
    `limit_is` says on which side of the limit is good; `margin` is how far inside the limit the deciding bound lies,
    in the metric's unit (negative: outside, or not told apart). A metric without `limit` was only reported.
    """

    name: str
    corpus: str | None
    value: float | None
    se: float | None
    low: float | None
    high: float | None
    limit: float | None
    n: int  # scored tokens
    limit_is: str | None = None  # max | min
    verdict: Verdict | None = None
    margin: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The contract quantplan/result/1. `n_tokens` are the scored tokens that the verdict took."""

    artifact_sha256: str
    policy: str | None
    verdict: Verdict
    metrics: tuple[Metric, ...]
    tool: Mapping[str, Any]
    host: Mapping[str, Any]
    kind: str | None = None  # gate | bench | load | scan
    reason: str | None = None
    n_tokens: int | None = None
    findings: tuple[Finding, ...] = ()
    reference_sha256: str | None = None
    made_at: str | None = None

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}, default=_enum_value))
        return plain


def _enum_value(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r} is not JSON")


def result_from_json(told: Mapping[str, Any]) -> Result:
    """A result from its JSON; fields that a later version added are left out. Raises ValueError, KeyError or
    TypeError when it is not one."""
    if told["schema"] != SCHEMA:
        raise ValueError(f"has schema {told['schema']!r}, expected {SCHEMA!r}")
    values = {field.name: told[field.name] for field in fields(Result) if field.name in told}
    values["verdict"] = Verdict(told["verdict"])
    values["metrics"] = tuple(_metric(metric) for metric in told["metrics"])
    values["findings"] = tuple(_finding(finding) for finding in told.get("findings", ()))
    values["tool"], values["host"] = dict(told["tool"]), dict(told["host"])
    values["artifact_sha256"] = str(told["artifact_sha256"])
    return Result(**values)


def _metric(told: Mapping[str, Any]) -> Metric:
    values = {field.name: told[field.name] for field in fields(Metric) if field.name in told}
    values["verdict"] = Verdict(told["verdict"]) if told.get("verdict") else None
    return Metric(**values)


def _finding(told: Mapping[str, Any]) -> Finding:
    values = {field.name: told[field.name] for field in fields(Finding) if field.name in told}
    return Finding(**{**values, "severity": Severity(told["severity"])})


def write_result(folder: Path, kind: str, result: Result) -> Path:
    """Adds results/<kind>-<time>.json to an artifact folder and returns its path; nothing is overwritten."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now * 1e6) % 1_000_000:06d}Z"
    path = results / f"{kind}-{stamp}.json"
    write_atomically(path, json.dumps(result.to_json(), indent=2) + "\n")
    return path


def newest_result(folder: Path, kind: str) -> Result | None:
    """The last result of a kind, or None. Raises BadArtifact when the newest file is not one."""
    found = sorted((folder / "results").glob(f"{kind}-*.json"))
    if not found:
        return None
    return read_result(found[-1])


def read_result(path: Path) -> Result:
    """One result file. Raises BadArtifact when it is not one."""
    try:
        return result_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BadArtifact(path=path, why=f"is not a result ({error})") from error
