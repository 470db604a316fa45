"""All checks and tests, from a fresh clone: set up, build the toolchain, lint, type-check, test.

The first time it takes about 55 minutes on 2 cores, by the sum of stages timed apart (8 of them compile llama.cpp and
fetch torch); later runs skip what is there. Arguments go to pytest, and then only the tests run:
`python3 scripts/check.py -k gate`.
"""

from __future__ import annotations

import sys
import time

from environment import BIN, QUANTPLAN, StageFailed, ensure_environment, ensure_programs, stage


def main(arguments: list[str]) -> int:
    started = time.monotonic()
    spent = {}
    try:
        spent["set-up"] = ensure_environment("dev") + ensure_programs()
        install = [QUANTPLAN, "toolchain", "install", "--converter", "--bindings"]
        spent["toolchain"] = stage("toolchain (7 minutes the first time)", install)
        if not arguments:
            spent["ruff"] = stage("ruff", [BIN / "ruff", "check", "."])
            spent["format"] = stage("ruff format", [BIN / "ruff", "format", "--check", "."])
            spent["mypy"] = stage("mypy", [BIN / "mypy"])
            spent["layers"] = stage("import-linter", [BIN / "lint-imports"])
        spent["tests"] = stage("tests", [BIN / "python", "-m", "pytest", "--no-skips", "--durations=15", *arguments])
    except StageFailed as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.items())
        print(f"\nspent: {told}; in all {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
