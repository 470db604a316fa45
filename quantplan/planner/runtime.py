"""Which engine to serve a plan with, and why: llama.cpp, vLLM or Ollama. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.artifact.plan_file import Figure
from quantplan.hardware.facts import GpuFacts
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.planner.nature import Kind, Nature
from quantplan.planner.vllm_memory import VllmMemory, divides, vllm_memory
from quantplan.units import GIB

LLAMA_CPP, VLLM, OLLAMA = "llama.cpp", "vllm", "ollama"
RUNTIMES = (LLAMA_CPP, VLLM, OLLAMA)
MANY = 8  # requests at a time from which on continuous batching in 16 bit is worth its memory: a judgement
LEAST_COMPUTE = (7, 0)  # vLLM 0.32.0 runs on NVIDIA cards from Volta on (docs/getting_started/installation/gpu)
_MOST_NODES = 64
# Of the bandwidth that a step of decoding reaches in 16 bit: published runs of llama.cpp have .74 to .90; no run of
# vLLM is behind it.
_READ_LOW, _READ, _READ_HIGH = 0.5, 0.7, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One engine: whether it can, what to expect, and the reasons. `total_per_s` is decode of all requests together."""

    runtime: str
    can: bool
    why: str
    total_per_s: Figure | None = None
    memory: VllmMemory | None = None
    nodes: int = 1
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """The engine to take, the reason, and all three."""

    runtime: str
    why: str
    n_parallel: int
    options: tuple[Served, ...]

    def of(self, runtime: str) -> Served:
        return next(option for option in self.options if option.runtime == runtime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the choice depends on. `whole` says that llama.cpp's plan reads no weights from RAM beside a GPU;
    `template_tools` whether the chat template can call tools, None where it was not read."""

    facts: ModelFacts
    nature: Nature
    gpus: Sequence[GpuFacts]
    n_ctx: int
    n_parallel: int
    whole: bool
    quant: str
    total_per_s: float
    driver_bytes: int
    wants_images: bool = False
    wants_tools: bool = False
    template_tools: bool | None = None


def choose(asked: Asked) -> RuntimeChoice:
    """llama.cpp unless many requests come at once and the cards hold the model in 16 bit with their contexts."""
    llama, vllm = _llama(asked), _vllm(asked)
    ollama = _ollama(asked)
    if not llama.can and vllm.can:
        name, why = VLLM, llama.why
    elif not vllm.can or vllm.nodes > 1:
        name, why = LLAMA_CPP, vllm.why
    elif asked.n_parallel < MANY:
        name = LLAMA_CPP
        why = (f"{asked.n_parallel} request(s) at a time: a stream is as fast as its bytes are read, and {asked.quant} "
               f"has fewer than 16 bit; vLLM pays from about {MANY} on")  # fmt: skip
    else:
        name, why = VLLM, vllm.why
    return RuntimeChoice(runtime=name, why=why, n_parallel=asked.n_parallel, options=(llama, vllm, ollama))


def _llama(asked: Asked) -> Served:
    if asked.nature.kind is Kind.DIFFUSION:
        return Served(runtime=LLAMA_CPP, can=False, why="llama-server does not serve diffusion models")
    where = ("on the CPU" if not asked.gpus else "wholly on the GPUs" if asked.whole
             else "partly on the GPU, the rest in RAM, which vLLM does not do at this speed")  # fmt: skip
    return Served(runtime=LLAMA_CPP, can=True, why=f"{asked.quant} {where}", total_per_s=_same(asked),
                  says=_template(asked))  # fmt: skip


def _ollama(asked: Asked) -> Served:
    llama = _llama(asked)
    if not llama.can:
        return Served(runtime=OLLAMA, can=False, why="it runs llama.cpp's engine, which does not serve this model")
    says = ["no API keys, its own defaults for context and offload: for trying out, not for serving"]
    if asked.wants_images:
        says.append("a projector has to be in the Modelfile")
    return Served(runtime=OLLAMA, can=True, why="for prototyping: the same engine behind one command",
                  total_per_s=llama.total_per_s, says=tuple(says))  # fmt: skip


def _same(asked: Asked) -> Figure | None:
    value = asked.total_per_s
    if value <= 0 or asked.nature.embeds:
        return None
    return Figure(value=value, low=value, high=value, origin="the plan's own figure for its slots together")


def _template(asked: Asked) -> tuple[str, ...]:
    said = []
    if asked.wants_tools:
        said.append({
            True: "the chat template has tools: served with --jinja, calls come back parsed",
            False: "the chat template says nothing of tools: a generic format is used, which small models often miss",
            None: "whether the chat template can call tools is not known without the model's files",
        }[asked.template_tools])  # fmt: skip
    if asked.wants_images and asked.nature.sees:
        said.append("images need the projector beside the model (--mmproj); it is counted in the plan")
    return tuple(said)


# vLLM --------------------------------------------------------------------------------------------------------------


def _vllm(asked: Asked) -> Served:
    cannot = _vllm_cannot(asked)
    if cannot is not None:
        return Served(runtime=VLLM, can=False, why=cannot)
    gpus = _alike(asked.gpus)
    for width in [n for n in range(1, len(gpus) + 1) if divides(asked.facts, n)]:
        memory = _memory(asked, gpus[0], width, 1)
        if memory is None:
            return Served(runtime=VLLM, can=False, why="how vLLM pages the cache of this kind of model is not stated "
                          "here, so its plan would be a guess")  # fmt: skip
        if memory.max_num_seqs >= asked.n_parallel:
            return _served(asked, memory, gpus[0], nodes=1)
    return _over_nodes(asked, gpus)


def _vllm_cannot(asked: Asked) -> str | None:
    """The first reason against it."""
    facts = asked.facts
    if not asked.gpus:
        return "there is no GPU, and on a CPU llama.cpp reads a quarter of the bytes"
    if facts.origin is FactsOrigin.GGUF_HEADER:
        return "it loads original weights, and this is a GGUF"
    if asked.nature.kind in (Kind.DIFFUSION, Kind.ENCODER_DECODER):
        return f"it does not serve this kind of model ({asked.nature.kind.value})"
    first = asked.gpus[0]
    if first.vendor not in ("nvidia", "amd"):
        return f"it has no wheels for {first.vendor} GPUs"
    capability = first.compute_capability
    if first.vendor == "nvidia" and capability is not None and capability < LEAST_COMPUTE:
        return f"{first.product} is older than what it runs on (compute capability 7.0)"
    return None


def _alike(gpus: Sequence[GpuFacts]) -> list[GpuFacts]:
    """The largest set of one product: tensor parallel wants equal cards."""
    by_product: dict[str, list[GpuFacts]] = {}
    for gpu in gpus:
        by_product.setdefault(gpu.product, []).append(gpu)
    return max(by_product.values(), key=lambda same: sum(gpu.total_bytes for gpu in same))


def _memory(asked: Asked, gpu: GpuFacts, width: int, nodes: int) -> VllmMemory | None:
    return vllm_memory(
        asked.facts, total_bytes=gpu.total_bytes, n_ctx=asked.n_ctx, n_seqs=asked.n_parallel,
        driver_bytes=asked.driver_bytes, tensor_parallel=width, pipeline_parallel=nodes,
    )  # fmt: skip


def _over_nodes(asked: Asked, gpus: Sequence[GpuFacts]) -> Served:
    """Pipeline parallel over machines like this one, tensor parallel within each."""
    width = max((n for n in range(1, len(gpus) + 1) if divides(asked.facts, n)), default=1)
    weights = _memory(asked, gpus[0], width, 1)
    assert weights is not None
    need = (
        f"{weights.weights_bytes * width / GIB:.1f} GiB of weights in 16 bit and {asked.n_parallel} × {asked.n_ctx:,}"
    )
    for nodes in range(2, min(_MOST_NODES, asked.facts.n_layer) + 1):
        memory = _memory(asked, gpus[0], width, nodes)
        if memory is not None and memory.max_num_seqs >= asked.n_parallel:
            told = _served(asked, memory, gpus[0], nodes=nodes)
            why = f"{need} tokens do not fit here; {nodes} such machines hold them (pipeline parallel)"
            return Served(runtime=VLLM, can=False, why=why, total_per_s=told.total_per_s, memory=memory, nodes=nodes)
    return Served(runtime=VLLM, can=False, why=f"{need} tokens do not fit, nor on {_MOST_NODES} such machines")


def _served(asked: Asked, memory: VllmMemory, gpu: GpuFacts, *, nodes: int) -> Served:
    n = memory.tensor_parallel
    where = f"{n} × {gpu.product}" if n > 1 else gpu.product
    why = (
        f"{asked.n_parallel} requests at a time of {asked.n_ctx:,} tokens fit on {where} in 16 bit beside "
        f"{memory.weights_bytes / GIB:.1f} GiB of weights: batching them reads the weights once for all"
    )
    says = ("its blocks are planned with an assumed allowance for its dry run; it prints the real count at start",)
    return Served(runtime=VLLM, can=True, why=why, total_per_s=_throughput(asked, memory, gpu), memory=memory,
                  nodes=nodes, says=(*says, *_tools(asked)))  # fmt: skip


def _tools(asked: Asked) -> tuple[str, ...]:
    if not asked.wants_tools:
        return ()
    return ("tool calls need --enable-auto-tool-choice and the parser of the model's family",)


def _throughput(asked: Asked, memory: VllmMemory, gpu: GpuFacts) -> Figure | None:
    """Bytes over bandwidth of a step that serves all requests, each half as long as its context: weights once, every
    request's cache."""
    if not gpu.bandwidth_bytes_per_s or asked.nature.embeds:
        return None
    facts = asked.facts
    touched = 1.0
    if facts.n_expert and facts.n_expert_used:
        touched = 1 - (1 - facts.active_parameters / facts.parameters) ** asked.n_parallel
    per_token = memory.block_bytes * (memory.concurrency and memory.n_blocks / memory.concurrency) / asked.n_ctx
    read = memory.weights_bytes * touched + asked.n_parallel * per_token * asked.n_ctx / 2
    per_s = gpu.bandwidth_bytes_per_s / read * asked.n_parallel
    origin = "calculated: bytes of a step over the bandwidth, 0.5 to 0.9 of it; no run of vLLM is behind it"
    return Figure(value=_READ * per_s, low=_READ_LOW * per_s, high=_READ_HIGH * per_s, origin=origin)
