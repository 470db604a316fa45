"""The engines a plan can be served by: how each starts, when it is ready, and what of the plan it has no word for."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from quantplan.artifact.plan_file import Plan
from quantplan.errors import BadValue, ToolMissing
from quantplan.ggml_types import ggml_types
from quantplan.llama import commands
from quantplan.llama.binding import LIBRARY_VARIABLE
from quantplan.llama.toolchain import unified_per_slot
from quantplan.llama.types import Toolchain
from quantplan.planner.plan import server_settings
from quantplan.serving.api_key import keys_in

PLACEHOLDER_KEY = "none"


# llama_cpp/server/settings.py: pydantic fills what no flag says from variables of the field's name.
PYTHON_VARIABLES = (
    "CHAT_FORMAT", "CHAT_TEMPLATE_KWARGS", "CLIP_MODEL_PATH", "CONFIG_FILE", "DRAFT_MODEL", "EMBEDDING", "KV_OVERRIDES",
    "LORA_BASE", "LORA_PATH", "MAIN_GPU", "NUMA", "OFFLOAD_KQV", "ROPE_FREQ_BASE", "ROPE_FREQ_SCALE",
    "ROPE_SCALING_TYPE", "RPC_SERVERS", "SEED", "SPLIT_MODE", "TENSOR_SPLIT", "VOCAB_ONLY", "YARN_ATTN_FACTOR",
    "YARN_BETA_FAST", "YARN_BETA_SLOW", "YARN_EXT_FACTOR", "YARN_ORIG_CTX",
)  # fmt: skip


class Runtime(Enum):
    """Engines by the name that people type."""

    LLAMA_SERVER = "llama-server"
    LLAMA_CPP_PYTHON = "llama-cpp-python"
    VLLM = "vllm"
    OLLAMA = "ollama"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Where and how it is to be reached."""

    host: str
    port: int
    api_key_file: Path | None = None

    @property
    def url(self) -> str:
        return url_of(self.host, self.port)


def url_of(host: str, port: int) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reach}]:{port}" if ":" in reach else f"http://{reach}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How an engine is started. `health` answers 200 when it is ready; `cannot` says what is lost of the plan;
    `setup` is a second program to be run once it is ready, `unset` are variables that would speak for flags."""

    runtime: Runtime
    argv: tuple[str, ...]
    url: str
    health: str
    env: Mapping[str, str] = field(default_factory=dict)
    cannot: tuple[str, ...] = ()
    key: str | None = None
    setup: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()


def launch_of(
    runtime: Runtime, plan: Plan, *, model: Path, serving: Serving, tools: Toolchain | None, work: Path
) -> Launch:
    """How the plan is started on a runtime. `work` is a folder for files it needs. Raises ToolMissing, BadValue."""
    if runtime is Runtime.LLAMA_SERVER:
        return _llama_server(plan, model, serving, _needed(tools))
    if runtime is Runtime.LLAMA_CPP_PYTHON:
        return _llama_cpp_python(plan, model, serving, _needed(tools))
    if runtime is Runtime.VLLM:
        return _vllm(plan, serving)
    return _ollama(plan, model, serving, work)


def _needed(tools: Toolchain | None) -> Toolchain:
    if tools is None:
        raise ToolMissing(tool="llama.cpp")
    return tools


def _llama_server(plan: Plan, model: Path, serving: Serving, tools: Toolchain) -> Launch:
    settings = server_settings(
        plan, model=model, host=serving.host, port=serving.port, api_key_file=serving.api_key_file
    )
    has_limit = unified_per_slot(tools)
    argv = commands.server(
        tools.programs["llama-server"], replace(settings, log_verbosity=4), unified_per_slot=has_limit
    )
    shared = plan.kv_unified and plan.n_parallel > 1 and not has_limit
    cannot = ("this build has no limit a slot: each may fill the pool that all share",) if shared else ()
    return Launch(runtime=Runtime.LLAMA_SERVER, argv=argv, url=serving.url, health="/health", cannot=cannot,
                  key=_key(serving))  # fmt: skip


def _llama_cpp_python(plan: Plan, model: Path, serving: Serving, tools: Toolchain) -> Launch:
    """Its OpenAI server, on the libraries of the toolchain. The environment's HOST and PORT win over its flags."""
    lacking = [name for name in ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context",
                                 "pydantic_settings") if importlib.util.find_spec(name) is None]  # fmt: skip
    if lacking:
        raise ToolMissing(tool="llama-cpp-python's server", why=f"is not installed (it lacks {', '.join(lacking)})")
    if tools.library_folder is None:
        raise ToolMissing(tool="llama-cpp-python", why=f"needs libllama, which {tools.folder} does not have")
    numbers = {name: kind.value for name, kind in ggml_types().items()}
    words = {
        "model": model, "model_alias": plan.model, "n_ctx": plan.n_ctx_per_slot, "n_batch": plan.n_batch,
        "n_ubatch": plan.n_ubatch, "n_threads": plan.threads, "n_threads_batch": plan.threads_batch,
        "n_gpu_layers": plan.n_gpu_layers, "type_k": numbers[plan.type_k.upper()],
        "type_v": numbers[plan.type_v.upper()], "flash_attn": plan.flash_attn != "off",
        "use_mmap": "mmap" in plan.load_mode or plan.load_mode == "auto", "use_mlock": "mlock" in plan.load_mode,
        "logits_all": False, "cache": False, "interrupt_requests": False, "verbose": True, "host": serving.host,
        "port": serving.port,
    }  # fmt: skip
    argv = [sys.executable, "-m", "llama_cpp.server"]
    for name, value in words.items():
        argv += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    if plan.tensor_split:
        argv += ["--tensor_split", *(f"{share:g}" for share in plan.tensor_split)]
    key = _key(serving)
    env = {LIBRARY_VARIABLE: str(tools.library_folder), "HOST": serving.host, "PORT": str(serving.port)}
    return Launch(runtime=Runtime.LLAMA_CPP_PYTHON, argv=tuple(argv), url=serving.url, health="/v1/models", key=key,
                  env={**env, **({"API_KEY": key} if key else {})}, cannot=_lost(plan),
                  unset=PYTHON_VARIABLES)  # fmt: skip


def _vllm(plan: Plan, serving: Serving) -> Launch:
    program = shutil.which("vllm")
    if program is None:
        raise ToolMissing(tool="vllm", why="is not installed")
    repo = plan.source.get("repo")
    if not repo:
        raise BadValue(what="plan", value=None, why="names no repository: vLLM loads the original weights, not a GGUF")
    n_gpus = max(len([device for device in plan.memory if device.name != "Host"]), 1)
    argv = [
        program, "serve", str(repo), "--served-model-name", plan.model, "--max-model-len", str(plan.n_ctx_per_slot),
        "--max-num-seqs", str(plan.n_parallel), "--tensor-parallel-size", str(n_gpus), "--host", serving.host,
        "--port", str(serving.port),
    ]  # fmt: skip
    if plan.source.get("revision"):
        argv += ["--revision", str(plan.source["revision"])]
    key = _key(serving)
    lost = (f"vLLM serves {repo} in its own precision, not the {plan.quant} that was validated",
            "KV types, batch sizes, threads, load mode and prompt cache of the plan have no word in vLLM")  # fmt: skip
    return Launch(runtime=Runtime.VLLM, argv=tuple(argv), url=serving.url, health="/health", key=key,
                  env={"VLLM_API_KEY": key} if key else {}, cannot=lost)  # fmt: skip


def _ollama(plan: Plan, model: Path, serving: Serving, work: Path) -> Launch:
    """`ollama serve` with the plan in its environment; the model is registered under the plan's name when it is up."""
    program = shutil.which("ollama")
    if program is None:
        raise ToolMissing(tool="ollama", why="is not installed")
    recipe = work / "Modelfile"
    recipe.write_text(f"FROM {model}\nPARAMETER num_ctx {plan.n_ctx_per_slot}\nPARAMETER num_batch {plan.n_ubatch}\n"
                      f"PARAMETER num_thread {plan.threads}\nPARAMETER num_gpu {plan.n_gpu_layers}\n")  # fmt: skip
    env = {
        "OLLAMA_HOST": f"{serving.host}:{serving.port}", "OLLAMA_CONTEXT_LENGTH": str(plan.n_ctx_per_slot),
        "OLLAMA_NUM_PARALLEL": str(plan.n_parallel), "OLLAMA_KV_CACHE_TYPE": plan.type_k,
        "OLLAMA_FLASH_ATTENTION": "0" if plan.flash_attn == "off" else "1", "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_MODELS": str(work / "models"), "OLLAMA_KEEP_ALIVE": "-1",
    }  # fmt: skip
    said = ["Ollama has no API keys"] if serving.api_key_file else []
    if plan.type_k != plan.type_v:
        said.append(f"Ollama has one KV type for K and V: {plan.type_k}, not {plan.type_v} for V")
    said.append("batch size, load mode, prompt cache, tensor split and overrides of the plan have no word in Ollama")
    return Launch(runtime=Runtime.OLLAMA, argv=(program, "serve"), url=serving.url, health="/api/version", env=env,
                  cannot=tuple(said), setup=(program, "create", plan.model, "-f", str(recipe)))  # fmt: skip


def _lost(plan: Plan) -> tuple[str, ...]:
    """What of a plan llama-cpp-python's server leaves out."""
    one = f"llama-cpp-python's server answers one request at a time: {plan.n_parallel} slots are planned"
    said = [one] if plan.n_parallel > 1 else []
    if plan.n_cpu_moe or plan.override_tensor:
        said.append("tensor overrides and experts on the CPU have no word there")
    if plan.mmproj or plan.draft:
        said.append("the projector or draft of the plan is not loaded")
    return tuple(said)


def _key(serving: Serving) -> str | None:
    return keys_in(serving.api_key_file)[0] if serving.api_key_file else None
