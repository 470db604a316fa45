"""Do the tools work on this very host? A tiny model is quantized and run; a crash or nonsense is told apart.

AMX tile kernels segfault on some virtual machines that show the CPU flag, on every quantized type: nothing but
running them tells.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import ToolFailed
from quantplan.llama import commands
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.types import Toolchain
from quantplan.places import cache_folder

PRESETS = ("Q4_K_M", "Q5_K_M", "Q8_0")
_N_VOCAB, _N_CTX = 300, 64
_LARGEST_SHIFT = 0.5  # nats a token between F32 and a preset; a wrong kernel is off by whole nats


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestResult:
    """`crashed`: a tool died of a signal. `failures` name preset and cause; empty when all is well."""

    ok: bool
    crashed: bool
    failures: tuple[str, ...]


def self_test(programs: Mapping[str, Sequence[str]], *, n_threads: int = 2, run: Runner = run_tool) -> SelfTestResult:
    """Quantizes and runs a tiny model of each preset: about 2 s."""
    failures: list[str] = []
    crashed = False
    with tempfile.TemporaryDirectory(prefix="quantplan-self-test-") as name:
        folder = Path(name)
        source, text = folder / "tiny-F32.gguf", folder / "text.txt"
        write_tiny_model(source)
        text.write_text("abcdefgh " * 64)
        settings = commands.EvalSettings(n_ctx=_N_CTX, n_batch=_N_CTX, n_ubatch=_N_CTX, n_chunks=4, n_threads=n_threads)
        expected = None
        for preset in ("F32", *PRESETS):
            model = source if preset == "F32" else folder / f"tiny-{preset}.gguf"
            try:
                if preset != "F32":
                    argv = commands.quantize(programs["llama-quantize"], source, model, preset, n_threads=n_threads)
                    run(argv, step=f"quantize {preset}", timeout_s=60)
                logits = folder / f"{preset}.logits"
                argv = commands.save_logits(programs["llama-perplexity"], model, text, logits, settings)
                run(argv, step=f"run {preset}", timeout_s=60)
                score = _mean_nll(logits)
            except ToolFailed as error:
                crashed = crashed or _is_crash(error.returncode)
                failures.append(f"{preset}: {error.step} ended with status {error.returncode}")
                continue
            except (OSError, ValueError, struct.error) as error:
                failures.append(f"{preset}: no readable result ({error})")
                continue
            expected = score if preset == "F32" else expected
            if expected is None or not abs(score - expected) < _LARGEST_SHIFT:
                failures.append(f"{preset}: {score:.3f} nats a token where F32 has {expected}")
    return SelfTestResult(ok=not failures, crashed=crashed, failures=tuple(failures))


def self_tested(toolchain: Toolchain, *, run: Runner = run_tool) -> SelfTestResult:
    """The self-test of these very binaries on this host, run once and remembered in the cache."""
    record = cache_folder() / "self-tests" / f"{_identity(toolchain)}.json"
    if record.is_file():
        kept = json.loads(record.read_text())
        return SelfTestResult(ok=kept["ok"], crashed=kept["crashed"], failures=tuple(kept["failures"]))
    result = self_test(toolchain.programs, run=run)
    if result.ok:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps({"ok": True, "crashed": False, "failures": []}))
        partial.replace(record)
    return result


def _identity(toolchain: Toolchain) -> str:
    from quantplan.llama.toolchain import cpu_key

    files = sorted(path for path in toolchain.folder.rglob("*") if path.is_file() and path.suffix != ".py")
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.stat().st_size > 4096]
    return hashlib.sha256(repr((cpu_key(), seen)).encode()).hexdigest()[:16]


def _is_crash(status: int | None) -> bool:
    return status is not None and (status < 0 or status in (132, 134, 135, 136, 137, 139))


def _mean_nll(logits: Path) -> float:
    """Nats a token over the file of --save-all-logits. Raises ValueError when the file is not whole."""
    import numpy as np

    data = logits.read_bytes()
    magic, n_ctx, n_vocab, n_chunk = struct.unpack_from("<8siii", data)
    scored, width = n_ctx - 1 - n_ctx // 2, 2 * ((n_vocab + 1) // 2) + 4
    at = 20 + 4 * n_ctx * n_chunk
    if magic != b"_logits_" or len(data) != at + 2 * n_chunk * scored * width:
        raise ValueError("logits file is not whole")
    tokens = np.frombuffer(data, np.int32, n_ctx * n_chunk, 20).reshape(n_chunk, n_ctx)
    rows = np.frombuffer(data, np.uint16, n_chunk * scored * width, at).reshape(n_chunk * scored, width)
    scale, low = (np.ascontiguousarray(rows[:, 2 * i : 2 * i + 2]).view(np.float32)[:, 0] for i in (0, 1))
    targets = tokens[:, n_ctx // 2 + 1 :].reshape(-1)
    log_p = low + scale * rows[np.arange(len(rows)), 4 + targets]
    return float(-log_p.mean())


def write_tiny_model(path: Path) -> None:
    """A Llama of 256 × 2 layers in F32 with fixed random weights and a vocabulary of bytes: 8 MB."""
    import gguf
    import numpy as np

    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("block_count", 2), ("context_length", 512), ("embedding_length", 256), ("feed_forward_length", 512),
        ("attention.head_count", 4), ("attention.head_count_kv", 4), ("rope.dimension_count", 64),
        ("vocab_size", _N_VOCAB),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    _add_vocabulary(writer)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (_N_VOCAB, 256),
        "output.weight": (_N_VOCAB, 256),
        "output_norm.weight": (256,),
    }
    for layer in range(2):
        for name, dims in (
            ("attn_norm", (256,)), ("ffn_norm", (256,)), ("attn_q", (256, 256)), ("attn_k", (256, 256)),
            ("attn_v", (256, 256)), ("attn_output", (256, 256)), ("ffn_gate", (512, 256)), ("ffn_up", (512, 256)),
            ("ffn_down", (256, 512)),
        ):  # fmt: skip
            shapes[f"blk.{layer}.{name}.weight"] = dims
    for name, shape in shapes.items():
        weights = np.ones(shape) if len(shape) == 1 else random.normal(0, 3 / shape[-1] ** 0.5, shape)
        writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: object) -> None:
    import gguf

    assert isinstance(writer, gguf.GGUFWriter)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    spare = _N_VOCAB - len(tokens)
    tokens += [f"x{i}y".encode() for i in range(spare)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(spare)])
    writer.add_token_types(kinds + [1] * spare)
