"""Sources that are refused, and steps that cannot be done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantplan.errors.artifacts import BadArtifact
from quantplan.errors.base import ExitCode, QuantplanError


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
    """Less free space than the work needs. `remote_bytes` is what would be enough (and is there) if the weights were
    read from the hub and not kept; None where that does not help."""

    def __init__(self, *, path: str | Path, need_bytes: int, free_bytes: int, remote_bytes: int | None = None) -> None:
        need, free = -(-need_bytes // 1024**2), free_bytes // 1024**2
        super().__init__(f"{path}: {need:,} MiB of disk space needed, {free:,} MiB free")
        self.path, self.need_bytes, self.free_bytes = str(path), need_bytes, free_bytes
        self.remote_bytes = remote_bytes


class DiskFull(NoDiskSpace):
    """The disk became full while a step wrote to it. `need_bytes` is the whole output's, None where unknown."""

    def __init__(self, *, step: str, path: str | Path, free_bytes: int, need_bytes: int | None) -> None:
        super().__init__(path=path, need_bytes=need_bytes or 0, free_bytes=free_bytes)
        need = f", {-(-need_bytes // 1024**2):,} MiB needed" if need_bytes else ""
        self.args = (f"{step}: the disk is full: {path} has {free_bytes // 1024**2:,} MiB free{need}",)
        self.step = step


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


class CannotReadRemotely(QuantplanError):
    """Weights that cannot be read from the hub by ranges and proved that way."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, model: str, why: str) -> None:
        super().__init__(f"{model}: its weights cannot be read from the hub by ranges: {why}")
        self.model, self.why = model, why


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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"
