"""How long a real vocabulary takes: our header reader beside gguf.GGUFReader, on a file that gguf.GGUFWriter makes.

    python scripts/bench_gguf_header.py [--folder FOLDER] [--keep]

Prints time and memory of both, each reader in a process of its own. Exit status 1 if a bar is missed: 100 ms, 60 MB,
60 times faster, 0.4 s for `inspect`. Bars are judged by the time of the processor (in brackets): others may be using
the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_TOKENS, N_MERGES, N_LAYERS = 128_256, 280_147, 32
BARS = {"ms": 100.0, "mb": 60.0, "times": 60.0, "inspect_s": 0.4}

MEASURE = """
import json, sys, time
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
path = sys.argv[1]
{imports}
before = peak_kib()
times, cpu = [], []
for _ in range({repeats}):
    start, worked = time.perf_counter(), time.process_time()
    {call}
    times.append(time.perf_counter() - start)
    cpu.append(time.process_time() - worked)
after = peak_kib()
import tracemalloc
tracemalloc.start()
{trace}
peak = tracemalloc.get_traced_memory()[1]
print(json.dumps({{"first_ms": times[0] * 1e3, "best_ms": min(times) * 1e3, "first_cpu_ms": cpu[0] * 1e3,
                   "best_cpu_ms": min(cpu) * 1e3, "rss_mb": after * 1024 / 1e6,
                   "grown_mb": (after - before) * 1024 / 1e6, "traced_mb": peak / 1e6}}))
"""


def write_model(path: Path) -> None:
    """A header as large as Llama 3's, with a 280k-merge list, and tensors whose data is a hole."""
    import gguf
    import numpy as np

    rng = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyzĠéàüß中文字"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(N_TOKENS)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(131_072)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(8)
    writer.add_head_count_kv(8)
    writer.add_vocab_size(N_TOKENS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("tokenizer.ggml.tokens", words)
    writer.add_array("tokenizer.ggml.token_type", [1] * N_TOKENS)
    writer.add_array("tokenizer.ggml.merges", [f"{rng.choice(words)} {rng.choice(words)}" for _ in range(N_MERGES)])
    writer.add_string("tokenizer.chat_template", "{%- for m in messages %}{{ m }}{%- endfor %}" * 100)
    embedding = 256 * N_TOKENS * 4
    writer.add_tensor_info("token_embd.weight", (N_TOKENS, 256), np.dtype(np.float32), embedding)
    n_bytes = embedding
    for layer in range(N_LAYERS):
        for name in (
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_up",
            "ffn_gate",
            "ffn_down",
            "attn_norm",
            "ffn_norm",
        ):
            writer.add_tensor_info(f"blk.{layer}.{name}.weight", (256, 256), np.dtype(np.float32), 256 * 256 * 4)
            n_bytes += 256 * 256 * 4
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = -(-path.stat().st_size // 32) * 32
    with path.open("r+b") as file:
        file.truncate(header_bytes + n_bytes)
    print(
        f"{N_TOKENS:,} tokens, {N_MERGES:,} merges, {9 * N_LAYERS + 1} tensors: header of {header_bytes / 1e6:.1f} MB"
    )


def measure(path: Path, *, imports: str, call: str, repeats: int, trace: str = "pass") -> dict[str, float]:
    code = MEASURE.format(imports=imports, call=call, repeats=repeats, trace=trace)
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def time_inspect(path: Path) -> tuple[float, float]:
    """Seconds of a whole process, by the clock and of the processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "quantplan", "inspect", str(path)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start, worked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the file is made (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the file there")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    path = folder / "bench-header.gguf"
    write_model(path)
    ours_call = "read_gguf_header(path)"
    ours = measure(path, imports="from quantplan.model.gguf_header import read_gguf_header", call=ours_call, repeats=5,
                   trace=ours_call)  # fmt: skip
    theirs = measure(path, imports="import gguf", call="gguf.GGUFReader(path)", repeats=1)
    inspect_s, inspect_cpu_s = min((time_inspect(path) for _ in range(3)), key=lambda took: took[1])
    if not args.keep:
        path.unlink()
    times = theirs["first_cpu_ms"] / ours["first_cpu_ms"]
    print(f"quantplan        first {ours['first_ms']:.0f} ms ({ours['first_cpu_ms']:.0f}), "
          f"best of 5 {ours['best_ms']:.0f} ms ({ours['best_cpu_ms']:.0f}), process {ours['rss_mb']:.0f} MB "
          f"(grown {ours['grown_mb']:.1f} MB, allocated {ours['traced_mb']:.1f} MB)")  # fmt: skip
    print(f"gguf.GGUFReader  first {theirs['first_ms']:.0f} ms ({theirs['first_cpu_ms']:.0f}), "
          f"process {theirs['rss_mb']:.0f} MB (grown {theirs['grown_mb']:.0f} MB)")  # fmt: skip
    print(
        f"{times:.0f} times faster; `quantplan inspect`, a process of its own: {inspect_s:.2f} s ({inspect_cpu_s:.2f})"
    )
    met = (
        ours["first_cpu_ms"] <= BARS["ms"]
        and ours["rss_mb"] <= BARS["mb"]
        and times >= BARS["times"]
        and inspect_cpu_s <= BARS["inspect_s"]
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
