"""Artifacts and plans of every kind that an export has to say the same of everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifact_fixture import artifact
from serving.tiny_plan import bare_plan

from quantplan.artifact.plan_file import Plan, PlannedDevice, write_plan
from quantplan.serving.export.deployment import Deployment, deployment_of
from quantplan.serving.export.target import Target
from quantplan.serving.source import admit, find_served
from quantplan.units import MIB


def device(name: str, mib: int, *, context_mib: int = 0) -> PlannedDevice:
    return PlannedDevice(name=name, model_bytes=mib * MIB + 123, context_bytes=context_mib * MIB, compute_bytes=77,
                         output_bytes=1, overhead_bytes=0, capacity_bytes=None, free_bytes=None)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """Changes of a plan, files beside the model, and the model's shards (tensors in each, 0: one file)."""

    name: str
    plan: Mapping[str, Any] = field(default_factory=dict)
    companions: tuple[str, ...] = ()
    split: int = 0


CPU = (device("Host", 4000, context_mib=512),)
ONE = (device("Host", 900), device("CUDA0", 6000, context_mib=1024))
TWO = (*ONE, device("CUDA1", 5000, context_mib=1024))
CASES = (
    Case(name="cpu"),
    Case(name="partial offload", plan={"memory": ONE, "n_gpu_layers": 17, "n_cpu_moe": 3}),
    Case(name="two cards", plan={"memory": TWO, "n_gpu_layers": 33, "tensor_split": (17.0, 16.0),
                                 "devices": ("CUDA0", "CUDA1")}),
    Case(name="the second card", plan={"memory": (ONE[0], TWO[2]), "n_gpu_layers": 33, "devices": ("CUDA1",)}),
    Case(name="slots of their own", plan={"n_parallel": 4, "kv_unified": False, "n_ctx_per_slot": 8192}),
    Case(name="one pool", plan={"n_parallel": 6, "kv_unified": True, "n_ctx_per_slot": 4096}),
    Case(name="quantized cache", plan={"type_k": "q8_0", "type_v": "q4_0", "flash_attn": "on"}),
    Case(name="shards", split=1),
    Case(name="projector and draft", plan={"mmproj": "mmproj-m.gguf", "draft": "../beside/draft.gguf"},
         companions=("mmproj-m.gguf", "../beside/draft.gguf")),
    Case(name="pinned threads", plan={"threads": 6, "threads_batch": 8, "cpu_range": "0-7", "numa": "isolate"}),
    Case(name="locked", plan={"load_mode": "mmap+mlock", "cache_ram_bytes": 512 * MIB}),
    Case(name="awkward words", plan={"model": "Org/Model $HOME %n {x} ü", "override_tensor":
                                     (r"blk\.(1|2)\.ffn_.*_exps.=CPU", r"^a$=CPU")}),
    Case(name="vectors", plan={"embeddings": True}),
)  # fmt: skip


def plan_of(case: Case) -> Plan:
    source = {"repo": "org/model", "revision": "0" * 40, "file": None, "sha256": None}
    return bare_plan(**{"memory": CPU, "threads": 3, "threads_batch": 3, "source": source, **case.plan})


def made(folder: Path, case: Case) -> Path:
    """The case's artifact with its plan; returns the folder."""
    found = artifact(folder / "artifacts" / "m-Q4_K_M", split=case.split)
    for name in case.companions:
        path = found / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"GGUF" + name.encode())
    write_plan(found / "plan.json", plan_of(case))
    return found


def deployment(folder: Path, case: Case, **target: Any) -> Deployment:
    served = find_served(made(folder, case))
    admit(served, allow_unvalidated=False, say=print)
    return deployment_of(served, plan_file=served.model.parent / "plan.json", target=replace(Target(), **target))
