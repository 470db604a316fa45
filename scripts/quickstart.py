"""The main job, from a fresh clone: set up, recommend a well-known model for this host, then build, gate and serve
the bundled one and print a completion.

Needs Python >= 3.10, a C++ compiler and git. About 12 minutes on 2 busy cores the first time (most of
them compile llama.cpp), seconds from then on.
"""

from __future__ import annotations

import socket
import sys
import time

from environment import QUANTPLAN, StageFailed, ensure_environment, stage

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
ARTIFACT = "artifacts/quantplan-tiny-Q4_K_M"
PROMPT = "hello"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    started = time.monotonic()
    try:
        ensure_environment("")
        stage("recommend", [QUANTPLAN, "recommend", MODEL])
        stage("toolchain (5 minutes the first time)", [QUANTPLAN, "toolchain", "install", "--converter"])
        stage("build and gate the bundled model", [QUANTPLAN, "build", "quantplan-tiny", "--quant", "Q4_K_M"])
        stage("serve it and complete once", [QUANTPLAN, "serve", ARTIFACT, "--port", str(free_port()),
                                              "--prompt", PROMPT])  # fmt: skip
    except StageFailed as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"\nAll done in {time.monotonic() - started:.0f} s. Next: .venv/bin/quantplan serve {ARTIFACT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
