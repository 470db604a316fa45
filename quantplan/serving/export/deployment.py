"""What every export says: one neutral description of a plan that is to run somewhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.receipt import sha256_of
from quantplan.artifact.store import gate_objection
from quantplan.errors import BadArtifact, BadValue, NoArtifact
from quantplan.llama import commands
from quantplan.llama.toolchain import BUILD_NUMBER, COMMIT
from quantplan.memory.estimate import HOST
from quantplan.model.gguf_split import shard_names
from quantplan.planner.plan import server_settings
from quantplan.quant.presets import PRESETS
from quantplan.serving.export.target import Target
from quantplan.serving.host_limit import PROCESS_BYTES, most_host_bytes
from quantplan.serving.source import Served
from quantplan.units import MIB

_BACKENDS = {"CUDA": "cuda", "ROCm": "rocm", "Vulkan": "vulkan", "SYCL": "sycl", "MTL": "metal"}
MODELS = PurePosixPath("/models")  # where containers have the model's folder
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LONGEST_NAME = 52  # a DNS label has 63, and formats append a word
PLACEHOLDER_IMAGE = f"registry.invalid/llama-server@sha256:{'0' * 64}"  # RFC 2606: nobody can serve it


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file that the engine reads. `role`: model (of a split one its first file), shard, mmproj or draft."""

    role: str
    path: Path  # absolute, on this host
    sha256: str
    bytes: int
    world_readable: bool  # it and its folder: services run as users of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNeed:
    """Cards that the plan uses. `backend`: cuda, rocm, vulkan, sycl or metal; `names` as the engine counts them."""

    backend: str
    names: tuple[str, ...]
    memory_bytes: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBuild:
    """The build of llama.cpp that the artifact was made and measured with. `number` is None for another build than
    the pinned one, whose tag nobody told."""

    commit: str
    number: int | None

    @property
    def label(self) -> str:
        return f"b{self.number}-{self.commit[:7]}" if self.number else self.commit[:7]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A validated artifact, its plan, and where it goes. `name` is fit for units, services and DNS labels.

    `verdict` is "pass", or why the artifact is not validated where that was allowed. `marks` are the figures that
    every format carries for machines to read; `argv` is the command of whatever runs llama-server.
    """

    name: str
    plan: Plan
    plan_file: Path
    plan_sha256: str
    folder: Path  # of the model on this host, absolute
    files: tuple[ModelFile, ...]
    verdict: str
    engine: EngineBuild
    gpu: GpuNeed | None
    memory_max_bytes: int
    target: Target

    @property
    def alias(self) -> str:
        """The name that clients ask for."""
        return self.plan.model

    @property
    def title(self) -> str:
        """Model and preset, for comments: on one line whatever somebody named a model."""
        return _on_one_line(f"{self.alias} {self.plan.quant}")

    @property
    def model(self) -> ModelFile:
        return self.files[0]

    @property
    def sha256(self) -> str:
        return self.model.sha256

    @property
    def n_ctx(self) -> int:
        """Tokens of the whole pool."""
        return self.plan.n_ctx_per_slot * self.plan.n_parallel

    @property
    def cpus(self) -> int:
        """The CPU limit: whole CPUs, as many as there are threads. Below it they would wait for each other."""
        return max(self.plan.threads, self.plan.threads_batch)

    @property
    def memory_high_bytes(self) -> int:
        """From here on the kernel takes file pages back; half of the process's own room is left above it."""
        return self.memory_max_bytes - PROCESS_BYTES // 2

    @property
    def n_queue(self) -> int:
        return self.plan.n_parallel if self.target.n_queue is None else self.target.n_queue

    @property
    def locks_memory(self) -> bool:
        return "mlock" in self.plan.load_mode

    @property
    def on_target(self) -> PurePath:
        """The model's folder where it will run."""
        return self.target.folder or self.folder

    def where(self, file: ModelFile, folder: PurePath | None = None, *, apart: bool = True) -> PurePath:
        """A file's path on the target; with `folder` where a container has the model's folder. Companions from
        elsewhere are mounted beside that, in /<role>/; unless `apart` all lies in one volume."""
        inside = file.path.parent == self.folder
        if folder is not None:
            return (
                folder / file.path.name if inside else (folder.parent if apart else folder) / file.role / file.path.name
            )
        return self.on_target / file.path.name if inside else file.path

    def argv(
        self, program: Sequence[str], *, host: str, port: int, folder: PurePath | None = None,
        apart: bool = True, api_key_file: str | None = None, renumbered: bool = False, cpu_range: bool = True,
    ) -> tuple[str, ...]:  # fmt: skip
        """llama-server with every setting of the plan. `renumbered`: a container that is given only the plan's cards
        counts them from 0. Without `cpu_range` the place pins CPUs by itself."""
        plan = self.plan
        if renumbered and plan.devices and self.gpu is not None:
            prefix = re.sub(r"\d+$", "", self.gpu.names[0])
            plan = replace(plan, devices=tuple(f"{prefix}{index}" for index in range(len(plan.devices))))
        found = {file.role: str(self.where(file, folder, apart=apart)) for file in reversed(self.files)}
        plan = replace(plan, mmproj=found.get("mmproj") if plan.mmproj else None, draft=found.get("draft"),
                       cpu_range=plan.cpu_range if cpu_range else None)  # fmt: skip
        key = Path(api_key_file) if api_key_file else None
        return commands.server(
            program, server_settings(plan, model=Path(found["model"]), host=host, port=port, api_key_file=key)
        )

    @property
    def marks(self) -> dict[str, str]:
        """The figures that must be the same in every format, in words for machines."""
        told = {
            "artifact": self.folder.name, "artifact-sha256": self.sha256, "plan-sha256": self.plan_sha256,
            "verdict": self.verdict, "engine-commit": self.engine.commit, "n-ctx": str(self.n_ctx),
            "n-ctx-per-slot": str(self.plan.n_ctx_per_slot), "n-parallel": str(self.plan.n_parallel),
            "threads": str(self.plan.threads), "threads-batch": str(self.plan.threads_batch),
            "memory-max-bytes": str(self.memory_max_bytes),
        }  # fmt: skip
        return {name: _on_one_line(value) for name, value in told.items()}


def deployment_of(served: Served, *, plan_file: Path, target: Target) -> Deployment:
    """The deployment of what `source.admit` has let pass. Raises BadArtifact, NoArtifact, BadValue."""
    plan, artifact = served.plan, served.artifact
    folder = served.model.resolve().parent
    _check_pair(served)
    _check_target(target)
    most = most_host_bytes(plan)
    if most is None:
        raise BadValue(what="plan", value=plan.model, why="says nothing of the host's memory: no limit can be set")
    objection = gate_objection(artifact) if artifact is not None else "has no receipt and no gate result"
    commit = served.build_commit or COMMIT
    pinned = COMMIT.startswith(commit)
    return Deployment(
        name=target.name or _name(plan), plan=plan, plan_file=plan_file.absolute(), plan_sha256=plan_digest(plan),
        folder=folder, files=_files(served, plan_file=plan_file), verdict=objection or "pass",
        engine=EngineBuild(commit=COMMIT if pinned else commit, number=BUILD_NUMBER if pinned else None),
        gpu=_gpu(plan), memory_max_bytes=-(-most // MIB) * MIB, target=target,
    )  # fmt: skip


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def plan_digest(plan: Plan) -> str:
    """The sha256 of a plan, whatever its file looks like."""
    return hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()


def _check_target(target: Target) -> None:
    """Raises BadValue for a name that no launcher takes, and an image that may be another one tomorrow."""
    if target.name is not None and not (_NAME.fullmatch(target.name) and len(target.name) <= _LONGEST_NAME):
        why = f"is no name for a service: a letter, then at most {_LONGEST_NAME - 1} of a-z, 0-9 and - between them"
        raise BadValue(what="name", value=target.name, why=why)
    if target.image is not None and not re.search(r"@sha256:[0-9a-f]{64}$", target.image):
        raise BadValue(what="image", value=target.image, why="is named without its digest: tomorrow it may be another")


def _check_pair(served: Served) -> None:
    """The plan is of this artifact, by hash, and where it has none by preset. Raises BadArtifact."""
    plan, artifact = served.plan, served.artifact
    if artifact is None:
        return
    planned, found = plan.source.get("sha256"), artifact.receipt.model_file.sha256
    if planned and planned != found:
        why = f"is {found[:16]}… by its receipt, the plan is for {str(planned)[:16]}…"
        raise BadArtifact(path=artifact.model, why=why)
    presets = {plan.quant, artifact.receipt.quant}
    if not planned and len(presets) > 1 and presets <= PRESETS.keys():
        raise BadArtifact(path=artifact.model, why=f"is {artifact.receipt.quant}, the plan is for {plan.quant}")


def _name(plan: Plan) -> str:
    told = f"{plan.model.rsplit('/', 1)[-1]}-{plan.quant}".lower()
    plain = re.sub(r"[^a-z0-9]+", "-", told).strip("-")[:_LONGEST_NAME].strip("-")
    return plain if plain[:1].isalpha() else f"m-{plain}"


def _files(served: Served, *, plan_file: Path) -> tuple[ModelFile, ...]:
    """All that the engine opens: the model, its other shards, projector and draft."""
    model = served.model.resolve()
    known = {entry.name: entry.sha256 for entry in served.artifact.receipt.files} if served.artifact else {}
    found = []
    for index, name in enumerate(shard_names(model.name) or (model.name,)):
        path = model.with_name(name)
        if not path.is_file():
            raise NoArtifact(path=path, why="is a part of the model and missing")
        found.append(_file("shard" if index else "model", path, sha256=known.get(name)))
    near = (model.parent, plan_file.absolute().parent)
    companions = (("mmproj", served.plan.mmproj), ("draft", served.plan.draft))
    return (*found, *(_file(role, _companion(named, role=role, near=near)) for role, named in companions if named))


def _file(role: str, path: Path, *, sha256: str | None = None) -> ModelFile:
    if not str(path).isprintable():
        raise BadValue(what="file", value=str(path), why="has a name that cannot be written on one line")
    told = path.stat()
    open_to_all = bool(told.st_mode & 0o004) and bool(path.parent.stat().st_mode & 0o001)
    return ModelFile(role=role, path=path, sha256=sha256 or sha256_of(path), bytes=told.st_size,
                     world_readable=open_to_all)  # fmt: skip


def _companion(named: str, *, role: str, near: Sequence[Path]) -> Path:
    for folder in (*near, Path.cwd()):
        path = folder / named
        if path.is_file():
            return path.resolve()
    raise BadValue(what=role, value=named, why="is no file here: an export says where it lies")


def _gpu(plan: Plan) -> GpuNeed | None:
    """The cards that the plan puts something on."""
    cards = [one for one in plan.memory if one.name != HOST and one.total_bytes > 0]
    if plan.devices is not None:
        cards = [one for one in cards if one.name in plan.devices]
    if not cards:
        return None
    prefix = re.sub(r"\d+$", "", cards[0].name)
    if prefix not in _BACKENDS:
        raise BadValue(what="device", value=cards[0].name, why="is of a backend that no launcher is told how to give")
    return GpuNeed(backend=_BACKENDS[prefix], names=tuple(one.name for one in cards),
                   memory_bytes=tuple(one.total_bytes for one in cards))  # fmt: skip
