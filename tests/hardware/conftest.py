"""Recorded hosts: folders under tests/data/hosts, read by the same code as the running machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from quantplan.hardware.detect import detect_host
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.nvml import NvmlRefused
from quantplan.llama.types import Completed

HOSTS = Path(__file__).parent.parent / "data" / "hosts"


class RecordedNvml:
    """NVML's answers from nvml.json; what was not recorded is not supported."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def query(self, function: str, *args: object) -> Any:
        answer = self.answers.get(f"{function}({','.join(map(str, args))})", {"refused": 3, "text": "Not Supported"})
        if isinstance(answer, dict) and "refused" in answer:
            raise NvmlRefused(function, answer["refused"], answer["text"])
        return answer["handle"] if isinstance(answer, dict) and "handle" in answer else answer


class SysctlText:
    """A runner that answers every program with one recorded text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, argv: Sequence[str], **_: object) -> Completed:
        lines = tuple(self.text.splitlines())
        return Completed(argv=tuple(argv), returncode=0, seconds=0.0, peak_rss_bytes=None, stdout=lines, stderr=())


def recorded_host(name: str, *, env: dict[str, str] | None = None, folder: Path | None = None) -> HostFacts:
    """A recorded host as detection reads it."""
    where = HOSTS / name
    sysctl = where / "sysctl.txt"
    if sysctl.is_file():
        return detect_host(root=where / "root", system="Darwin", run=SysctlText(sysctl.read_text()))
    nvml = where / "nvml.json"
    return detect_host(
        root=where / "root",
        nvml=RecordedNvml(json.loads(nvml.read_text())) if nvml.is_file() else None,
        env=env or {},
        models_folder=folder,
    )


@pytest.fixture
def host() -> Callable[..., HostFacts]:
    return recorded_host


@pytest.fixture
def nvml_of() -> Callable[[str], RecordedNvml]:
    return lambda name: RecordedNvml(json.loads((HOSTS / name / "nvml.json").read_text()))


@pytest.fixture
def recorded() -> type[RecordedNvml]:
    return RecordedNvml


@pytest.fixture
def sysctl_text() -> type[SysctlText]:
    return SysctlText


@pytest.fixture
def hosts_folder() -> Path:
    return HOSTS
