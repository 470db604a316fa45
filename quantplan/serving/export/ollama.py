"""Ollama: a Modelfile for what belongs to a model, variables for what its server has once for all models."""

from __future__ import annotations

from quantplan.errors import CannotExport
from quantplan.ggml_types import ggml_types
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented

PORT_VARIABLES = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "ROCR_VISIBLE_DEVICES"}
_KV_TYPES = ("q4_0", "q8_0", "f16")  # OLLAMA_KV_CACHE_TYPE takes these, the smallest first


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """Modelfile and ollama.env. Raises CannotExport for shards, and for paths that a Modelfile cannot hold."""
    (told,) = deployments
    if any(file.role == "shard" for file in told.files):
        raise CannotExport(target="Ollama", why="it reads no model in several files",
                           instead="merge them with llama-gguf-split --merge, and gate that file")  # fmt: skip
    kv_type, kv_note = _kv_type(told)
    files = (
        File(name="Modelfile", text=_modelfile(told)),
        File(name="ollama.env", text=_environment(told, kv_type)),
    )
    return Exported(files=files, notes=(*kv_note, *_notes(told)))


def _modelfile(told: Deployment) -> str:
    plan = told.plan
    parameters = {
        "num_ctx": plan.n_ctx_per_slot, "num_batch": plan.n_ubatch, "num_thread": plan.threads,
        "num_gpu": plan.n_gpu_layers, "use_mmap": str(_maps(told)).lower(),
    }  # fmt: skip
    projector = [f"FROM {_path(told, file.role)}" for file in told.files if file.role == "mmproj"]
    licence = _licence(told)
    lines = [
        f"# {told.title}. Register it: ollama create {_registered(told)} -f Modelfile",
        commented(told).rstrip("\n"),
        f"FROM {_path(told, 'model')}",
        *projector,
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        *([f'LICENSE """{licence}"""'] if licence else []),
    ]
    return "\n".join(lines) + "\n"


def _maps(told: Deployment) -> bool:
    return "mmap" in told.plan.load_mode or told.plan.load_mode == "auto"


def _path(told: Deployment, role: str) -> str:
    path = str(told.where(next(file for file in told.files if file.role == role)))
    if '"' in path or not path.isprintable() or path != path.strip():
        raise CannotExport(target="Ollama", why=f"{path!r} cannot be written in a Modelfile",
                           instead="rename the file or folder")  # fmt: skip
    return path


def _registered(told: Deployment) -> str:
    """A name that Ollama takes: its own are lower case, without spaces."""
    return told.name


def _licence(told: Deployment) -> str | None:
    """What the model's own header says of it."""
    from quantplan.model.gguf_header import read_gguf_header

    found = read_gguf_header(told.model.path).metadata.get("general.license")
    text = str(found) if found else ""
    return text if text and '"' not in text else None


def _kv_type(told: Deployment) -> tuple[str, tuple[str, ...]]:
    """The one type that Ollama has for K and V: the smallest of its own that is no coarser than either."""
    plan = told.plan
    wanted = max((plan.type_k, plan.type_v), key=_bits)
    found = next((name for name in _KV_TYPES if _bits(name) >= _bits(wanted)), _KV_TYPES[-1])
    if plan.type_k == plan.type_v == found:
        return found, ()
    size = _compared(2 * _bits(found), _bits(plan.type_k) + _bits(plan.type_v))
    return found, (f"Ollama has one type of KV cache, of {', '.join(_KV_TYPES)}: {found} instead of {plan.type_k} "
                   f"for K and {plan.type_v} for V, which takes {size}",)  # fmt: skip


def _compared(found: float, planned: float) -> str:
    if found == planned:
        return "as much"
    return "more memory than planned" if found > planned else "less memory"


def _bits(name: str) -> float:
    layout = ggml_types()[name.upper()]
    return 8 * layout.type_size / layout.block_size


def _environment(told: Deployment, kv_type: str) -> str:
    plan, target = told.plan, told.target
    host = target.host or "127.0.0.1"
    values = {
        "OLLAMA_HOST": f"[{host}]:{target.port}" if ":" in host else f"{host}:{target.port}",
        "OLLAMA_CONTEXT_LENGTH": plan.n_ctx_per_slot,
        "OLLAMA_NUM_PARALLEL": plan.n_parallel,
        "OLLAMA_MAX_QUEUE": max(1, told.n_queue),
        "OLLAMA_MAX_LOADED_MODELS": 1,
        "OLLAMA_KV_CACHE_TYPE": kv_type,
        "OLLAMA_FLASH_ATTENTION": 0 if plan.flash_attn == "off" and kv_type == "f16" else 1,
        "OLLAMA_KEEP_ALIVE": -1,
        "OLLAMA_LOAD_TIMEOUT": f"{target.load_s}s",
    }
    if plan.devices is not None and told.gpu is not None and told.gpu.backend in PORT_VARIABLES:
        numbers = ",".join("".join(sign for sign in name if sign.isdecimal()) for name in told.gpu.names)
        values[PORT_VARIABLES[told.gpu.backend]] = numbers
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    return f"# ollama serve for {told.title}\n{commented(told)}{lines}"


def _notes(told: Deployment) -> tuple[str, ...]:
    """What of the plan it has no word for, and what happens instead."""
    plan = told.plan
    found = [
        "context per request is num_ctx; slots, KV type and flash attention are Ollama's for all models: they are in "
        "ollama.env, for the environment of ollama serve",
        "Ollama does not run the model's own chat template: it takes one it knows that is like it, else none; "
        f"look with ollama show --template {_registered(told)} before you serve",
        "Ollama has no keys: put a proxy that asks for them before it",
        f"Ollama limits no memory: whoever starts it has to allow {told.memory_max_bytes // 1024**2} MiB",
        "Ollama brings an engine of its own: speed and memory are not those that were measured, and a request over the "
        "context is cut short, not refused, by its own API",
        f"clients ask for {_registered(told)}, not for {told.alias}",
    ]  # fmt: skip
    lost = {
        "threads for batches": plan.threads_batch != plan.threads,
        "batch size (its micro-batch is both)": plan.n_batch != plan.n_ubatch,
        "prompt cache in host memory": plan.cache_ram_bytes > 0,
        "split over the cards": bool(plan.tensor_split),
        "experts on the host and placed tensors": bool(plan.n_cpu_moe or plan.override_tensor),
        "NUMA and pinned CPUs": bool(plan.numa or plan.cpu_range),
        "locked memory": told.locks_memory,
        "draft model": plan.draft is not None,
    }
    missing = [name for name, is_lost in lost.items() if is_lost]
    if missing:
        found.append(f"no word for: {', '.join(missing)}; Ollama does as it finds right")
    if plan.flash_attn == "off" and (plan.type_k, plan.type_v) != ("f16", "f16"):
        found.append("flash attention is on: Ollama's quantized cache needs it")
    return tuple(found)


def _needs(told: Deployment) -> tuple[Need, ...]:
    quantized = told.plan.type_k != "f16" or told.plan.type_v != "f16"
    kv = (Need(version=(0, 5), what="OLLAMA_KV_CACHE_TYPE"),) if quantized else ()
    return (Need(version=(0, 5, 13), what="OLLAMA_CONTEXT_LENGTH"), *kv)


EXPORTER = Exporter(target="Ollama", write=write, needs=_needs)
