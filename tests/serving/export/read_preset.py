"""llama-server's preset file as its router reads it, and the router's own command."""

from __future__ import annotations

import shlex

from serving.export.facts import Facts, commented, settings_of

from quantplan.serving.export.exported import File


def sections(text: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("["):
            name = line[1:-1]
        elif line and not line.startswith("#") and name:
            key, value = line.split(" = ", 1)
            found.setdefault(name, {})[key] = value
    return found


def router_words(script: str) -> list[str]:
    """The command that the script ends with."""
    return shlex.split(script[script.index("exec ") :].removeprefix("exec ").replace("\\\n", " "))


def read(files: tuple[File, ...]) -> Facts:
    preset, script = files
    assert commented(preset.text) == commented(script.text)
    ((name, told),) = sections(preset.text).items()
    words = [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in told.items()
             if key != "load-on-startup"]  # fmt: skip
    argv = [part for word in words for part in word.split("=", 1)]
    settings = settings_of(argv) | {"alias": name}
    own = router_words(script.text)
    return Facts(
        marks=commented(preset.text), settings=settings | {"api-key-file": own[own.index("--api-key-file") + 1]}
    )
