"""What the user may choose: the context, and which tensors go to which device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from quantplan.errors import BadValue
from quantplan.units import MIB, pad

# common/common.h, LLM_FFN_EXPS_REGEX (llama.cpp 0c1e570): what --cpu-moe keeps on the host.
EXPERTS_PATTERN = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
# common/arg.cpp, kv_cache_types
KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1")
_PLAIN_TYPES = ("F32", "F16", "BF16")
CELLS_PAD = 256  # src/llama-context.cpp: n_ctx and n_ctx_seq are padded to 256
SERVER_SLOTS = 4  # tools/server/server.cpp: -np auto is 4 slots sharing one cache
DRAFT_TOKENS = 3  # common/common.h, common_params_speculative_draft::n_max (commit 0c1e570)
DEFAULT_CACHE_RAM_BYTES = 8192 * MIB  # common/common.h, cache_ram_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """The flags of a context. n_parallel None is the server's `auto`: 4 slots, unified.

    kv_unified None: as the engine would choose (unified with automatic slots, split otherwise).
    """

    n_ctx: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_parallel: int | None = None
    kv_unified: bool | None = None
    type_k: str = "F16"
    type_v: str = "F16"
    flash_attn: bool = True  # `auto` turns it on wherever every layer's device can
    swa_full: bool = False
    kv_offload: bool = True
    n_draft: int = 0  # tokens a draft may take back: they multiply the recurrent state
    n_outputs_per_slot: int = 1  # tokens whose logits a slot keeps: with a draft, one more for each drafted token
    cache_ram_bytes: int = DEFAULT_CACHE_RAM_BYTES

    def __post_init__(self) -> None:
        counts = (
            ("context", self.n_ctx, 1),
            ("batch", self.n_batch, 1),
            ("micro-batch", self.n_ubatch, 1),
            ("draft tokens", self.n_draft, 0),
            ("outputs of a slot", self.n_outputs_per_slot, 1),
            ("prompt cache", self.cache_ram_bytes, -1),
        )
        for what, value, low in counts:
            if not low <= value < 2**50:
                raise BadValue(what=what, value=value, why=f"must be at least {low} and a size that can exist")
        if self.n_ctx >= 2**31:
            raise BadValue(what="context", value=self.n_ctx, why="is longer than the engine can count")
        if self.n_parallel is not None and not 1 <= self.n_parallel <= 256:
            raise BadValue(what="parallel slots", value=self.n_parallel, why="must be 1 to 256")  # LLAMA_MAX_SEQ
        for which, kind in (("K", self.type_k), ("V", self.type_v)):
            if kind not in KV_TYPES:
                why = f"is no type of a {which} cache: {', '.join(t.lower() for t in KV_TYPES)}"
                raise BadValue(what="cache type", value=kind, why=why)
        if not self.flash_attn and self.type_v not in _PLAIN_TYPES:
            raise BadValue(
                what="V cache type", value=self.type_v.lower(), why="is quantized, which needs flash attention"
            )

    @property
    def n_slots(self) -> int:
        return SERVER_SLOTS if self.n_parallel is None else self.n_parallel

    @property
    def n_outputs(self) -> int:
        """Tokens of one batch whose logits are kept (common/speculative.cpp, get_output_limits)."""
        return min(self.n_batch, self.n_slots * self.n_outputs_per_slot)

    @property
    def unified(self) -> bool:
        return self.n_parallel is None if self.kv_unified is None else self.kv_unified

    @property
    def n_stream(self) -> int:
        return 1 if self.unified else self.n_slots

    @property
    def n_cells(self) -> int:
        """Cells of one stream's full cache (n_ctx_seq)."""
        cells = pad(self.n_ctx, CELLS_PAD)
        return cells if self.unified else pad(max(cells // self.n_slots, 1), CELLS_PAD)

    def n_cells_swa(self, n_swa: int) -> int:
        """Cells of one stream's sliding-window cache (src/llama-kv-cache-iswa.cpp)."""
        if self.swa_full:
            return self.n_cells
        window = n_swa * (self.n_slots if self.unified else 1) + self.n_ubatch_effective
        return pad(min(self.n_cells, window), CELLS_PAD)

    @property
    def n_ubatch_effective(self) -> int:
        """src/llama-context.cpp: neither batch is longer than the context, nor the micro-batch than the batch."""
        return min(self.n_ubatch, self.n_batch, self.n_ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where tensors go. `devices` are the GPUs by the engine's names; none means a CPU host.

    n_gpu_layers None offloads everything. `tensor_split` are shares (None: by `free_bytes`, else even).
    `overrides` are (pattern, device name or "CPU"), first match wins, before n_cpu_moe and cpu_moe.
    """

    devices: tuple[str, ...] = ()
    n_gpu_layers: int | None = None
    tensor_split: tuple[float, ...] | None = None
    free_bytes: tuple[int, ...] | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    n_cpu_moe: int = 0
    cpu_moe: bool = False
    no_op_offload: bool = False

    def __post_init__(self) -> None:
        if self.n_gpu_layers is not None and not 0 <= self.n_gpu_layers < 2**31:
            raise BadValue(what="GPU layers", value=self.n_gpu_layers, why="must be 0 or more")
        if not 0 <= self.n_cpu_moe < 2**31:
            raise BadValue(what="layers with experts on the CPU", value=self.n_cpu_moe, why="must be 0 or more")
        if self.tensor_split is not None:
            self._check_split(self.tensor_split)
        for pattern, device in self.overrides:
            if device not in (*self.devices, "CPU"):
                raise BadValue(what="tensor override", value=device, why="names no device of this plan")
            _compiled(pattern)

    def _check_split(self, split: tuple[float, ...]) -> None:
        if len(split) > max(len(self.devices), 1):
            why = f"has {len(split)} shares for {len(self.devices)} devices"
            raise BadValue(what="tensor split", value=",".join(f"{s:g}" for s in split), why=why)
        if any(not 0 <= share < float("inf") for share in split):
            raise BadValue(what="tensor split", value=split, why="must be shares of 0 or more")

    def layer_devices(self, n_layer: int) -> list[int]:
        """The backend of each layer and of the head at the end: a device's index, or len(devices) for the host."""
        n_devices = len(self.devices)
        n_gpu = n_layer + 1 if self.n_gpu_layers is None else min(self.n_gpu_layers, n_layer + 1)
        if n_devices == 0:
            return [0] * (n_layer + 1)
        start, bounds = n_layer + 1 - n_gpu, self._bounds()
        return [
            n_devices if il < start else min(sum(1 for b in bounds if b <= (il - start) / n_gpu), n_devices - 1)
            for il in range(n_layer + 1)
        ]

    def _bounds(self) -> list[float]:
        shares: Sequence[float] = self.tensor_split or ()
        if not any(shares):
            shares = self.free_bytes if self.free_bytes and any(self.free_bytes) else (1.0,) * len(self.devices)
        shares = [*shares, *([0.0] * (len(self.devices) - len(shares)))]
        total, bounds = 0.0, []
        for share in shares:
            total += share
            bounds.append(total)
        return [bound / total for bound in bounds]

    def override_of(self, name: str) -> str | None:
        """The device an override sends this tensor to, or None."""
        for pattern, device in self.overrides:
            if _compiled(pattern).search(name):
                return device
        layer = _expert_layer(name)
        if layer is not None and (self.cpu_moe or 0 <= layer < self.n_cpu_moe):
            return "CPU"
        return None

    @property
    def has_overrides(self) -> bool:
        return bool(self.overrides or self.cpu_moe or self.n_cpu_moe)


@cache
def _expert_layer(name: str) -> int | None:
    """The layer whose expert tensor this is, -1 for one outside the layers; None for any other tensor."""
    if not _compiled(EXPERTS_PATTERN).search(name):
        return None
    match = _compiled(r"blk\.(\d+)" + EXPERTS_PATTERN).search(name)
    return int(match[1]) if match else -1


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadValue(what="tensor override", value=pattern, why=f"is no regular expression: {error}") from None


def kv_bytes(kind: str, n_elements: int, sizes: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of n elements in a cache type; n is a whole number of blocks wherever the engine accepts the type."""
    block, size = sizes[kind]
    return n_elements // block * size
