"""What is asked of the planner, and what it may choose from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quantplan.quant.uses import Use

# Best first. Below Q4_K_M the published damage grows steeply: only when nothing better fits.
PRESETS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
USUAL_N_CTX = 8192
N_UBATCHES = (512, 1024, 2048)  # 512 is the engine's own; more helps where weights are copied to a GPU for a prompt
SLOTS = (1, 2, 4, 8, 16, 32, 64)  # what `throughput` chooses from
READING_PER_S = 5.0  # tokens: about as fast as people read; slower counts as not usable


class Objective(Enum):
    """What the plan should be best at; `planner.score` says what each means."""

    BALANCED = "balanced"
    QUALITY = "quality"
    SPEED = "speed"
    CONTEXT = "context"
    THROUGHPUT = "throughput"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One request: the tokens of its prompt that are new, and of its answer. Speeds are compared on it."""

    n_prompt: int = 1024
    n_answer: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Constraints. None leaves the choice to the planner. Sizes in bytes, n_ctx in tokens a slot.

    n_ctx is the context itself, n_ctx_min a lower bound of it. `min_tokens_per_s` is one request's decode.
    `any_preset`: presets that are advised against are as good as others (they were asked for by name).
    """

    objective: Objective = Objective.BALANCED
    use: Use = Use.GENERAL
    n_ctx: int | None = None
    n_ctx_min: int | None = None
    n_parallel: int | None = 1
    quants: tuple[str, ...] = PRESETS
    any_preset: bool = False
    kv_types: tuple[tuple[str, str], ...] = (("f16", "f16"), ("q8_0", "q8_0"))
    n_ubatches: tuple[int, ...] = N_UBATCHES
    min_tokens_per_s: float | None = None
    max_ram_bytes: int | None = None
    max_disk_bytes: int | None = None
    cache_ram_bytes: int | None = None
    workload: Workload = Workload()
    n_depth: int | None = None
    devices: tuple[str, ...] | None = None  # only these; () is the CPU alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One candidate: what the server would be told, as far as memory and speed depend on it.

    `devices` are the GPUs it may use. `tensor_split` counts layers (the head as one) on each, so that the engine cuts
    exactly there; () where there is one device or none.
    """

    quant: str
    n_ctx: int  # a slot
    n_parallel: int
    type_k: str
    type_v: str
    n_ubatch: int
    devices: tuple[str, ...] = ()
    n_gpu_layers: int = 0
    tensor_split: tuple[int, ...] = ()
    n_cpu_moe: int = 0
    flash_attn: str = "auto"

    @property
    def kv_unified(self) -> bool:
        """Several slots share one pool with a limit each; one slot needs none."""
        return self.n_parallel > 1

    @property
    def n_batch(self) -> int:
        """Never below the micro-batch; 2048 is the engine's own."""
        return max(2048, self.n_ubatch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a device has, and what of it stays free for others, with the reason.

    `taken_bytes` is what the plan needs there whatever the choice: the driver's context, companions. `unified`: its
    bytes are the host's RAM.
    """

    name: str
    capacity_bytes: int
    free_bytes: int
    margin_bytes: int
    margin_why: str
    taken_bytes: int = 0
    unified: bool = False

    @property
    def usable_bytes(self) -> int:
        return max(0, self.free_bytes - self.margin_bytes)
