"""The local tier: the process itself. What it was told, what it has open, where it listens, what it holds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantplan.artifact.receipt import sha256_of
from quantplan.hardware.processes import (
    anonymous_bytes,
    argv_of,
    children_of,
    environment_of,
    listeners,
    mapped_files,
    program_of,
    started_ticks,
)
from quantplan.llama import commands
from quantplan.llama import server_flags as flags
from quantplan.llama.server_flags import Told
from quantplan.planner.plan import server_settings
from quantplan.serving.contract import Expected, Item, Tier, compared, unseen
from quantplan.serving.contract_memory import memory_items

LOCAL = Tier.LOCAL
_COMPANIONS = {"mmproj": "mmproj", "model-draft": "draft"}
_ELSEWHERE = ("model", "host", "kv-unified-per-slot", *_COMPANIONS)
# The plan's words for the flags that bear another name.
LABELS = {
    "ctx-size": "n_ctx", "parallel": "n_parallel", "kv-unified": "kv_unified", "cache-type-k": "type_k",
    "cache-type-v": "type_v", "batch-size": "n_batch", "ubatch-size": "n_ubatch", "n-cpu-moe": "n_cpu_moe",
}  # fmt: skip


def find_engine(port: int, *, pid: int | None) -> tuple[int | None, str | None]:
    """The engine's pid by its socket, or why it is out of sight. Where something else listens (a gateway), the
    llama-server among its descendants counts."""
    if pid is None:
        found = listeners(port)
        if not found:
            return None, "nothing on this host listens on that port"
        pid = next((one.pid for one in found if one.pid is not None), None)
        if pid is None:
            return None, "the process that listens belongs to another user"
    if environment_of(pid) is None:
        return None, f"process {pid} may not be looked into (another user's)"
    family = children_of(pid)
    return next((one for one in family if _is_engine(one)), pid), None


def _is_engine(pid: int) -> bool:
    program = program_of(pid)
    return program is not None and program.name.startswith(("llama-server", "llama"))


def local_items(expected: Expected, *, pid: int, port: int) -> tuple[Item, ...]:
    """Everything that can be said of a llama-server whose process is in sight."""
    argv, environ = argv_of(pid) or (), environment_of(pid) or {}
    files, unread = _settings_files(environ)
    told = flags.merged(*files.values(), flags.from_environment(environ), flags.from_argv(argv[1:]))
    return (
        *_settings(expected, told),
        _per_slot(expected, told),
        *_companions(expected, told),
        _unplanned(expected, told),
        _environment(expected, environ),
        _files(files, unread),
        _key(told),
        _bind(expected, pid, port),
        _model(expected, pid, told),
        *memory_items(expected, pid=pid, held=anonymous_bytes(pid)),
    )


def planned_told(expected: Expected) -> dict[str, Told]:
    """What llama-server is told by the plan."""
    settings = server_settings(expected.plan, model=expected.model or Path("model.gguf"))
    return flags.from_argv(commands.server((), settings))


def _settings(expected: Expected, told: Mapping[str, Told]) -> list[Item]:
    planned, items = planned_told(expected), []
    for flag in flags.PLANNED_FLAGS:
        if flag.name in _ELSEWHERE:
            continue
        want = planned[flag.name].value if flag.name in planned else flag.default
        have = told[flag.name].value if flag.name in told else _untold(flag, told)
        if want is None and have is None:
            continue
        source = told[flag.name].source if flag.name in told else "left to the engine"
        why = None if flags.same(want, have) else source
        name = LABELS.get(flag.name, flag.name.replace("-", "_"))
        items.append(compared(name, LOCAL, planned=want, found=have, equal=flags.same(want, have), why=why))
    return items


def _untold(flag: flags.Flag, told: Mapping[str, Told]) -> str | None:
    """What the engine does where nobody says it: batches get as many threads as tokens (common/common.cpp, 0c1e570:
    postprocess_cpu_params takes those as the model)."""
    threads = told.get("threads")
    return threads.value if flag.name == "threads-batch" and threads else flag.default


def _per_slot(expected: Expected, told: Mapping[str, Told]) -> Item:
    """What a slot may fill: its limit, or the pool where all share it without one, or its part of the pool."""
    numbers = {name: one.value for name, one in told.items()}
    try:
        pool, n_parallel = int(numbers.get("ctx-size", "0")), int(numbers.get("parallel", "-1"))
        shared = flags.same(numbers.get("kv-unified"), "on")
        limit = int(numbers.get("kv-unified-per-slot", pool)) if shared else pool // n_parallel
    except (ValueError, ZeroDivisionError):
        return unseen("n_ctx_per_slot", LOCAL, "the command line leaves it to the engine")
    return compared("n_ctx_per_slot", LOCAL, planned=expected.plan.n_ctx_per_slot, found=limit)


def _companions(expected: Expected, told: Mapping[str, Told]) -> list[Item]:
    items = []
    for name, label in _COMPANIONS.items():
        want = getattr(expected.plan, label)
        have = told[name].value if name in told else None
        equal = want is None if have is None else want is not None and _same_file(want, have)
        items.append(compared(label, LOCAL, planned=want, found=have, equal=equal))
    return items


def _same_file(planned: str, found: str) -> bool:
    one, other = Path(planned), Path(found)
    if one.is_file() and other.is_file():
        return one.samefile(other) or sha256_of(one) == sha256_of(other)
    return one.name == other.name


def _unplanned(expected: Expected, told: Mapping[str, Told]) -> Item:
    """Settings that no plan has a word for: they change answers or memory, and nobody decided on them."""
    known = {flag.name for flag in flags.PLANNED_FLAGS} | flags.HARMLESS
    found = [f"{name}={one.value} ({one.source})" for name, one in sorted(told.items()) if name not in known]
    return compared("unplanned settings", LOCAL, planned=[], found=found)


def _environment(expected: Expected, environ: Mapping[str, str]) -> Item:
    """Variables that change the engine. One that says what the plan says is no stray: so an .env file may start it."""
    planned, told = planned_told(expected), flags.from_environment(environ)
    agreeing = {one.source for name, one in told.items() if name in flags.HARMLESS or name in _ELSEWHERE}
    agreeing |= {
        told[name].source for name in planned.keys() & told if flags.same(planned[name].value, told[name].value)
    }
    strays = [name for name in flags.stray_variables(environ) if name not in agreeing and "KEY" not in name]
    found = [f"{name}={environ[name]}" for name in strays]
    return compared("environment", LOCAL, planned=[], found=found,
                    why="the engine reads these variables" if found else None)  # fmt: skip


def _settings_files(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Told]], list[str]]:
    """The settings of every file that the process found, the weakest first, and the files that cannot be read."""
    found, unread = {}, []
    for path in flags.settings_files(environ, home=None):
        try:
            found[path] = flags.from_settings_file(Path(path).read_text(encoding="utf-8"), path=path)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError):
            unread.append(path)
    return found, unread


def _files(files: Mapping[str, Mapping[str, Told]], unread: Sequence[str]) -> Item:
    if unread:
        return unseen("settings files", LOCAL, f"{unread[0]} cannot be read")
    found = [f"{name}={one.value} ({path})" for path, settings in files.items() for name, one in settings.items()]
    return compared("settings files", LOCAL, planned=[], found=found,
                    why="the engine reads these files" if found else None)  # fmt: skip


def _key(told: Mapping[str, Told]) -> Item:
    """A key on a command line is read by everybody on the host."""
    written = "api-key" in told and told["api-key"].source == "command line"
    found = "on the command line" if written else "in a file" if "api-key-file" in told else "none"
    return compared("key", LOCAL, planned="in a file, or none", found=found, equal=not written)


def _bind(expected: Expected, pid: int, port: int) -> Item:
    found = [one for one in listeners(port) if one.pid in (pid, None)]
    if not found:  # a gateway has the port, the engine another one
        own = [one for one in listeners(_own_port(pid)) if one.pid == pid]
        found = own or found
    if not found:
        return unseen("bind", LOCAL, "its listening socket was not found")
    addresses = sorted({one.address for one in found})
    private = all(one.is_loopback for one in found)
    planned = "any address, with a key" if expected.public else "loopback"
    return compared("bind", LOCAL, planned=planned, found=addresses, equal=private or expected.public)


def _own_port(pid: int) -> int:
    told = flags.from_argv((argv_of(pid) or ())[1:])
    return int(told["port"].value) if "port" in told and told["port"].value.isdecimal() else 8080


def _model(expected: Expected, pid: int, told: Mapping[str, Told]) -> Item:
    """The hash of the weights that the process has mapped; of a file that it read, if it is unchanged since."""
    name = "model sha256"
    planned = sorted(digest[:16] for digest in expected.hashes) or None
    if not expected.hashes:
        return unseen(name, LOCAL, "neither receipt nor plan says the model file's hash")
    others = {Path(told[key].value).name for key in (*_COMPANIONS, "lora") if key in told}
    mapped = [one for one in mapped_files(pid, suffix=".gguf") or () if Path(one.path).name not in others]
    digests = []
    for one in mapped:
        try:
            digests.append(sha256_of(one.where))
        except OSError:
            if one.replaced:
                return unseen(name, LOCAL, f"{one.path} was replaced while it is being served", planned=planned)
            digests.append(sha256_of(Path(one.path)))
    if not mapped:
        path, why = _read_file(pid, told)
        if path is None:
            return unseen(name, LOCAL, why, planned=planned)
        digests.append(sha256_of(path))
    found = sorted({digest[:16] for digest in digests})
    return compared(name, LOCAL, planned=planned, found=found, equal=set(digests) <= expected.hashes)


def _read_file(pid: int, told: Mapping[str, Told]) -> tuple[Path | None, str]:
    """The file that a process has read without mapping it, unless it has changed since the process began."""
    if "model" not in told:
        return None, "the process names no model file"
    path = Path(f"/proc/{pid}/cwd") / told["model"].value
    ticks = started_ticks(pid)
    try:
        changed = max(path.stat().st_ctime, path.lstat().st_ctime)
    except OSError:
        return None, f"{told['model'].value} is gone"
    if ticks is None or changed > _boot_time() + ticks / os.sysconf("SC_CLK_TCK"):
        return None, f"{told['model'].value} has changed since it was read"
    return path, ""


def _boot_time() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
