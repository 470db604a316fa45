"""The contract check: the tiers that are in reach, one report."""

from __future__ import annotations

from urllib.parse import urlsplit

from quantplan.errors import BadValue, ServerUnreachable
from quantplan.serving.bind import is_loopback
from quantplan.serving.contract import Expected, Item, Report, Require, Tier, lowered, unseen
from quantplan.serving.contract_local import find_engine, local_items
from quantplan.serving.contract_others import other_items, which_runtime
from quantplan.serving.contract_remote import remote_items, untold_items
from quantplan.serving.door import Door
from quantplan.serving.runtimes import Runtime


def verify(
    url: str, expected: Expected, *, pid: int | None = None, require: Require = "all", remote_only: bool = False
) -> Report:
    """What runs at `url` against the plan. Raises ServerUnreachable, BadValue.

    The local tier is used where the process is in sight: its pid given, or found by the port of a loopback address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadValue(what="address", value=url, why="is no http:// address")
    door = Door(url=url, key=expected.key)
    if door.get("/v1/models").status == 401:
        asked = "is asked for by the server" if expected.key is None else "is not one of the server's"
        raise BadValue(what="API key", value=None, why=asked)
    runtime = which_runtime(door)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    engine, why = _in_sight(parts.hostname, port, pid, remote_only=remote_only)
    if runtime is Runtime.LLAMA_SERVER:
        items = (*_llama_local(expected, engine, port, why), *remote_items(expected, door))
    else:
        items = other_items(runtime, expected, door, pid=engine, port=port, why_remote=why)
    tier = Tier.LOCAL if engine is not None else Tier.REMOTE
    return Report(url=url, runtime=runtime.value if runtime else "unknown", tier=tier, pid=engine, why_remote=why,
                  items=_asked(items, require, tier))  # fmt: skip


def _in_sight(host: str, port: int, pid: int | None, *, remote_only: bool) -> tuple[int | None, str | None]:
    if remote_only:
        return None, "asked to look from outside only"
    if pid is None and not is_loopback(host):
        return None, f"{host} is not this host"
    return find_engine(port, pid=pid)


def _llama_local(expected: Expected, engine: int | None, port: int, why: str | None) -> tuple[Item, ...]:
    if engine is None:
        return untold_items(expected)
    found = local_items(expected, pid=engine, port=port)
    if not found:
        raise ServerUnreachable(url=f"pid {engine}", why=why or "has ended")
    return found


def _asked(items: tuple[Item, ...], require: Require, tier: Tier) -> tuple[Item, ...]:
    if require == "local" and tier is not Tier.LOCAL:
        return (*items, unseen("local tier", Tier.LOCAL, "the process is out of sight"))
    return lowered(items, require)
