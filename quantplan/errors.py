"""Everything quantplan refuses or fails at. An error carries data; its message is built from the data.

No flag names here: hints with the next command to type are added at the edge, in `quantplan.cli.hints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process answers to the shell."""

    OK = 0
    ERROR = 1  # could not do or measure it
    USAGE = 2
    DOES_NOT_FIT = 3
    CHECK_FAILED = 4  # a check or gate failed
    INCONCLUSIVE = 5


class QuantplanError(Exception):
    """Base of all errors that are part of the interface. `kind` is the class name in JSON."""

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR

    @property
    def kind(self) -> str:
        return type(self).__name__


class BadValue(QuantplanError):
    """A value that cannot be right, named with the reason."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, what: str, value: object, why: str) -> None:
        super().__init__(f"{what} {value!r} {why}" if value is not None else f"{what} {why}")
        self.what, self.value, self.why = what, value, why


class UnknownModel(QuantplanError):
    """No file, folder, catalog entry or repository of that name."""

    def __init__(self, *, model: str, near: Sequence[str] = ()) -> None:
        like = f"; near names: {', '.join(near)}" if near else ""
        super().__init__(f"no model called {model!r}: not a file, not a folder, not a catalog id{like}")
        self.model, self.near = model, tuple(near)


class RepositoryNotFound(UnknownModel):
    """The hub has no such repository, or does not show it to us: it answers the same for missing and private."""

    def __init__(self, *, repo: str, near: Sequence[str] = ()) -> None:
        super().__init__(model=repo, near=near)
        like = f"; near names: {', '.join(near)}" if near else ""
        self.args = (f"the hub has no repository {repo!r}, or it is private and your token does not open it{like}",)
        self.repo = repo


class NotInCatalog(UnknownModel):
    """No catalog model of that name, and the hub could not be asked about it."""

    def __init__(self, *, model: str, near: Sequence[str], why: str) -> None:
        super().__init__(model=model, near=near)
        self.args = (f"no model called {model!r} in the catalog; near names: {', '.join(near)} (hub: {why})",)
        self.why = why


class HubError(QuantplanError):
    """The hub refused or could not be asked."""


class RepositoryGated(HubError):
    """The repository is there, but its owner wants an agreement or an approval first."""

    def __init__(self, *, repo: str, has_token: bool) -> None:
        why = "your token's account has not been granted access" if has_token else "no token was given"
        super().__init__(f"{repo}: this repository is gated: {why}")
        self.repo, self.has_token = repo, has_token


class HubTokenRefused(HubError):
    """The token itself is invalid or expired."""

    def __init__(self, *, repo: str) -> None:
        super().__init__(f"{repo}: the hub does not accept the token (invalid or expired)")
        self.repo = repo


class RevisionNotFound(HubError):
    """The repository has no such branch, tag or commit."""

    def __init__(self, *, repo: str, revision: str) -> None:
        super().__init__(f"{repo}: no revision {revision!r}")
        self.repo, self.revision = repo, revision


class HubFileNotFound(HubError):
    """The repository has no such file at that revision."""

    def __init__(self, *, repo: str, file: str, choices: Sequence[str] = ()) -> None:
        like = f"; it has {', '.join(choices)}" if choices else ""
        super().__init__(f"{repo}: no file {file!r}{like}")
        self.repo, self.file, self.choices = repo, file, tuple(choices)


class ChooseFile(QuantplanError):
    """Several files of a repository or folder would do: one must be named."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, model: str, asked: str | None, choices: Sequence[str]) -> None:
        what = f"{asked!r} matches" if asked else "it has"
        super().__init__(f"{model}: {what} {len(choices)} models: {', '.join(choices)}")
        self.model, self.asked, self.choices = model, asked, tuple(choices)


class HubRateLimited(HubError):
    """Too many requests; the hub says for how long, or does not (None)."""

    def __init__(self, *, url: str, retry_after_s: int | None) -> None:
        when = f"; try again in {retry_after_s} s" if retry_after_s is not None else ""
        super().__init__(f"{url}: rate limited by the server{when}")
        self.url, self.retry_after_s = url, retry_after_s


class HubOffline(HubError):
    """HF_HUB_OFFLINE is set, and the answer is neither cached nor in the catalog."""

    def __init__(self, *, model: str) -> None:
        super().__init__(
            f"{model}: the hub may not be asked (offline mode), and nothing about it is cached or in the catalog"
        )
        self.model = model


class HubUnreachable(HubError):
    """No answer: no network, no such host, a timeout or a broken connection."""

    def __init__(self, *, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url, self.why = url, why


class HubFailed(HubError):
    """An answer that is neither the data nor a refusal we know."""

    def __init__(self, *, url: str, status: int, why: str = "") -> None:
        super().__init__(f"{url}: the server answered {status}{f' ({why})' if why else ''}")
        self.url, self.status, self.why = url, status, why


class BadModelFile(QuantplanError):
    """A model file or folder that cannot be what it claims to be."""

    def __init__(self, *, path: str | Path, why: str, offset: int | None = None) -> None:
        at = f" (at byte {offset})" if offset is not None else ""
        super().__init__(f"{path}: {why}{at}")
        self.path, self.why, self.offset = str(path), why, offset


class UnsupportedArchitecture(QuantplanError):
    """An architecture that neither the tables nor the pinned converter know."""

    def __init__(self, *, architecture: str, path: str | Path, supported: Sequence[str] = ()) -> None:
        super().__init__(f"{path}: architecture {architecture!r} is not supported by the pinned llama.cpp")
        self.architecture, self.path, self.supported = architecture, str(path), tuple(supported)


class BadConfig(QuantplanError):
    """A config.json that lacks what its architecture needs, or has it in a form that cannot be right."""

    def __init__(self, *, key: str, why: str) -> None:
        super().__init__(f"config.json: {key} {why}")
        self.key, self.why = key, why


class UnsupportedQuantization(QuantplanError):
    """A checkpoint in a quantization that the pinned converter does not read."""

    def __init__(self, *, method: str, why: str = "") -> None:
        told = f": {why}" if why else ""
        super().__init__(f"the pinned converter does not read checkpoints quantized with {method}{told}")
        self.method, self.why = method, why


class DoesNotFit(QuantplanError):
    """A plan needs more than a device has."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, device: str, need_bytes: int, free_bytes: int, what: str = "the plan") -> None:
        need, free = -(-need_bytes // 1024**2), free_bytes // 1024**2
        super().__init__(f"{what} needs {need:,} MiB on {device}, which has {free:,} MiB")
        self.device, self.need_bytes, self.free_bytes = device, need_bytes, free_bytes


class ToolMissing(QuantplanError):
    """A program that this needs is not installed."""

    def __init__(self, *, tool: str, why: str = "was not found") -> None:
        super().__init__(f"{tool} {why}")
        self.tool, self.why = tool, why


class ToolFailed(QuantplanError):
    """A program ran and failed; carries its last lines."""

    def __init__(self, *, step: str, argv: Sequence[str], returncode: int | None, last_lines: Sequence[str]) -> None:
        how = "could not be started" if returncode is None else f"ended with status {returncode}"
        said = "".join(f"\n  | {line}" for line in last_lines)
        super().__init__(f"{step}: {Path(argv[0]).name} {how}{said}")
        self.step, self.argv, self.returncode, self.last_lines = step, tuple(argv), returncode, tuple(last_lines)


class NoDiskSpace(QuantplanError):
    """Less free space than the work needs."""

    def __init__(self, *, path: str | Path, need_bytes: int, free_bytes: int) -> None:
        need, free = -(-need_bytes // 1024**2), free_bytes // 1024**2
        super().__init__(f"{path}: {need:,} MiB of disk space needed, {free:,} MiB free")
        self.path, self.need_bytes, self.free_bytes = str(path), need_bytes, free_bytes


class BadArtifact(QuantplanError):
    """An artifact that is incomplete, changed since its receipt, or not validated."""

    exit_code = ExitCode.CHECK_FAILED

    def __init__(self, *, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = str(path), why


class NoArtifact(BadArtifact):
    """A path where no artifact is."""

    exit_code = ExitCode.ERROR


class PortInUse(QuantplanError):
    """The address a server was asked to listen on is taken."""

    def __init__(self, *, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} is already in use")
        self.host, self.port = host, port


class UnknownGpu(QuantplanError):
    """No card of that name in the table."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str, near: Sequence[str] = ()) -> None:
        like = f"; near names: {', '.join(near)}" if near else ""
        super().__init__(f"no GPU called {name!r} is known{like}")
        self.name, self.near = name, tuple(near)


class AmbiguousGpu(QuantplanError):
    """A name that several cards with unlike memory or speed bear."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str, candidates: Sequence[str]) -> None:
        super().__init__(f"{name!r} is several GPUs: {', '.join(candidates)}")
        self.name, self.candidates = name, tuple(candidates)


class BadProfile(QuantplanError):
    """A hardware profile that cannot be read or describes an impossible machine."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, profile: str | Path, where: str, why: str, candidates: Sequence[str] = ()) -> None:
        choose = f"; known here: {', '.join(candidates)}" if candidates else ""
        at = f" {where}:" if where else ""
        super().__init__(f"hardware profile {profile}:{at} {why}{choose}")
        self.profile, self.where, self.why, self.candidates = str(profile), where, why, tuple(candidates)


class HolesFilled(QuantplanError):
    """A filesystem on which a weightless model would take its whole size, on disk or in RAM."""

    def __init__(self, *, path: str | Path, used_bytes: int, probe_bytes: int, when: str) -> None:
        became = f"{used_bytes // 1024**2} of {probe_bytes // 1024**2} MiB of an empty file became real"
        why = "so a model without weights would take its full size there"
        super().__init__(f"{path}: the filesystem fills holes when {when} ({became}), {why}")
        self.path, self.used_bytes, self.when = str(path), used_bytes, when


class CannotExpress(QuantplanError):
    """llama-fit-params has no word for this; a real server start has."""

    def __init__(self, *, what: Sequence[str]) -> None:
        super().__init__(f"llama-fit-params cannot express {', '.join(what)}; only a real server start can answer")
        self.what = tuple(what)


class BadKeyFile(QuantplanError):
    """A file of API keys that is unsafe or cannot be read. Never quotes its text."""

    def __init__(self, *, path: str | Path, why: str, others: bool = False) -> None:
        super().__init__(f"key file {path}: {why}")
        self.path, self.why, self.others = str(path), why, others


class NotEnoughNow(DoesNotFit):
    """Less memory is free now than the plan needs. `holders` are (pid, name, bytes) of those who have it."""

    def __init__(
        self, *, device: str, need_bytes: int, free_bytes: int, holders: Sequence[tuple[int, str, int]]
    ) -> None:
        super().__init__(device=device, need_bytes=need_bytes, free_bytes=free_bytes)
        who = ", ".join(f"{name} (pid {pid}) {held // 1024**2:,} MiB" for pid, name, held in holders)
        self.args = (f"{self.args[0]} free now{f'; held by {who}' if who else ''}",)
        self.holders = tuple(holders)


class OtherHost(QuantplanError):
    """A plan that was made for another machine. `reasons` say what is not as planned, as far as that can be told."""

    exit_code = ExitCode.CHECK_FAILED

    def __init__(self, *, planned: str, found: str, reasons: Sequence[str]) -> None:
        why = f": {'; '.join(reasons)}" if reasons else ""
        other = f"was made for another machine ({planned}, this is {found})"
        super().__init__(f"the plan {'cannot be kept on this machine' if planned == found else other}{why}")
        self.planned, self.found, self.reasons = planned, found, tuple(reasons)


class KeyExposed(QuantplanError):
    """A file of API keys that others may read or write, or that holds none."""

    def __init__(self, *, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = str(path), why


class PublicWithoutKey(QuantplanError):
    """A server that everybody on the network could use."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, host: str, lacks: str) -> None:
        super().__init__(f"{host} is reachable from other machines, and {lacks}")
        self.host, self.lacks = host, lacks


class KeepsCrashing(QuantplanError):
    """An engine that was started again and again, and ended each time."""

    def __init__(self, *, times: int, seconds: float, status: int | None, last_lines: Sequence[str]) -> None:
        said = "".join(f"\n  | {line}" for line in last_lines)
        super().__init__(f"the engine ended {times} times in {seconds:.0f} s, last with status {status}{said}")
        self.times, self.status, self.last_lines = times, status, tuple(last_lines)


class ServerUnreachable(QuantplanError):
    """Nobody answers at an address, or not as a model server does."""

    def __init__(self, *, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url, self.why = url, why


class BadJob(QuantplanError):
    """A file of requests with a line that is none; nothing was sent."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, path: str | Path, line: int | None, why: str) -> None:
        at = f", line {line}" if line is not None else ""
        super().__init__(f"{path}{at}: {why}")
        self.path, self.line, self.why = str(path), line, why
