"""Where and how an export is to run: what no plan says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how it is to run: what no plan says. Paths are those of the target; None is the format's usual one.

    `n_queue`: requests that may wait beside those in slots, at front doors (None: as many as there are slots); where
    there are several of `n_keys`, no one may take all places.
    `program` is llama-server where the target runs it without a container, `quantplan` runs the contract check there,
    `checker` are the folders that it needs for that. `cuda_architectures` are those to build for, as CMake is told.
    """

    host: str | None = None
    port: int = 8080
    folder: Path | None = None
    api_key_file: str | None = None
    image: str | None = None
    name: str | None = None
    server_name: str | None = None
    n_queue: int | None = None
    n_nodes: int = 1
    nvlink: bool | None = None  # between the cards of a node; None where nobody said
    n_keys: int = 1
    drain_s: int = 30
    load_s: int = 600
    program: tuple[str, ...] = ("/usr/local/bin/llama-server",)
    quantplan: tuple[str, ...] = ("/usr/local/bin/quantplan",)
    checker: tuple[Path, ...] = ()
    cuda_architectures: str | None = None
