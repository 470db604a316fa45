"""A device's bandwidth as the engine gets it: decoding with a model of nothing but big matrices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantplan.hardware.measure import CannotMeasure, Measured, summary
from quantplan.llama.process import Runner, run_tool
from quantplan.units import MIB, pad

_BENCH_TIMEOUT_S = 120.0
_REPETITIONS = 5
_N_TOKENS = {True: 4, False: 32}  # on the CPU, on a GPU: a second or so a repetition
# A Llama of few, wide layers: matrices large enough that a token is bytes over bandwidth, not launches
_N_EMBD, _N_FF, _N_HEAD, _N_VOCAB = 4096, 14336, 32, 256
_LAYER_BYTES = 2 * _N_EMBD * (4 * _N_EMBD + 3 * _N_FF)
# On an H200 (tests/data/measure_h200.csv) 4 layers gave 2.82 TB/s, 8 3.00, 16 3.10, 32 3.16: launches weigh less
_N_LAYERS = (16, 8, 4)


def layers_for(free_bytes: int | None) -> int:
    """As many layers as use at most half of a device's free memory; the fewest where that is not known."""
    return next((n for n in _N_LAYERS if free_bytes is not None and n * _LAYER_BYTES * 2 <= free_bytes), _N_LAYERS[-1])


def measure_device(
    program: Sequence[str], device: str, *, run: Runner = run_tool, n_layer: int = _N_LAYERS[-1]
) -> Measured:
    """Bytes of F16 weights the engine reads a second from a device while it decodes one stream: what a plan needs, and
    less than the memory can. An H200 (4.8 TB/s by its datasheet, 4.29 in a plain copy) shows 3.10 here with 16 layers.
    Raises CannotMeasure where the engine does not answer."""
    import tempfile

    from quantplan.places import cache_folder

    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bandwidth-", dir=cache_folder()) as folder:
        model = Path(folder) / "wide.gguf"
        read_bytes = write_wide_model(model, n_layer=n_layer)
        layers = ("-ngl", "0") if device == "CPU" else ("-ngl", "99", "-dev", device)
        counts = ("-p", "0", "-n", str(_N_TOKENS[device == "CPU"]), "-r", str(_REPETITIONS))
        argv = (*program, "-m", str(model), *layers, *counts, "-o", "json")
        told = run(argv, step="llama-bench", timeout_s=_BENCH_TIMEOUT_S, check=False)
    if told.returncode != 0:
        said = told.last_lines[-1] if told.last_lines else f"status {told.returncode}"
        raise CannotMeasure(what=f"the bandwidth of {device}", why=said)
    rates = [float(tokens) * read_bytes for tokens in _samples("\n".join(told.stdout), device)]
    return summary(device, rates, how=f"llama-bench, F16, {read_bytes // MIB} MiB a token")


def _samples(text: str, device: str) -> list[float]:
    """Tokens a second of each repetition in llama-bench's JSON."""
    try:
        rows: list[dict[str, Any]] = json.loads(text[text.index("[") :])
        return [float(rate) for row in rows for rate in row["samples_ts"]]
    except (ValueError, KeyError, TypeError):
        raise CannotMeasure(what=f"the bandwidth of {device}", why="llama-bench printed no samples") from None


def write_wide_model(path: Path, *, n_layer: int = _N_LAYERS[-1]) -> int:
    """Writes a model whose weights are a hole; returns the bytes of weights that one token reads."""
    import gguf

    half = gguf.GGMLQuantizationType.F16
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(_N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(_N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(_N_VOCAB)
    square, wide = (_N_EMBD, _N_EMBD), (_N_FF, _N_EMBD)
    layer = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    layer |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": (_N_EMBD, _N_FF)}
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(n_layer) for name, shape in layer.items()}
    read_bytes = sum(2 * rows * columns for rows, columns in shapes.values())
    shapes |= {"token_embd.weight": (_N_VOCAB, _N_EMBD), "output.weight": (_N_VOCAB, _N_EMBD)}
    norms = [f"blk.{i}.{kind}_norm.weight" for i in range(n_layer) for kind in ("attn", "ffn")] + ["output_norm.weight"]
    total = 0
    for name, shape in {**shapes, **dict.fromkeys(norms, (_N_EMBD,))}.items():
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else half
        n_bytes = (4 if len(shape) == 1 else 2) * shape[0] * (shape[1] if len(shape) == 2 else 1)
        writer.add_tensor_info(name, shape, _dtype(kind), n_bytes, raw_dtype=kind)
        total += pad(n_bytes, 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(pad(path.stat().st_size, 32) + total)
    return read_bytes


def _dtype(kind: Any) -> Any:
    import numpy

    return numpy.dtype("float32" if kind.name == "F32" else "float16")
