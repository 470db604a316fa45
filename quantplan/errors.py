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


class HubNoRanges(HubFailed):
    """The server sends whole files only: a reading cannot be taken up in the middle."""

    def __init__(self, *, url: str, status: int) -> None:
        super().__init__(url=url, status=status, why="the server does not serve byte ranges")


class HubRedirectRefused(HubFailed):
    """The hub sent us to an address that does not answer us: its signature has run out, or the file is gone there."""

    def __init__(self, *, url: str, status: int) -> None:
        super().__init__(url=url, status=status, why="at the address that the hub redirects to")


class HubContentDiffers(HubError):
    """What arrives is not the file that the hub describes, time after time."""

    def __init__(self, *, repo: str, file: str, expected: str, found: str, n_attempts: int) -> None:
        super().__init__(
            f"{repo}/{file}: its hash is {found[:16]}… and the hub says {expected[:16]}…, "
            f"also when it is fetched again ({n_attempts} times): nothing of it was kept"
        )
        self.repo, self.file, self.expected, self.found = repo, file, expected, found


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


class DiskFull(NoDiskSpace):
    """The disk became full while a step wrote to it. `need_bytes` is the whole output's, None where unknown."""

    def __init__(self, *, step: str, path: str | Path, free_bytes: int, need_bytes: int | None) -> None:
        super().__init__(path=path, need_bytes=need_bytes or 0, free_bytes=free_bytes)
        need = f", {-(-need_bytes // 1024**2):,} MiB needed" if need_bytes else ""
        self.args = (f"{step}: the disk is full: {path} has {free_bytes // 1024**2:,} MiB free{need}",)
        self.step = step


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


class RemoteCode(QuantplanError):
    """A repository whose own Python would be run by the conversion."""

    def __init__(self, *, model: str, named_in: Sequence[str], files: Sequence[str]) -> None:
        verb = "asks" if len(named_in) == 1 else "ask"
        what = f"{' and '.join(named_in)} (auto_map) {verb} for" if named_in else "it holds"
        super().__init__(f"{model}: {what} Python code of the repository ({_few(files)}), which nobody here has read")
        self.model, self.named_in, self.files = model, tuple(named_in), tuple(files)


class PickleWeights(QuantplanError):
    """Weights in Python's pickle format alone."""

    def __init__(self, *, model: str, files: Sequence[str]) -> None:
        super().__init__(f"{model}: its weights are pickled ({_few(files)}), and there are no safetensors")
        self.model, self.files = model, tuple(files)


class HoldsGgufOnly(QuantplanError):
    """A repository of finished GGUF files: nothing to convert."""

    def __init__(self, *, repo: str, file: str | None = None) -> None:
        super().__init__(f"{repo}: it holds finished GGUF files and no checkpoint to build from")
        self.repo, self.file = repo, file


class HoldsNoGguf(QuantplanError):
    """A repository without a GGUF model."""

    def __init__(self, *, repo: str) -> None:
        super().__init__(f"{repo}: it holds no GGUF model")
        self.repo = repo


class TokenizerRefused(QuantplanError):
    """The pinned converter makes no vocabulary of this tokenizer."""

    def __init__(self, *, model: str, why: str) -> None:
        super().__init__(f"{model}: the pinned converter does not recognize its tokenizer: {why}")
        self.model, self.why = model, why


class AlreadyQuantized(QuantplanError):
    """A preset that would quantize again what the source has quantized."""

    exit_code = ExitCode.USAGE

    def __init__(
        self, *, model: str, preset: str, n_tensors: int, kinds: Sequence[str], possible: Sequence[str]
    ) -> None:
        instead = f"; possible: {', '.join(possible)}" if possible else ""
        super().__init__(
            f"{model}: {preset} would quantize {n_tensors} tensors again that are {' and '.join(kinds)} in the source, "
            f"which llama-quantize refuses{instead}"
        )
        self.model, self.preset, self.possible = model, preset, tuple(possible)


class ImatrixNeeded(QuantplanError):
    """A preset that llama-quantize refuses without an importance matrix."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, preset: str) -> None:
        super().__init__(f"preset {preset!r} needs an importance matrix for this model, and none is given")
        self.preset = preset


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"


class TemplateLost(QuantplanError):
    """A chat template that is in the source and would not be in the GGUF."""

    def __init__(self, *, model: str) -> None:
        super().__init__(f"{model}: it has a chat template, and the converter does not put it into the GGUF")
        self.model = model


class ScanFailed(BadArtifact):
    """A GGUF whose structure is unsound: it was not linked and will not be loaded."""

    def __init__(self, *, path: str | Path, findings: Sequence[str]) -> None:
        super().__init__(path=path, why=f"the scan found what no sound GGUF has: {'; '.join(findings)}")
        self.findings = tuple(findings)


class UnknownItem(QuantplanError):
    """Nothing of that name is kept here."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, name: str) -> None:
        super().__init__(f"nothing called {name!r} is kept here")
        self.name = name


class StillNeeded(QuantplanError):
    """Something that an artifact links to, or that somebody works on."""

    def __init__(self, *, name: str, needed_by: Sequence[str]) -> None:
        super().__init__(f"{name} is needed by {_few(needed_by)}: it was not deleted")
        self.name, self.needed_by = name, tuple(needed_by)


class NotConfirmed(QuantplanError):
    """A deletion that nobody said yes to."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, what: str) -> None:
        super().__init__(f"{what}: nothing was deleted, since nobody said yes")
        self.what = what


class BadPolicy(QuantplanError):
    """A policy that cannot be read, has a key nobody knows, or a limit that nothing can meet."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, policy: str, key: str | None, why: str, near: Sequence[str] = ()) -> None:
        like = f"; near: {', '.join(near)}" if near else ""
        at = f" {key}:" if key else ""
        super().__init__(f"policy {policy}:{at} {why}{like}")
        self.policy, self.key, self.why, self.near = policy, key, why, tuple(near)


class NotComparable(QuantplanError):
    """A reference and an artifact that are not of one model: no measurement of the one against the other has a
    meaning."""

    def __init__(self, *, artifact: str, reference: str, why: str) -> None:
        super().__init__(f"{artifact} cannot be measured against {reference}: {why}")
        self.artifact, self.reference, self.why = artifact, reference, why


class DamagedWeights(QuantplanError):
    """Weights with scales or values that are not finite: refused before anything is measured."""

    def __init__(self, *, path: str, tensors: Sequence[str]) -> None:
        shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        super().__init__(f"{path}: values that are not finite in {shown}")
        self.path, self.tensors = path, tuple(tensors)


class NoReference(QuantplanError):
    """Nothing to measure an artifact against."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, artifact: str, why: str) -> None:
        super().__init__(f"{artifact}: no 16-bit reference to measure against ({why})")
        self.artifact, self.why = artifact, why


class BadText(QuantplanError):
    """A text that cannot be read as UTF-8, or holds nothing."""

    def __init__(self, *, text: str, why: str) -> None:
        super().__init__(f"text {text}: {why}")
        self.text, self.why = text, why


class HistoryUnreadable(QuantplanError):
    """A store of results that is damaged, locked or was written by a newer quantplan."""

    def __init__(self, *, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: the history {why}")
        self.path, self.why = str(path), why


class NoHistory(QuantplanError):
    """Nothing was recorded of a model."""

    def __init__(self, *, model: str, near: Sequence[str] = ()) -> None:
        like = f"; recorded here: {', '.join(near)}" if near else ""
        super().__init__(f"nothing was recorded of {model!r}{like}")
        self.model, self.near = model, tuple(near)


class DifferentSources(QuantplanError):
    """Artifacts that were not made from one source: their figures say nothing about each other."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, first: str, other: str, why: str) -> None:
        super().__init__(f"{first} and {other} were not made from one source: {why}")
        self.first, self.other, self.why = first, other, why


class ExtraMissing(QuantplanError):
    """A Python package of an extra that this needs."""

    def __init__(self, *, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed")
        self.package, self.extra, self.what = package, extra, what
