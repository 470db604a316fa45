"""A Compose file."""

from __future__ import annotations

from typing import Any

import yaml
from serving.export.facts import Facts, settings_of, sums

from quantplan.serving.export.exported import File


def document(files: tuple[File, ...]) -> dict[str, Any]:
    """compose.yaml with its $$ taken back, as Compose does."""
    (text,) = [file.text for file in files if file.name == "compose.yaml"]
    assert "$" not in str(yaml.safe_load(text)).replace("$$", ""), "a variable would be put in"
    told: dict[str, Any] = yaml.safe_load(text.replace("$$", "$"))
    return told


def read(files: tuple[File, ...]) -> Facts:
    told = document(files)
    server = told["services"]["llama-server"]
    assert server["mem_limit"] == server["memswap_limit"]
    labels = {name.removeprefix("quantplan."): value for name, value in server["labels"].items()}
    assert labels == told["x-quantplan"]
    return Facts(
        marks=labels,
        settings=settings_of(server["command"]),
        memory_max_bytes=int(server["mem_limit"].removesuffix("b")),
        cpus=server["cpus"],
        hashes=sums(told["configs"]["artifact-sha256"]["content"]),
    )
