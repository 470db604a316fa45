"""What was built and measured on this host: receipts and results in one store, asked by model.

Recording never fails a command: `record_artifact` and `record_result` return a sentence to warn with, or None.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan.artifact.history_store import Row, reading, store_file, writing
from quantplan.artifact.receipt import Receipt, read_receipt
from quantplan.artifact.results import Result, Verdict, read_result, result_from_json
from quantplan.errors import BadArtifact, HistoryUnreadable, NoHistory, QuantplanError

if TYPE_CHECKING:
    import sqlite3

    import pandas as pd

_STAMP = re.compile(r"(?P<kind>[a-z_-]+)-(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})(\.\d+)?Z\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A GGUF as its receipt and header told it. `n_params` None: the file could not be read when recorded."""

    sha256: str
    name: str
    model: str
    repo: str | None
    revision: str | None
    quant: str
    with_imatrix: bool
    bytes: int
    arch: str | None
    n_params: int | None
    n_active: int | None
    folder: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One result, of which artifact, when. `artifact` is None for a result of a file without a receipt."""

    model: str
    quant: str | None
    kind: str
    made_at: str
    recorded_at: str
    result: Result
    artifact: Recorded | None

    @property
    def verdict(self) -> Verdict:
        return self.result.verdict


def record_artifact(folder: Path, *, store: Path | None = None) -> str | None:
    """Adds an artifact folder's receipt and those of its results that are not recorded yet. Returns why it could
    not, or None."""
    try:
        receipt = read_receipt(folder)
        recorded = _recorded(receipt, folder)
        found = [(path, read_result(path)) for path in sorted((folder / "results").glob("*.json"))]
        with writing(store or store_file()) as connection:
            _add_artifact(connection, recorded, receipt)
            for path, result in found:
                kind, made_at = kind_and_time(path.name, result)
                _add_result(connection, result, kind, made_at, recorded.model, recorded.quant)
    except (HistoryUnreadable, BadArtifact, OSError) as error:
        return f"not recorded in the history: {error}"
    return None


def record_result(
    result: Result, *, kind: str, model: str, quant: str | None = None, store: Path | None = None
) -> str | None:
    """Adds one result of a model that has no artifact folder. Returns why it could not, or None."""
    try:
        with writing(store or store_file()) as connection:
            made_at = whole_time(result.made_at) if result.made_at else _now()
            _add_result(connection, result, result.kind or kind, made_at, model, quant)
    except (HistoryUnreadable, OSError) as error:
        return f"not recorded in the history: {error}"
    return None


def entries(model: str | None = None, *, kind: str | None = None, store: Path | None = None) -> tuple[Entry, ...]:
    """Every result of a model (its id, its repository or the last part of either), the oldest first; of all models
    without one. Raises HistoryUnreadable; NoHistory for a model that was never recorded."""
    path = store or store_file()
    with reading(path) as connection:
        rows = connection.execute(_SELECT).fetchall() if connection is not None else []
    try:
        every = tuple(_entry(row) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryUnreadable(path=path, why=f"holds a result that is none ({error})") from error
    if model is not None:
        known = sorted({entry.model for entry in every})
        every = tuple(entry for entry in every if is_model(entry, model))
        if not every:
            raise NoHistory(model=model, near=known[:5])
    return tuple(entry for entry in every if kind in (None, entry.kind))


def is_model(entry: Entry, model: str) -> bool:
    """Whether an entry is about that model: by id, repository, or the last part of either, in any case."""
    asked = model.rstrip("/").casefold()
    names = {entry.model.casefold()}
    if entry.artifact is not None and entry.artifact.repo:
        names.add(entry.artifact.repo.casefold())
    if asked in names:
        return True
    return "/" not in asked and asked in {name.rsplit("/", 1)[-1] for name in names}


def results(model: str | None = None, *, kind: str | None = None, store: Path | None = None) -> pd.DataFrame:
    """The history as a DataFrame, one row a metric (a result without one has one row, its metric None), the oldest
    first. `quantplan.results()`. Raises HistoryUnreadable; NoHistory for a model that was never recorded."""
    import pandas as pd

    frame = pd.DataFrame(list(result_rows(entries(model, kind=kind, store=store))), columns=list(COLUMNS))
    return frame.astype({"made_at": "datetime64[ns, UTC]", "recorded_at": "datetime64[ns, UTC]"})


COLUMNS = (
    "made_at", "model", "quant", "kind", "verdict", "metric", "corpus", "value", "se", "low", "high", "limit",
    "limit_is", "n", "metric_verdict", "margin", "policy", "reason", "n_tokens", "artifact_sha256", "name", "bytes",
    "repo", "revision", "with_imatrix", "arch", "n_params", "n_active", "engine", "host", "folder", "recorded_at",
)  # fmt: skip


def result_rows(found: Iterable[Entry]) -> Iterable[dict[str, Any]]:
    """COLUMNS as dictionaries, one a metric."""
    for entry in found:
        result, artifact = entry.result, entry.artifact
        common: dict[str, Any] = dict.fromkeys(COLUMNS)
        common |= {
            "made_at": entry.made_at, "model": entry.model, "quant": entry.quant, "kind": entry.kind,
            "verdict": result.verdict.value, "policy": result.policy, "reason": result.reason,
            "n_tokens": result.n_tokens, "artifact_sha256": result.artifact_sha256,
            "engine": result.tool.get("version"), "host": result.host.get("fingerprint"),
            "recorded_at": entry.recorded_at,
        }  # fmt: skip
        if artifact is not None:
            told = ("name", "bytes", "repo", "revision", "with_imatrix", "arch", "n_params", "n_active", "folder")
            common |= {key: getattr(artifact, key) for key in told}
        for metric in result.metrics:
            yield common | {
                "metric": metric.name, "corpus": metric.corpus, "value": metric.value, "se": metric.se,
                "low": metric.low, "high": metric.high, "limit": metric.limit, "limit_is": metric.limit_is,
                "n": metric.n, "metric_verdict": metric.verdict.value if metric.verdict else None,
                "margin": metric.margin,
            }  # fmt: skip
        if not result.metrics:
            yield common


def _recorded(receipt: Receipt, folder: Path) -> Recorded:
    file, source = receipt.model_file, receipt.source
    arch, n_params, n_active = _size_of(folder / file.name)
    return Recorded(
        sha256=file.sha256,
        name=Path(file.name).stem,
        model=str(source.get("repo") or source.get("name") or folder.name),
        repo=source.get("repo"),
        revision=source.get("revision"),
        quant=receipt.quant,
        with_imatrix=any("--imatrix" in step.argv for step in receipt.steps),
        bytes=sum(entry.bytes for entry in receipt.files if entry.name.endswith(".gguf")),
        arch=arch,
        n_params=n_params,
        n_active=n_active,
        folder=str(folder.resolve()),
    )


def _size_of(gguf: Path) -> tuple[str | None, int | None, int | None]:
    """Architecture, parameters and active parameters by the file's own header; None where it cannot be read."""
    from quantplan.model.read import read_model

    try:
        facts = read_model(str(gguf))
    except QuantplanError:
        return None, None, None
    return facts.arch, facts.parameters, facts.active_parameters


def kind_and_time(name: str, result: Result) -> tuple[str, str]:
    """Kind and time (UTC, microseconds) of a result file; its name says both where the result does not."""
    found = _STAMP.fullmatch(name)
    kind = result.kind or (found["kind"] if found else name.partition("-")[0].removesuffix(".json"))
    if result.made_at:
        return kind, whole_time(result.made_at)
    if found is None:
        return kind, _now()
    year, month, day, hour, minute, second, fraction = found.groups()[1:]
    return kind, whole_time(f"{year}-{month}-{day}T{hour}:{minute}:{second}{fraction or ''}Z")


def whole_time(told: str) -> str:
    """The same time with microseconds, so that times sort as text."""
    head, dot, fraction = told.removesuffix("Z").partition(".")
    return f"{head}.{(fraction if dot else '').ljust(6, '0')}Z"


def _add_artifact(connection: sqlite3.Connection, one: Recorded, receipt: Receipt) -> None:
    values = (
        one.sha256, one.name, one.model, one.repo, one.revision, one.quant, int(one.with_imatrix), one.bytes, one.arch,
        one.n_params, one.n_active, one.folder, _now(), json.dumps(receipt.to_json()),
    )  # fmt: skip
    connection.execute(f"INSERT OR REPLACE INTO artifacts VALUES ({','.join('?' * len(values))})", values)


def _add_result(
    connection: sqlite3.Connection, result: Result, kind: str, made_at: str, model: str, quant: str | None
) -> None:
    text = json.dumps(result.to_json())
    digest = hashlib.sha256(f"{kind}\0{made_at}\0{text}".encode()).hexdigest()
    values = (digest, result.artifact_sha256, model, quant, kind, result.verdict.value, made_at, _now(), text)
    connection.execute(
        "INSERT OR IGNORE INTO results (digest, artifact_sha256, model, quant, kind, verdict, made_at, recorded_at,"
        " result) VALUES (?,?,?,?,?,?,?,?,?)",
        values,
    )


_SELECT = """
    SELECT results.model, results.quant, results.kind, results.made_at, results.recorded_at, results.result,
           artifacts.sha256, artifacts.name, artifacts.model AS made_of, artifacts.repo, artifacts.revision,
           artifacts.quant AS preset, artifacts.with_imatrix, artifacts.bytes, artifacts.arch, artifacts.n_params,
           artifacts.n_active, artifacts.folder
    FROM results LEFT JOIN artifacts ON artifacts.sha256 = results.artifact_sha256
    ORDER BY results.made_at, results.id
"""


def _entry(row: Row) -> Entry:
    artifact = None
    if row["sha256"] is not None:
        artifact = Recorded(
            sha256=row["sha256"], name=row["name"], model=row["made_of"], repo=row["repo"], revision=row["revision"],
            quant=row["preset"], with_imatrix=bool(row["with_imatrix"]), bytes=row["bytes"], arch=row["arch"],
            n_params=row["n_params"], n_active=row["n_active"], folder=row["folder"],
        )  # fmt: skip
    told: Mapping[str, Any] = json.loads(row["result"])
    return Entry(
        model=row["model"], quant=row["quant"], kind=row["kind"], made_at=row["made_at"],
        recorded_at=row["recorded_at"], result=result_from_json(told), artifact=artifact,
    )  # fmt: skip


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1e6) % 1_000_000:06d}Z"
