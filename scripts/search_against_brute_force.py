"""The search against every candidate, on spaces of up to 20,000: what CI does on small ones.

    python scripts/search_against_brute_force.py [first seed] [cases]

Prints each case whose choice is worse than the best candidate, and the processor time of both sides.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from planner_cases import brute_force, candidates, instruments, key, random_case

from quantplan.planner.search import Search

MOST = 20_000


def main(first: int, n_cases: int) -> int:
    """How many cases were worse."""
    n_worse = n_done = total = 0
    search_s, brute_s, slowest = 0.0, 0.0, 0.0
    seed = first
    while n_done < n_cases:
        case = random_case(seed, n_layer=(6, 24), wide=True)
        seed += 1
        size = len(candidates(case, instruments(case)))
        if not 2_000 < size <= MOST:
            continue
        tools = instruments(case)
        started = time.process_time()
        found = Search(tools).best(case.request)
        spent = time.process_time() - started
        search_s, slowest = search_s + spent, max(slowest, spent)
        tools = instruments(case)
        started = time.process_time()
        best = brute_force(case, tools)
        brute_s += time.process_time() - started
        n_done, total = n_done + 1, total + size
        own = key(case, tools, found.setting) if found else None
        if (best is None) != (found is None) or (best and own and best[1] > own):
            n_worse += 1
            print(f"{case.name} ({size:,}): {found.setting if found else None} {own}\n  worse than {best}", flush=True)
    print(
        f"{n_done} cases, {total / n_done:,.0f} candidates each: {n_worse} worse; search "
        f"{search_s / n_done * 1000:.0f} ms (slowest {slowest * 1000:.0f}), brute force {brute_s / n_done:.1f} s of "
        "processor time each"
    )
    return n_worse


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(bool(main(*(given[:1] or [0]), *(given[1:] or [40]))))
