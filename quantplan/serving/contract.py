"""Is what runs what was planned? The items of the contract, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from quantplan.artifact.plan_file import Plan
from quantplan.errors import BadModelFile, ExitCode
from quantplan.model.gguf_header import GgufHeader, read_gguf_header
from quantplan.serving.source import Served


class Status(Enum):
    """What came of looking at one item."""

    OK = "ok"
    MISMATCH = "mismatch"
    NOT_VERIFIABLE = "not verifiable here"


class Tier(Enum):
    """Where one stands: on the server's host with its process in sight, or at the other end of HTTP."""

    LOCAL = "local"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that was looked at. `required`: the plan says something about it that has to be so."""

    name: str
    status: Status
    tier: Tier
    planned: object = None
    found: object = None
    why: str | None = None
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the plan and its artifact say. None where neither is at hand to say it."""

    plan: Plan
    model: Path | None = None
    hashes: frozenset[str] = frozenset()
    commit: str | None = None
    template: str | None = None
    weight_bytes: int | None = None
    n_params: int | None = None
    own_sampling: bool | None = None
    key: str | None = None
    public: bool = False


def expected_of(served: Served, *, key: str | None = None, public: bool = False) -> Expected:
    """What has to be served, from the plan, the receipt beside it and the model file's header."""
    hashes = {served.sha256} if served.sha256 else set()
    if served.artifact is not None:
        hashes |= {entry.sha256 for entry in served.artifact.receipt.files if entry.name.endswith(".gguf")}
    header = _header(served.model)
    template = header.metadata.get("tokenizer.chat_template") if header else None
    return Expected(
        plan=served.plan, model=served.model if served.model.is_file() else None, hashes=frozenset(hashes),
        commit=served.build_commit, template=template if isinstance(template, str) else None,
        weight_bytes=sum(tensor.n_bytes for tensor in header.tensors) if header else None,
        n_params=_n_params(header) if header else None, key=key, public=public,
        own_sampling=any(name.startswith("general.sampling.") for name in header.metadata) if header else None,
    )  # fmt: skip


def _header(model: Path) -> GgufHeader | None:
    try:
        return read_gguf_header(model) if model.is_file() else None
    except BadModelFile:
        return None


def _n_params(header: GgufHeader) -> int:
    from math import prod

    return sum(prod(tensor.shape) for tensor in header.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found. `why_remote` says why the process was out of sight."""

    url: str
    runtime: str
    tier: Tier
    pid: int | None
    why_remote: str | None
    items: tuple[Item, ...]

    @property
    def verdict(self) -> Status:
        """A mismatch anywhere; else not verifiable where a required item was seen in no tier; else ok."""
        if any(item.status is Status.MISMATCH for item in self.items):
            return Status.MISMATCH
        return Status.NOT_VERIFIABLE if self.unverified else Status.OK

    @property
    def unverified(self) -> tuple[str, ...]:
        """Required items that no tier could verify, in order."""
        seen = {item.name for item in self.items if item.status is Status.OK}
        open_ones = (item.name for item in self.items if item.required and item.name not in seen)
        return tuple(dict.fromkeys(open_ones))

    @property
    def exit_code(self) -> ExitCode:
        return _EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, object]:
        from dataclasses import asdict

        return {
            "url": self.url, "runtime": self.runtime, "tier": self.tier, "pid": self.pid,
            "why_remote": self.why_remote, "verdict": self.verdict, "items": [asdict(item) for item in self.items],
        }  # fmt: skip


_EXIT_CODES = {
    Status.OK: ExitCode.OK,
    Status.MISMATCH: ExitCode.CHECK_FAILED,
    Status.NOT_VERIFIABLE: ExitCode.INCONCLUSIVE,
}
Require = Literal["all", "local", "remote"]


def compared(
    name: str, tier: Tier, *, planned: object, found: object, equal: bool | None = None, why: str | None = None,
    required: bool = True,
) -> Item:  # fmt: skip
    """An item by comparison; `equal` where == is not the question."""
    same = planned == found if equal is None else equal
    status = Status.OK if same else Status.MISMATCH
    return Item(name=name, status=status, tier=tier, planned=planned, found=found, why=why, required=required)


def unseen(name: str, tier: Tier, why: str, *, planned: object = None, required: bool = True) -> Item:
    """An item that cannot be verified from here."""
    return Item(name=name, status=Status.NOT_VERIFIABLE, tier=tier, planned=planned, why=why, required=required)


def lowered(items: Sequence[Item], require: Require) -> tuple[Item, ...]:
    """The items with what is asked of them: with `remote`, what HTTP does not tell is not required."""
    from dataclasses import replace

    if require != "remote":
        return tuple(items)
    return tuple(replace(item, required=item.required and item.tier is Tier.REMOTE) for item in items)
