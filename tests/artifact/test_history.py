"""The history: recorded once, read back exactly, by many writers; damaged or read-only is a warning."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

import quantplan
from quantplan.artifact import history, history_store
from quantplan.artifact.history import COLUMNS, entries, record_artifact, record_result, results
from quantplan.artifact.receipt import FileEntry, Receipt, StepEntry, write_receipt
from quantplan.artifact.regressions import regressions, worse
from quantplan.artifact.results import Metric, Result, Verdict, write_result
from quantplan.errors import HistoryUnreadable, NoHistory
from quantplan.quant.own_quality import is_sibling, own_measurements
from quantplan.quant.quality_table import read_quality_table

SHA = "a" * 64


def metric(name: str = "kld_mean", value: float | None = 0.01, se: float | None = 0.001, **rest: object) -> Metric:
    told = {"corpus": "prose", "low": None, "high": None, "limit": None, "n": 5100, **rest}
    return Metric(name=name, value=value, se=se, **told)  # type: ignore[arg-type]


def result(verdict: Verdict = Verdict.PASS, metrics: tuple[Metric, ...] = (metric(),), **rest: object) -> Result:
    told = {
        "artifact_sha256": SHA, "policy": "standard", "tool": {"version": "b1"}, "host": {"fingerprint": "h1"}, **rest,
    }  # fmt: skip
    return Result(verdict=verdict, metrics=metrics, **told)  # type: ignore[arg-type]


def artifact(folder: Path, *, name: str = "Toy-1B", quant: str = "Q4_K_M", sha256: str = SHA, **source: object) -> Path:
    """A folder with a receipt; the GGUF itself is not needed."""
    folder.mkdir(parents=True)
    step = StepEntry(name="quantize", argv=("llama-quantize", "--imatrix", "i.gguf"), inputs=(), output="o",
                     seconds=1.0, peak_rss_bytes=None)  # fmt: skip
    receipt = Receipt(
        files=(FileEntry(name=f"{name}-{quant}.gguf", sha256=sha256, bytes=1234),), quant=quant,
        source={"repo": None, "revision": None, "name": name, "files": [], **source}, tools={}, steps=(step,), texts=(),
    )  # fmt: skip
    write_receipt(folder, receipt)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


def test_an_artifact_is_recorded_once_with_its_results(tmp_path: Path, store: Path) -> None:
    folder = artifact(tmp_path / "a", repo="org/Toy-1B")
    write_result(folder, "gate", result())
    assert record_artifact(folder, store=store) is None
    assert record_artifact(folder, store=store) is None
    write_result(folder, "bench", result(metrics=(metric("decode_tokens_per_s", 40.0, None),)))
    assert record_artifact(folder, store=store) is None
    found = entries(store=store)
    assert [(e.kind, e.model, e.quant, e.verdict) for e in found] == [
        ("gate", "org/Toy-1B", "Q4_K_M", Verdict.PASS),
        ("bench", "org/Toy-1B", "Q4_K_M", Verdict.PASS),
    ]
    assert found[0].result == result()
    assert found[0].artifact is not None
    assert (found[0].artifact.bytes, found[0].artifact.with_imatrix, found[0].artifact.n_params) == (1234, True, None)


@pytest.mark.parametrize("asked", ["org/Toy-1B", "ORG/toy-1b", "Toy-1B", "org/Toy-1B/"])
def test_a_model_is_found_by_id_or_its_last_part(tmp_path: Path, store: Path, asked: str) -> None:
    record_result(result(), kind="gate", model="org/Toy-1B", quant="Q8_0", store=store)
    record_result(result(), kind="bench", model="Other-2B", store=store)
    assert [e.model for e in entries(asked, store=store)] == ["org/Toy-1B"]


def test_an_unknown_model_names_those_recorded(store: Path) -> None:
    record_result(result(), kind="gate", model="org/Toy-1B", store=store)
    with pytest.raises(NoHistory, match="nothing was recorded of 'x/Toy-1B'; recorded here: org/Toy-1B"):
        entries("x/Toy-1B", store=store)


def test_nothing_recorded_is_no_error(store: Path) -> None:
    assert entries(store=store) == ()
    assert list(results(store=store).columns) == list(COLUMNS)
    assert not store.exists()


def test_results_is_a_frame_with_a_row_a_metric(store: Path) -> None:
    two = (metric(limit=0.02, low=0.008, high=0.012), metric("same_top", 0.99, 0.001, corpus="code"))
    record_result(
        result(metrics=two, made_at="2026-11-01T10:00:00Z"), kind="gate", model="m", quant="Q8_0", store=store
    )
    record_result(
        result(Verdict.UNMEASURED, metrics=(), made_at="2026-11-02T10:00:00Z"), kind="scan", model="m", store=store
    )
    frame = results(store=store)
    told = frame[["kind", "metric", "corpus", "value", "limit"]].astype(object)
    assert told.where(told.notna(), None).values.tolist() == [
        ["gate", "kld_mean", "prose", 0.01, 0.02],
        ["gate", "same_top", "code", 0.99, None],
        ["scan", None, None, None, None],
    ]
    assert [str(at) for at in frame["made_at"]] == ["2026-11-01 10:00:00+00:00"] * 2 + ["2026-11-02 10:00:00+00:00"]
    assert len(results("m", kind="scan", store=store)) == 1


def test_quantplan_results_is_this_function() -> None:
    assert quantplan.results is results  # type: ignore[attr-defined]


def _write(store: str, first: int) -> None:
    for i in range(25):
        warning = record_result(result(n_tokens=first + i), kind="gate", model="m", store=Path(store))
        assert warning is None, warning


def test_eight_processes_write_at_once_and_nothing_is_lost(store: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(store), 1000 * n)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    tokens = {entry.result.n_tokens for entry in entries(store=store)}
    assert tokens == {1000 * n + i for n in range(8) for i in range(25)}
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_damaged_store_is_one_warning_for_who_records_and_an_error_for_who_asks(store: Path) -> None:
    store.parent.mkdir(parents=True)
    store.write_bytes(b"this is no database" * 500)
    warning = record_result(result(), kind="gate", model="m", store=store)
    assert warning == f"not recorded in the history: {store}: the history is damaged (file is not a database)"
    with pytest.raises(HistoryUnreadable, match="is damaged"):
        entries(store=store)
    assert store.read_bytes() == b"this is no database" * 500


def test_a_truncated_store_is_damaged_too(store: Path) -> None:
    for n in range(200):
        record_result(result(n_tokens=n), kind="gate", model="m", store=store)
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = store.read_bytes()
    store.write_bytes(whole[: len(whole) // 3] + b"\xff" * (len(whole) // 3) + whole[2 * len(whole) // 3 :])
    with pytest.raises(HistoryUnreadable):
        entries(store=store)


def test_no_folder_to_write_to_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warning = record_result(result(), kind="gate", model="m", store=tmp_path / "file" / "history.sqlite3")
    assert warning is not None
    assert warning.endswith("the history cannot be used (File exists)")


def _as_nobody(store: str, told: str) -> None:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    warning = record_result(result(n_tokens=2), kind="gate", model="m", store=Path(store))
    seen = [entry.result.n_tokens for entry in entries(store=Path(store))]
    Path(told).write_text(json.dumps([warning, seen]))


def test_a_read_only_store_is_read_and_recording_warns(tmp_path: Path) -> None:
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"quantplan-read-only-{os.getpid()}"  # nobody can enter it
    folder.mkdir()
    told = folder.with_suffix(".told")
    told.write_text("")
    told.chmod(0o666)
    store = folder / "history.sqlite3"
    try:
        assert record_result(result(n_tokens=1), kind="gate", model="m", store=store) is None
        store.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        folder.chmod(0o555)
        child = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(str(store), str(told)))
        child.start()
        child.join()
        warning, seen = json.loads(told.read_text())
    finally:
        folder.chmod(0o755)
        store.unlink(missing_ok=True)
        told.unlink()
        folder.rmdir()
    assert warning.startswith(f"not recorded in the history: {store}: the history cannot be used")
    assert seen == [1]


def test_an_old_store_is_migrated_and_keeps_its_rows(store: Path) -> None:
    first = history_store.MIGRATIONS[:1]
    with history_store.writing(store, migrations=first) as connection:
        history._add_result(connection, result(), "gate", "2026-01-01T00:00:00Z", "m", "Q8_0")
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 1
    assert [entry.quant for entry in entries(store=store)] == ["Q8_0"]
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(history_store.MIGRATIONS)
        assert connection.execute("SELECT model, name, value, corpus FROM metrics").fetchall() == [
            ("m", "kld_mean", 0.01, "prose")
        ]


def test_a_migration_that_fails_leaves_the_store_as_it_was(store: Path) -> None:
    record_result(result(), kind="gate", model="m", store=store)
    broken = (*history_store.MIGRATIONS, "CREATE TABLE later (x); THIS IS NO SQL;")
    with pytest.raises(HistoryUnreadable), history_store.writing(store, migrations=broken):
        pass
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert "later" not in names
    assert len(entries(store=store)) == 1


def test_a_store_of_a_newer_quantplan_is_left_alone(store: Path) -> None:
    record_result(result(), kind="gate", model="m", store=store)
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "has version 99, this quantplan knows 2" in str(record_result(result(), kind="gate", model="m", store=store))


def history_of(store: Path, *told: tuple[str, Verdict, tuple[Metric, ...]]) -> tuple[history.Entry, ...]:
    for made_at, verdict, metrics in told:
        record_result(result(verdict, metrics, made_at=made_at), kind="gate", model="m", quant="Q4_K_M", store=store)
    return entries(store=store)


def test_a_regression_is_against_the_last_passing_build_and_beyond_the_noise(store: Path) -> None:
    found = history_of(
        store,
        ("2026-01-01T00:00:00Z", Verdict.PASS, (metric(value=0.010),)),
        ("2026-01-02T00:00:00Z", Verdict.PASS, (metric(value=0.011),)),
        ("2026-01-03T00:00:00Z", Verdict.FAIL, (metric(value=0.050),)),
        ("2026-01-04T00:00:00Z", Verdict.INCONCLUSIVE, (metric(value=0.020), metric("same_top", 0.90, 0.001))),
    )
    told = regressions(found)
    assert [(r.metric, r.before, r.after, r.before_at[:10]) for r in told] == [
        (None, None, None, "2026-01-02"),
        ("kld_mean", 0.011, 0.020, "2026-01-02"),
    ]
    assert told[1].why == "rose from 0.011 to 0.02, more than its noise of 0.0049"


def test_no_passing_build_before_is_no_regression(store: Path) -> None:
    assert regressions(history_of(store, ("2026-01-01T00:00:00Z", Verdict.FAIL, (metric(value=1.0),)))) == ()


@pytest.mark.parametrize(
    ("name", "before", "after", "se", "is_worse"),
    [
        ("kld_mean", 0.010, 0.0149, 0.001, False), ("kld_mean", 0.010, 0.0151, 0.001, True),
        ("ppl_reference", 5.0, 9.0, 0.001, False),
        ("kld_mean", 0.010, 0.005, 0.001, False), ("same_top", 0.99, 0.98, 0.001, True),
        ("same_top", 0.98, 0.99, 0.001, False), ("decode_tokens_per_s", 100.0, 94.0, None, True),
        ("decode_tokens_per_s", 100.0, 96.0, None, False), ("time_to_first_token_s", 1.0, 1.06, None, True),
    ],
)  # fmt: skip
def test_worse_knows_the_side_and_the_noise(
    name: str, before: float, after: float, se: float | None, is_worse: bool
) -> None:
    assert (worse(metric(name, before, se), metric(name, after, se)) is not None) is is_worse


def test_own_measurements_are_the_newest_of_this_model_and_its_siblings(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"Mistral-7B-v1": 7_000_000_000, "Mistral-24B-v1": 24_000_000_000, "Yi-6B": 6_000_000_000}
    for n, (name, n_params) in enumerate(sizes.items()):
        folder = artifact(tmp_path / name, name=name, sha256=str(n) * 64)
        write_result(folder, "gate", result(artifact_sha256=str(n) * 64, metrics=(
            metric(value=0.02, se=0.003), metric(value=0.04, se=0.004, corpus="code"),
            metric("ppl_ratio", 1.02, None), metric("ppl_ratio", 1.04, None, corpus="code"),
        )))  # fmt: skip
        record_artifact(folder, store=store)
        with closing(
            sqlite3.connect(store, isolation_level=None)
        ) as connection:  # as if the file had been there to be read
            connection.execute("UPDATE artifacts SET n_params = ?, n_active = ? WHERE sha256 = ?",
                               (n_params, n_params, str(n) * 64))  # fmt: skip
    own = own_measurements("Mistral-7B-v1", table=read_quality_table(), store=store)
    assert [(o.model, o.same_model, o.n_params, o.n_active) for o in own] == [
        ("Mistral-7B-v1", True, 7_000_000_000, None), ("Mistral-24B-v1", False, 24_000_000_000, None),
    ]  # fmt: skip
    assert own[0].kld_mean == pytest.approx(0.03)
    assert (own[0].low, own[0].high) == (pytest.approx(0.025), pytest.approx(0.035))
    assert own[0].ppl_ratio == pytest.approx((1.02 * 1.04) ** 0.5)
    assert own[0].with_imatrix


@pytest.mark.parametrize(
    ("name", "other", "sibling"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-30B-A3B", True), ("Qwen3-8B", "Qwen2.5-7B", False),
        ("mistralai/Mistral-7B-v0.3", "Mistral-24B", True), ("org/gemma-3-12b-it", "gemma-3-1b-it", True),
        ("quantplan-tiny", "quantplan-tiny", False), ("Mixtral-8x7B", "Mixtral-8x22B", True),
    ],
)  # fmt: skip
def test_siblings_by_name(name: str, other: str, sibling: bool) -> None:
    assert is_sibling(name, other, read_quality_table()) is sibling
