"""llama-swap's configuration, its macros put in place."""

from __future__ import annotations

import shlex
from typing import Any

import yaml
from serving.export.facts import Facts, commented, only, settings_of

from quantplan.serving.export.exported import File


def commands(document: dict[str, Any]) -> dict[str, list[str]]:
    """The command of each model, as llama-swap starts it on port 5800."""
    found = {}
    for name, model in document["models"].items():
        text = model["cmd"].replace("${PORT}", "5800")
        for macro, value in model["macros"].items():
            text = text.replace(f"${{{macro}}}", value)
        assert "${" not in text
        found[name] = shlex.split(text)
    return found


def read(files: tuple[File, ...]) -> Facts:
    text = only(files)
    document = yaml.safe_load(text)
    ((name, argv),) = commands(document).items()
    assert document["models"][name]["metadata"] == commented(text)
    settings = settings_of(argv[1:])
    assert name == settings["alias"]
    if document["apiKeys"]:
        settings["api-key-file"] = document["apiKeys"][0]  # it checks the keys before the engine
    return Facts(marks=commented(text), settings=settings)
