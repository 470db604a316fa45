"""Writes data/llama_flags.json: the flags that the programs of the installed toolchain take, from their own help.

python scripts/list_flags.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from quantplan.llama.process import run_tool
from quantplan.llama.toolchain import find_toolchain

PROGRAMS = ("llama-server", "llama-perplexity", "llama-bench", "llama-quantize", "llama-imatrix")


def flags_of(help_text: str) -> list[str]:
    """Every flag a help text names in its left column or after a comma."""
    found = re.findall(r"(?:^|[\s,(\[|])(-{1,2}[A-Za-z][\w-]*)", help_text)
    return sorted({flag for flag in found if not flag.endswith("-")})


def main() -> int:
    tools = find_toolchain()
    told = {}
    for name in PROGRAMS:
        done = run_tool((*tools.programs[name], "--help"), step=f"{name} --help", timeout_s=30, check=False)
        told[name] = flags_of("\n".join((*done.stdout, *done.stderr)))
    path = Path(__file__).parents[1] / "data" / "llama_flags.json"
    path.write_text(json.dumps({"build": tools.build.label, "flags": told}, indent=1) + "\n")
    sys.stderr.write(f"{path}: " + ", ".join(f"{name} {len(flags)}" for name, flags in told.items()) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
