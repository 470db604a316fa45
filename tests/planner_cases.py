"""Random models, hosts and requests for the planner, and every candidate of a space, one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from quantplan.artifact.plan_file import Quality
from quantplan.cli.plan_tools import ModelOnHost, capacities_of
from quantplan.hardware.facts import CpuFacts, GpuFacts, HostFacts, PcieFacts, RamFacts
from quantplan.memory.drivers import driver_context
from quantplan.memory.estimate import HOST
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.hf_config import header_from_config
from quantplan.planner.candidates import capacities_for
from quantplan.planner.instruments import Instruments, device_sets, least_context, shortage, space_of
from quantplan.planner.request import SLOTS, Objective, PlanRequest, Setting
from quantplan.planner.score import Key, Merits, cache_worth, key_of
from quantplan.planner.search import Search
from quantplan.planner.speed import speed_host
from quantplan.rehearsal.calibration import shipped_calibration
from quantplan.units import MIB

DAMAGE = {"Q8_0": 0.0014, "Q6_K": 0.0055, "Q5_K_M": 0.0108, "Q4_K_M": 0.0313, "Q3_K_M": 0.08, "Q2_K": 0.445}
DENSE, EXPERTS = "LlamaForCausalLM", "Qwen3MoeForCausalLM"


def facts(architecture: str, *, n_layer: int, n_embd: int, n_ff: int, n_vocab: int, n_head_kv: int, n_expert: int = 8,
          n_ctx_train: int = 65536) -> ModelFacts:  # fmt: skip
    """A model of any size, as its configuration gives it."""
    config: dict[str, Any] = {
        "architectures": [architecture], "hidden_size": n_embd, "intermediate_size": n_ff, "vocab_size": n_vocab,
        "num_hidden_layers": n_layer, "num_attention_heads": n_embd // 64, "num_key_value_heads": n_head_kv,
        "head_dim": 64, "max_position_embeddings": n_ctx_train, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": False, "model_type": "llama" if architecture == DENSE else "qwen3_moe",
    }  # fmt: skip
    if architecture == EXPERTS:
        config |= {"num_experts": n_expert, "num_experts_per_tok": 2, "moe_intermediate_size": n_ff,
                   "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}  # fmt: skip
    header = header_from_config(config, path="test")
    return facts_from_metadata(header.metadata, header.tensors, id="test/model", origin=FactsOrigin.CONFIG)


@dataclass(frozen=True)
class Case:
    """One model on one host, asked for something."""

    facts: ModelFacts
    host: HostFacts
    request: PlanRequest
    name: str


def host_of(gpus: list[tuple[int, int]], *, ram_bytes: int, ram_rate: int) -> HostFacts:
    """GPUs as (usable bytes, bytes/s)."""
    driver = driver_context("Unnamed").planned_bytes
    return HostFacts(
        os="Linux", cpu=CpuFacts(model="test", n_physical=8, n_logical=8, n_threads=8, simd=("avx2",)),
        ram=RamFacts(total_bytes=ram_bytes, available_bytes=ram_bytes, bandwidth_bytes_per_s=ram_rate),
        gpus=tuple(
            GpuFacts(name=f"CUDA{i}", product="Unnamed", vendor="nvidia", total_bytes=n + driver, free_bytes=n + driver,
                     bandwidth_bytes_per_s=rate, pcie=PcieFacts(generation=4, width=16))
            for i, (n, rate) in enumerate(gpus)
        ),
    )  # fmt: skip


def random_case(seed: int, *, n_layer: tuple[int, int] = (2, 5), wide: bool = False) -> Case:
    """A small model, and devices that hold from nothing to all of it."""
    rng = random.Random(seed)
    experts = rng.random() < 0.4
    n_gpu = rng.choice((0, 1, 1, 1, 2))
    layers = rng.randint(*n_layer) if n_gpu < 2 or wide else rng.randint(2, 3)
    model = facts(
        EXPERTS if experts else DENSE, n_layer=layers, n_embd=rng.choice((256, 512, 1024)),
        n_ff=rng.choice((512, 1024, 2048)),
        n_vocab=rng.choice((1000, 8000, 32000)), n_head_kv=rng.choice((1, 2, 4)), n_expert=rng.choice((4, 8, 16)),
        n_ctx_train=rng.choice((4096, 16384, 65536)),
    )  # fmt: skip
    size = model.parameters  # bytes at about 8 bits
    gpus = [(int(size * rng.uniform(0.05, 1.4)) + rng.randint(0, 120) * MIB, rng.randint(100, 2000) * 10**9)
            for _ in range(n_gpu)]  # fmt: skip
    host = host_of(gpus, ram_bytes=int(size * rng.uniform(0.2, 3)) + rng.randint(20, 200) * MIB,
                   ram_rate=rng.randint(15, 90) * 10**9)  # fmt: skip
    quants = tuple(rng.sample(sorted(DAMAGE), k=rng.randint(1, 6 if wide else 3)))
    request = PlanRequest(
        objective=rng.choice(list(Objective)), quants=quants,
        n_ctx_min=rng.choice((256, 512, 2048, 8192)), n_parallel=rng.choice((1, 1, 2, 4)),
        kv_types=rng.choice(((("f16", "f16"),), (("f16", "f16"), ("q8_0", "q8_0")))),
        n_ubatches=rng.choice(((512,), (128, 512), (512, 2048))),
        min_tokens_per_s=rng.choice((None, None, None, 50.0, 400.0)),
    )  # fmt: skip
    if not wide:
        request = replace(request, n_ctx=request.n_ctx_min if rng.random() < 0.5 else None)
    return Case(model, host, request, f"seed {seed}")


def instruments(case: Case) -> Instruments:
    """The real memory and speed models; damage from a fixed table."""
    model = ModelOnHost(
        facts=case.facts, host=case.host, speeds=speed_host(case.host, shipped_calibration()),
        quality_of=lambda quant: Quality(kld_mean=DAMAGE[quant], ppl_ratio=None, low=None, high=None, origin="test"),
        objection=lambda quant: "too coarse" if quant in ("Q2_K", "Q3_K_M") else None,
    )  # fmt: skip
    return model.instruments(capacities_of(case.host, margins={"GPU": 0, HOST: 0}))


def compositions(total: int, n: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a total as n counts from 0."""
    if n == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, n - 1):
            yield (first, *rest)


def placements(case: Case, request: PlanRequest, tools: Instruments) -> Iterator[dict[str, Any]]:
    """Every placement: devices, layers on them, their split, layers whose experts stay on the host."""
    n = case.facts.n_layer
    for devices in device_sets(request, tools):
        if not devices:
            yield {"devices": (), "n_gpu_layers": 0}
            continue
        for n_gpu_layers in range(n + 2):
            for split in compositions(n_gpu_layers, len(devices)):
                for n_cpu_moe in range(n + 1) if case.facts.n_expert else (0,):
                    yield {"devices": devices, "n_gpu_layers": n_gpu_layers, "n_cpu_moe": n_cpu_moe,
                           "tensor_split": split if len(devices) > 1 and n_gpu_layers else ()}  # fmt: skip


def candidates(case: Case, tools: Instruments) -> list[Setting]:
    """The whole space of a case."""
    space = space_of(case.request, tools, slots=SLOTS)
    axes = product(space.quants, space.kv_types, space.n_parallels, space.n_ubatches, space.contexts,
                   list(placements(case, case.request, tools)))  # fmt: skip
    return [
        Setting(quant=quant, n_ctx=n_ctx, n_parallel=slots, type_k=kv[0], type_v=kv[1], n_ubatch=n_ubatch, **where)
        for quant, kv, slots, n_ubatch, n_ctx, where in axes
    ]


def key(case: Case, tools: Instruments, setting: Setting) -> Key | None:
    """The key of a candidate, worked out without the search; None where it is too slow."""
    request = case.request
    depth = request.n_depth or least_context(request, tools.n_ctx_train)
    if request.objective is Objective.CONTEXT:
        depth = setting.n_ctx
    pooled = replace(setting, n_ctx=depth)
    decode, prefill = tools.speed_of(pooled, depth, 1)
    total = decode if setting.n_parallel == 1 else tools.speed_of(pooled, depth, setting.n_parallel)[0]
    if request.min_tokens_per_s is not None and decode < request.min_tokens_per_s:
        return None
    merits = Merits(
        decode=decode, total=total, prefill=prefill, damage=tools.damage_of(setting.quant),
        advised=tools.objection(setting.quant) is None, cache=cache_worth(setting.type_k, setting.type_v),
    )  # fmt: skip
    return key_of(request, merits, n_ctx=setting.n_ctx, n_parallel=setting.n_parallel, n_devices=len(setting.devices),
                  n_ubatch=setting.n_ubatch)  # fmt: skip


def brute_force(case: Case, tools: Instruments) -> tuple[Setting, Key] | None:
    """The best of all candidates that fit: all keys, then memory in the order of the keys until one fits."""
    keyed = [(found, setting) for setting in candidates(case, tools) if (found := key(case, tools, setting))]
    capacities = capacities_for(case.request, tools)
    for found, setting in sorted(keyed, key=lambda pair: pair[0], reverse=True):
        if shortage(tools.memory_of(setting), capacities) is None:
            return setting, found
    return None


def compare(case: Case) -> str | None:
    """What is wrong with the search's answer, or None. The search and brute force have instruments of their own."""
    found = Search(instruments(case)).best(case.request)
    tools = instruments(case)
    best = brute_force(case, tools)
    if found is None:
        return f"{case.name}: nothing found, but {best[0]} fits" if best else None
    if shortage(tools.memory_of(found.setting), capacities_for(case.request, tools)) is not None:
        return f"{case.name}: {found.setting} does not fit"
    own = key(case, tools, found.setting)
    if own != found.key:
        return f"{case.name}: its key is {own}, not {found.key}"
    if best is not None and best[1] > found.key:
        return f"{case.name}: {found.setting} {found.key} is worse than {best[0]} {best[1]}"
    return None if best is not None else f"{case.name}: brute force found nothing, the search {found.setting}"
