"""The process that looks at every number of a GGUF with the engine's own check, within limits of memory and time.

    python -I … JOB    (JOB: {"library", "file", "tensors": [[name, type, type_size, n_bytes, offset], …], "cpu_s"})

Only libggml-base is loaded, whose ggml_validate_row_data reads a piece of memory: no loader, no backend, no model.
Without a library our own check takes its place (pipeline/tensor_data.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SLICE_BYTES = 8 * 1024 * 1024
MORE_BYTES = 128 * 1024 * 1024


def main() -> None:
    """One job, of a file; a line of JSON for each tensor that is refused, and one at the end."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    look = _engine(job["library"]) if job["library"] else _own()
    _limit(job["cpu_s"])
    for name, kind, type_size, n_bytes, offset in job["tensors"]:
        for told in look(Path(job["file"]), name, kind, type_size, n_bytes, offset):
            sys.stdout.write(json.dumps({"tensor": name, **told}) + "\n")
            sys.stdout.flush()
    sys.stdout.write('{"done": true}\n')


def _limit(cpu_s: int) -> None:
    if sys.platform.startswith("linux"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for kind, value in (
        (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 16),
    ):  # fmt: skip
        resource.setrlimit(kind, (value, value))


def _engine(library: str) -> Any:
    check = ctypes.CDLL(library).ggml_validate_row_data
    check.restype, check.argtypes = ctypes.c_bool, (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    buffer = ctypes.create_string_buffer(SLICE_BYTES)
    view = memoryview(buffer)

    def look(path: Path, _name: str, kind: int, type_size: int, n_bytes: int, offset: int) -> Iterator[dict[str, Any]]:
        step = SLICE_BYTES // type_size * type_size
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            for at in range(0, n_bytes, step):
                n = min(step, n_bytes - at)
                if file.readinto(view[:n]) < n:
                    yield {"ends": True}
                    return
                if not check(kind, ctypes.addressof(buffer), n):
                    yield {"offset": offset + at, "size": type_size}
                    return

    return look


def _own() -> Any:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from quantplan.ggml_types import ggml_types_by_value
    from quantplan.model.gguf_header import GgufTensor
    from quantplan.pipeline.tensor_data import check_tensor

    types = ggml_types_by_value()

    def look(path: Path, name: str, kind: int, _size: int, n_bytes: int, offset: int) -> Iterator[dict[str, Any]]:
        tensor = GgufTensor(name=name, shape=(1,), type_name=types[kind].name, offset=0, n_bytes=n_bytes)
        try:
            bad = check_tensor(path, tensor, offset)
        except OSError:
            yield {"ends": True}
            return
        if bad is not None:
            yield {"first": bad.first_offset, "n": bad.n_bad}

    return look


if __name__ == "__main__":
    main()
