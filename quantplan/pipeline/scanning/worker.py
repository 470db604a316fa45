"""A job for a process of its own: Python alone, without the environment's paths, and one module of ours."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantplan.llama.process import Runner
from quantplan.llama.types import Completed

_ROOT = Path(__file__).resolve().parents[3]
_START = "import sys; sys.path.insert(0, {root!r}); from {module} import main; main()"


def run_worker(module: str, job: Mapping[str, Any], *, step: str, timeout_s: float, run: Runner) -> Completed:
    """Runs `main` of a module on a job (a JSON file, its only argument). Its exit status is not looked at. Raises
    ToolFailed where it outlives timeout_s or does not start."""
    with tempfile.TemporaryDirectory(prefix="quantplan-worker-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        start = _START.format(root=str(_ROOT), module=module)
        argv = (sys.executable, "-I", "-X", "utf8", "-c", start, str(file))
        return run(argv, step=step, cwd=Path(folder), timeout_s=timeout_s, check=False)
