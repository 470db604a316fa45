"""The table of formats, and an export by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from quantplan.errors import BadValue, TargetTooOld, UnknownFormat

if TYPE_CHECKING:
    from quantplan.serving.export.deployment import Deployment
    from quantplan.serving.export.exported import Exported, Exporter, Need


class Format(NamedTuple):
    """A format before it is imported. `options` are those of the command line beside the ones that all have."""

    module: str  # in this package, with an EXPORTER
    help: str
    options: Sequence[str] = ()


FORMATS: Mapping[str, Format] = {
    "systemd": Format("systemd", "a hardened unit that checks what it serves", ("program", "folder", "load", "drain")),
    "compose": Format(
        "compose", "a Compose file that checks the artifact first",
        ("image", "folder", "load", "drain", "cuda-arch"),
    ),
    "kubernetes": Format(
        "kubernetes", "a manifest of all that a pod needs", ("image", "load", "drain")
    ),
    "dockerfile": Format(
        "dockerfile", "an image of the engine at the artifact's commit", ("folder", "load", "cuda-arch")
    ),
    "env": Format("env", "llama-server's settings as variables", ("folder",)),
    "llama-swap": Format("llama_swap", "llama-swap's configuration of one or several models",
                         ("program", "folder", "load", "drain", "queue")),
    "preset": Format("preset", "llama-server's own router of one or several models: its preset file",
                     ("program", "folder")),
    "nginx": Format("nginx", "a front door with the plan's limits: nginx", ("queue", "keys", "server-name")),
    "ollama": Format("ollama", "a Modelfile, and Ollama's settings as variables", ("folder", "load", "queue")),
    "vllm": Format("vllm", "vLLM's commands for the plan's cards and nodes", ("nodes", "nvlink")),
    "prometheus": Format("prometheus", "what Prometheus scrapes, and alerts from the plan's figures", ("queue",)),
    "traefik": Format("traefik", "a front door with the plan's limits: Traefik",
                      ("queue", "keys", "server-name", "drain")),
}  # fmt: skip


def exporter(name: str) -> Exporter:
    """The exporter of a format. Raises UnknownFormat."""
    if name not in FORMATS:
        raise UnknownFormat(name=name, known=tuple(FORMATS))
    found: Exporter = importlib.import_module(f"quantplan.serving.export.{FORMATS[name].module}").EXPORTER
    return found


def export(name: str, deployments: tuple[Deployment, ...], *, version: str | None = None) -> Exported:
    """The files of a format. `version` is the target's where it is known. Raises UnknownFormat, TargetTooOld,
    BadValue, CannotExport."""
    found = exporter(name)
    if len(deployments) > 1 and not found.many:
        raise BadValue(what="format", value=name, why=f"takes one artifact, {len(deployments)} were given")
    if version is not None:
        for deployment in deployments:
            _check_version(found.target, version, found.needs(deployment))
    return found.write(deployments)


def _check_version(target: str, version: str, needs: tuple[Need, ...]) -> None:
    match = re.fullmatch(r"[vb]?(\d+(?:\.\d+)*)(?:[-+~].*)?", version.strip())
    if match is None:
        raise BadValue(what="version", value=version, why="is no version number")
    have = tuple(int(part) for part in match[1].split("."))
    for need in sorted(needs, key=lambda one: one.version, reverse=True):
        known = min(len(have), len(need.version))  # of "2" nobody knows which 2 it is
        if have[:known] < need.version[:known]:
            needed = ".".join(map(str, need.version))
            raise TargetTooOld(target=target, version=version, needed=needed, what=need.what)
