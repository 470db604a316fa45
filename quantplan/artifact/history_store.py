"""The SQLite file of the history: opening it, its versions, and what its failures mean.

Several processes write at once: WAL where the filesystem has it, a busy timeout, and one immediate transaction a
write. The only importer of sqlite3.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantplan.errors import HistoryUnreadable
from quantplan.places import state_folder

BUSY_S = 10.0
Row = sqlite3.Row

# One script a version; PRAGMA user_version says how many were run. Never changed once released: add one.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE artifacts (
        sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, model TEXT NOT NULL, repo TEXT, revision TEXT,
        quant TEXT NOT NULL, with_imatrix INTEGER NOT NULL, bytes INTEGER NOT NULL,
        arch TEXT, n_params INTEGER, n_active INTEGER, folder TEXT, recorded_at TEXT NOT NULL, receipt TEXT NOT NULL
    );
    CREATE TABLE results (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, artifact_sha256 TEXT NOT NULL, model TEXT NOT NULL,
        quant TEXT, kind TEXT NOT NULL, verdict TEXT NOT NULL, made_at TEXT NOT NULL, recorded_at TEXT NOT NULL,
        result TEXT NOT NULL
    );
    CREATE INDEX results_by_model ON results (model, made_at);
    """,
    # For people who query the file themselves: one row a metric.
    """
    CREATE VIEW metrics AS
        SELECT results.id AS result_id, results.model, results.quant, results.kind, results.made_at,
               json_extract(each.value, '$.name') AS name, json_extract(each.value, '$.corpus') AS corpus,
               json_extract(each.value, '$.value') AS value, json_extract(each.value, '$.se') AS se,
               json_extract(each.value, '$.limit') AS "limit"
        FROM results, json_each(results.result, '$.metrics') AS each;
    """,
)


def store_file() -> Path:
    """The history of this user: results cannot be made again, so they lie in the state folder."""
    return state_folder() / "history.sqlite3"


@contextmanager
def writing(path: Path, *, migrations: Sequence[str] = MIGRATIONS) -> Iterator[sqlite3.Connection]:
    """A connection inside one transaction, the file made and brought to this version first. Raises
    HistoryUnreadable."""
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path)
        _migrate(connection, path, migrations)
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise HistoryUnreadable(path=path, why=_why(error)) from error
    finally:
        if connection is not None:
            connection.close()


@contextmanager
def reading(path: Path, *, migrations: Sequence[str] = MIGRATIONS) -> Iterator[sqlite3.Connection | None]:
    """A connection to read from, or None where nothing was ever recorded. A file that may not be written is read as
    it is. Raises HistoryUnreadable."""
    if not path.exists():
        yield None
        return
    connection: sqlite3.Connection | None = None
    try:
        connection = _open_to_read(path, migrations)
        yield connection
    except (sqlite3.Error, OSError) as error:
        raise HistoryUnreadable(path=path, why=_why(error)) from error
    finally:
        if connection is not None:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL").fetchone()  # answers what it could: network filesystems keep theirs
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _open_to_read(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    try:
        connection = _connect(path)
        _migrate(connection, path, migrations)
        return connection
    except sqlite3.OperationalError as error:
        if not any(word in str(error) for word in ("readonly", "unable to open")):
            raise
        # read-only file or folder: immutable reads it without a lock or a -shm beside it
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        connection.row_factory = sqlite3.Row
        if _version(connection) != len(migrations):
            raise HistoryUnreadable(path=path, why="is of another version and may not be written here") from None
        return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    """Runs what is missing, in one transaction: of two processes that find an old file, one does it."""
    if _version(connection) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        have = _version(connection)
        if have > len(migrations):
            raise HistoryUnreadable(path=path, why=f"has version {have}, this quantplan knows {len(migrations)}")
        for script in migrations[have:]:
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _why(error: Exception) -> str:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return f"is held by another process for more than {BUSY_S:.0f} s"
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return f"is damaged ({error})"
    return f"cannot be used ({getattr(error, 'strerror', None) or error})"
