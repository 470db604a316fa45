"""Command lines of the tools, as values. Every flag that changes a result is written, also where it is the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Program = Sequence[str]  # argv that starts a tool: ("/…/llama-quantize",) or ("/…/llama", "quantize")


def convert(python: Program, script: Path, folder: Path, out: Path, *, outtype: str = "bf16") -> tuple[str, ...]:
    """convert_hf_to_gguf.py: a Hugging Face folder to a GGUF of outtype f32, f16, bf16, q8_0 or auto."""
    return (*python, str(script), str(folder), "--outfile", str(out), "--outtype", outtype)


def list_converter_models(python: Program, script: Path) -> tuple[str, ...]:
    """convert_hf_to_gguf.py: prints the architectures it supports."""
    return (*python, str(script), "--print-supported-models")


def quantize(
    program: Program, source: Path, out: Path, preset: str, *, n_threads: int, imatrix: Path | None = None
) -> tuple[str, ...]:
    """llama-quantize of a 16- or 32-bit GGUF."""
    weights = ("--imatrix", str(imatrix)) if imatrix else ()
    return (*program, *weights, str(source), str(out), preset, str(n_threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How a text is scored. Reference and artifact must share all of it: n_batch and n_ubatch change perplexity."""

    n_ctx: int = 512
    n_batch: int = 512
    n_ubatch: int = 512
    n_chunks: int = 20
    n_threads: int = 1
    n_gpu_layers: int = 0


def save_logits(program: Program, model: Path, text: Path, logits: Path, settings: EvalSettings) -> tuple[str, ...]:
    """llama-perplexity writing the log-probabilities of every scored token of the text."""
    return (*_perplexity(program, model, settings), "--file", str(text), "--save-all-logits", str(logits))


def count_tokens(program: Program, model: Path, text: Path) -> tuple[str, ...]:
    """llama-tokenize of a whole text; its last line counts the tokens."""
    return (*program, "--model", str(model), "--file", str(text), "--ids", "--show-count", "--log-disable")


def hellaswag(
    program: Program, model: Path, tasks: Path, settings: EvalSettings, *, n_tasks: int
) -> tuple[str, ...]:  # fmt: skip
    """llama-perplexity on HellaSwag tasks (six lines each: context, index of the right ending, four endings)."""
    return (*_perplexity(program, model, settings), "--file", str(tasks), "--hellaswag",
            "--hellaswag-tasks", str(n_tasks))  # fmt: skip


def winogrande(
    program: Program, model: Path, tasks: Path, settings: EvalSettings, *, n_tasks: int
) -> tuple[str, ...]:  # fmt: skip
    """llama-perplexity on Winogrande tasks (CSV: index, sentence with a gap `_`, two choices, 1 or 2)."""
    return (*_perplexity(program, model, settings), "--file", str(tasks), "--winogrande",
            "--winogrande-tasks", str(n_tasks))  # fmt: skip


def lm_eval(python: Program, *, url: str, model: str, tokenizer: str, tasks: Sequence[str], out: Path,
            limit: int | None = None) -> tuple[str, ...]:  # fmt: skip
    """lm-evaluation-harness against a served model's completions, which must return log-probabilities."""
    arguments = f"model={model},base_url={url}/v1/completions,tokenizer={tokenizer},num_concurrent=1"
    some = ("--limit", str(limit)) if limit is not None else ()
    return (*python, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments,
            "--tasks", ",".join(tasks), "--output_path", str(out), *some)  # fmt: skip


def kl_divergence(program: Program, model: Path, base: Path, settings: EvalSettings) -> tuple[str, ...]:
    """llama-perplexity comparing a model with a file of saved log-probabilities; the tokens come from that file."""
    return (*_perplexity(program, model, settings), "--kl-divergence-base", str(base), "--kl-divergence")


def _perplexity(program: Program, model: Path, settings: EvalSettings) -> tuple[str, ...]:
    return (
        *program,
        "--model", str(model),
        "--ctx-size", str(settings.n_ctx),
        "--batch-size", str(settings.n_batch),
        "--ubatch-size", str(settings.n_ubatch),
        "--chunks", str(settings.n_chunks),
        "--threads", str(settings.n_threads),
        "--threads-batch", str(settings.n_threads),
        "--n-gpu-layers", str(settings.n_gpu_layers),
        "--cache-type-k", "f16",
        "--cache-type-v", "f16",
        "--flash-attn", "auto",
        "--load-mode", "mmap",
        "--fit", "off",
        "--seed", "1",
        "--log-verbosity", "3",
        "--log-colors", "off",
        "--offline",
    )  # fmt: skip


def bench(
    program: Program, model: Path, *, n_prompt: int, n_gen: int, n_threads: int, n_gpu_layers: int = 0
) -> tuple[str, ...]:
    """llama-bench, as JSON on stdout."""
    return (
        *program,
        "--model", str(model),
        "--n-prompt", str(n_prompt),
        "--n-gen", str(n_gen),
        "--threads", str(n_threads),
        "--n-gpu-layers", str(n_gpu_layers),
        "--repetitions", "1",
        "--no-warmup",
        "--output", "json",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything llama-server is told. n_ctx is the whole pool: n_parallel slots of n_ctx_per_slot."""

    model: Path
    alias: str
    host: str
    port: int
    n_ctx_per_slot: int
    n_parallel: int
    kv_unified: bool
    type_k: str
    type_v: str
    flash_attn: str
    n_batch: int
    n_ubatch: int
    n_gpu_layers: int
    threads: int
    threads_batch: int
    cache_ram_mib: int
    load_mode: str
    tensor_split: tuple[float, ...] = ()
    n_cpu_moe: int = 0
    override_tensor: tuple[str, ...] = ()
    numa: str | None = None
    cpu_range: str | None = None
    mmproj: Path | None = None
    draft: Path | None = None
    devices: tuple[str, ...] | None = None  # None: all the engine sees; (): none
    embeddings: bool = False
    api_key_file: Path | None = None
    log_verbosity: int = 3


def server(program: Program, settings: ServerSettings, *, unified_per_slot: bool = True) -> tuple[str, ...]:
    """llama-server with every flag of the plan. `unified_per_slot`: the build has --kv-unified-per-slot."""
    return (
        *program,
        "--model", str(settings.model),
        "--alias", settings.alias,
        "--host", settings.host,
        "--port", str(settings.port),
        "--ctx-size", str(settings.n_ctx_per_slot * settings.n_parallel),
        "--parallel", str(settings.n_parallel),
        *_kv_pool(settings, unified_per_slot),
        "--cache-type-k", settings.type_k,
        "--cache-type-v", settings.type_v,
        "--flash-attn", settings.flash_attn,
        "--batch-size", str(settings.n_batch),
        "--ubatch-size", str(settings.n_ubatch),
        "--n-gpu-layers", str(settings.n_gpu_layers),
        "--threads", str(settings.threads),
        "--threads-batch", str(settings.threads_batch),
        "--cache-ram", str(settings.cache_ram_mib),
        "--load-mode", settings.load_mode,
        "--fit", "off",
        "--jinja",
        "--no-context-shift",
        "--no-ui",
        "--no-agent",
        "--metrics",
        "--slots",
        "--offline",
        "--cors-origins", "localhost",
        "--log-colors", "off",
        "--log-verbosity", str(settings.log_verbosity),
        *_optional(settings),
    )  # fmt: skip


def _kv_pool(settings: ServerSettings, unified_per_slot: bool) -> tuple[str, ...]:
    if not settings.kv_unified:
        return ("--no-kv-unified",)
    limit = ("--kv-unified-per-slot", str(settings.n_ctx_per_slot)) if unified_per_slot else ()
    return ("--kv-unified", *limit)


def _optional(settings: ServerSettings) -> tuple[str, ...]:
    split = ",".join(f"{share:g}" for share in settings.tensor_split)
    pairs = (
        ("--tensor-split", split),
        ("--n-cpu-moe", str(settings.n_cpu_moe) if settings.n_cpu_moe else ""),
        ("--override-tensor", ",".join(settings.override_tensor)),
        ("--numa", settings.numa or ""),
        ("--cpu-range", settings.cpu_range or ""),
        ("--mmproj", str(settings.mmproj) if settings.mmproj else ""),
        # with --model-draft alone this build loads the draft and never asks it
        ("--model-draft", str(settings.draft) if settings.draft else ""),
        ("--spec-type", "draft-simple" if settings.draft else ""),
        ("--device", _device(settings.devices)),
        ("--api-key-file", str(settings.api_key_file) if settings.api_key_file else ""),
    )
    embeddings = ("--embedding",) if settings.embeddings else ()
    return (*(word for flag, value in pairs if value for word in (flag, value)), *embeddings)


def _device(devices: tuple[str, ...] | None) -> str:
    if devices is None:
        return ""
    return ",".join(devices) or "none"
