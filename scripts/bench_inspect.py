"""Times `quantplan inspect` of a local GGUF in a fresh process.

python scripts/bench_inspect.py [--runs 10]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config
from quantplan.rehearsal.weightless import write_weightless


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--model", default="meta-llama/Llama-3.1-8B-Instruct")
    args = parser.parse_args()
    entry = catalog.find(args.model)
    assert entry is not None
    header = header_from_config(entry.config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_weightless(path, header.metadata, header.tensors, vocab="synthetic")
        seconds = []
        for _ in range(args.runs):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "quantplan", "inspect", str(path)], check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
    print(f"{args.model}: best {min(seconds):.3f} s, median {statistics.median(seconds):.3f} s of {args.runs} runs")


if __name__ == "__main__":
    main()
