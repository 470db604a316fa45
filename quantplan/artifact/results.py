"""results/<kind>-<time>.json beside a receipt: what was measured of an artifact, one file a measurement."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measured value with its standard error, its bounds (two standard errors) and the limit it was held to."""

    name: str
    corpus: str | None
    value: float
    se: float | None
    low: float | None
    high: float | None
    limit: float | None
    n: int  # scored tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The contract quantplan/result/1."""

    artifact_sha256: str
    policy: str | None
    verdict: Verdict
    metrics: tuple[Metric, ...]
    tool: Mapping[str, Any]
    host: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "verdict": self.verdict.value}


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
    try:
        told = json.loads(found[-1].read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA:
            raise BadArtifact(path=found[-1], why=f"has schema {told['schema']!r}, expected {SCHEMA!r}")
        return Result(
            artifact_sha256=str(told["artifact_sha256"]),
            policy=told["policy"],
            verdict=Verdict(told["verdict"]),
            metrics=tuple(Metric(**metric) for metric in told["metrics"]),
            tool=dict(told["tool"]),
            host=dict(told["host"]),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadArtifact(path=found[-1], why=f"is not a result ({error})") from error
