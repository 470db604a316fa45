"""A unit, as systemd.syntax(7) and systemd.service(5) have it."""

from __future__ import annotations

import re
import shlex

from serving.export.facts import Facts, only, settings_of

from quantplan.serving.export.exported import File


def sections(text: str) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("["):
            here = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            here.append((name, value))
    return found


def value(text: str, name: str) -> str:
    """The only value of a setting of the service."""
    (found,) = [told for key, told in sections(text)["Service"] + sections(text)["Install"] if key == name]
    return found


def command(text: str, name: str, *, credentials: str = "%d") -> list[str]:
    """A command line as systemd starts it."""
    words = shlex.split(value(text, name))
    plain = [word.replace("%d/", f"{credentials}/") if word.startswith("%d/") else word for word in words]
    return [word.replace("%%", "%").replace("$$", "$") for word in plain]


def read(files: tuple[File, ...]) -> Facts:
    text = only(files)
    return Facts(
        marks=dict(sections(text)["X-Quantplan"]),
        settings=settings_of(command(text, "ExecStart")[1:]),
        memory_max_bytes=int(value(text, "MemoryMax")),
        cpus=int(value(text, "CPUQuota").removesuffix("%")) / 100,
    )
