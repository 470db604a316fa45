"""What the gateway costs: time to first token and tokens a second, in pairs of turns with direct access.

python scripts/gateway_bars.py artifacts/quantplan-tiny-Q4_K_M [--pairs 20] [--threads N]

The bars: under 3 ms to the first token, under 3 % of tokens a second at eight streams. Other work on the machine shows
in single ratios; the medians and the processor time per token hold longest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from serving.gateway.front_door import front_door
from serving.gateway.paired import Compared, compare
from serving.tiny_plan import free_port

from quantplan.llama.toolchain import find_toolchain, unified_per_slot
from quantplan.planner.plan import server_settings
from quantplan.serving.launch import running_server
from quantplan.serving.source import find_served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--threads", type=int, help="of the engine (default: the plan's)")
    told = parser.parse_args()
    served = find_served(told.artifact)
    threads = told.threads or served.plan.threads
    plan = replace(served.plan, n_parallel=told.streams, n_ctx_per_slot=1024, threads=threads, threads_batch=threads)
    tools = find_toolchain()
    settings = server_settings(plan, model=served.model.resolve(), port=free_port())
    with (
        running_server(tools, settings, unified_per_slot=unified_per_slot(tools), log=lambda _line: None) as engine,
        tempfile.TemporaryDirectory() as work,
        front_door(Path(work), {plan.model: plan}, engine_port=settings.port) as door,
    ):
        ports = {"engine_pid": engine.child.pid, "gateway_pid": door.child.pid}
        load = os.getloadavg()[0]
        one = compare(settings.port, door.port, n_pairs=3 * told.pairs, n_streams=1, n_each=1, n_tokens=4, **ports)
        many = compare(settings.port, door.port, n_pairs=told.pairs, n_streams=told.streams, n_each=2,
                       n_tokens=told.tokens, **ports)  # fmt: skip
    print(f"engine threads {threads}, load before {load:.1f}, after {os.getloadavg()[0]:.1f}")
    print(f"one stream: {1000 * one.ttft_added_s:+.2f} ms to the first token (median of {one.n_pairs} pairs)")
    show(many, told.streams)


def show(found: Compared, n_streams: int) -> None:
    print(
        f"{n_streams} streams: {found.direct_tokens_per_s:.0f} tokens/s direct, ratio {found.rate_ratio:.3f}, "
        f"{1000 * found.ttft_added_s:+.2f} ms to the first token (medians of {found.n_pairs} pairs)\n"
        f"processor time a token: gateway {1e6 * found.gateway_cpu_s_per_token:.0f} µs, engine "
        f"{1e6 * found.engine_cpu_s_per_token:.0f} µs (direct {1e6 * found.engine_cpu_s_per_token_direct:.0f} µs)\n"
        f"ratios {' '.join(f'{ratio:.2f}' for ratio in sorted(found.ratios))}"
    )


if __name__ == "__main__":
    main()
