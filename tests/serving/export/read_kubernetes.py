"""A manifest of several documents."""

from __future__ import annotations

from typing import Any

import yaml
from serving.export.facts import Facts, only, settings_of, sums

from quantplan.serving.export.exported import File


def documents(files: tuple[File, ...]) -> dict[str, Any]:
    """The documents by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(only(files))}


def read(files: tuple[File, ...]) -> Facts:
    found = documents(files)
    pod = found["Deployment"]["spec"]["template"]
    (server,) = pod["spec"]["containers"]
    limits = server["resources"]["limits"]
    assert limits == server["resources"]["requests"]
    return Facts(
        marks={name.removeprefix("quantplan/"): value for name, value in pod["metadata"]["annotations"].items()},
        settings=settings_of([word.replace("$$(", "$(") for word in server["args"]]),
        memory_max_bytes=int(limits["memory"].removesuffix("Mi")) * 1024**2,
        cpus=float(limits["cpu"]),
        hashes=sums(found["ConfigMap"]["data"]["artifact.sha256"]),
    )
