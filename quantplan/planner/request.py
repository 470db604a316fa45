"""What is asked of the planner, and what it may choose from."""

from __future__ import annotations

from dataclasses import dataclass

# Best first. Below Q4_K_M the published damage grows steeply: only when nothing better fits.
PRESETS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
USUAL_N_CTX = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Constraints. None leaves the choice to the planner. Sizes in bytes, n_ctx in tokens a slot."""

    n_ctx: int | None = None
    n_parallel: int = 1
    quants: tuple[str, ...] = PRESETS
    type_k: str = "f16"
    type_v: str = "f16"
    n_batch: int = 2048
    n_ubatch: int = 512
    cache_ram_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One candidate: what the server would be told, as far as memory depends on it."""

    quant: str
    n_ctx: int  # a slot
    n_parallel: int
    n_gpu_layers: int
    type_k: str
    type_v: str
    n_batch: int
    n_ubatch: int
    flash_attn: str = "auto"

    @property
    def kv_unified(self) -> bool:
        """Several slots share one pool with a limit each; one slot needs none."""
        return self.n_parallel > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a device has, and what of it stays free for others, with the reason."""

    name: str
    capacity_bytes: int
    free_bytes: int
    margin_bytes: int
    margin_why: str
    bandwidth_bytes_per_s: int | None = None
    bandwidth_is_measured: bool = False  # what the engine got out of the device in 16 bit, not the datasheet's

    @property
    def usable_bytes(self) -> int:
        return max(0, self.free_bytes - self.margin_bytes)
