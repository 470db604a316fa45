"""Companions of a model, put to a real llama-server start: a draft, an adapter, a projector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantplan.errors import CannotExpress
from quantplan.hardware.detect import detect_host
from quantplan.llama.types import Toolchain
from quantplan.memory.estimate import HOST
from quantplan.rehearsal.ask import Answer, ask_engine, estimate
from quantplan.rehearsal.companions import own_and_companions
from quantplan.rehearsal.rehearse import rehearse
from quantplan.units import MIB

MODEL = "Qwen/Qwen3-0.6B"
N_EMBD = 1024
RANK = 16
LINES = (
    "load_tensors:   CPU_Mapped model buffer size =   356.53 MiB",
    "llama_adapter_lora_init_impl:        CPU LoRA buffer size =     7.00 MiB",
    "sched_reserve:        CPU compute buffer size =    30.00 MiB",
    "common_speculative_init_result: loading draft model 'x.gguf'",
    "load_tensors:   CPU_Mapped model buffer size =   604.00 MiB",
    "sched_reserve:        CPU compute buffer size =    29.00 MiB",
    "sched_reserve: reserve took 7.92 ms, sched copies = 1",
    "clip_model_loader: model name:",
    "clip_ctx: CLIP using CPU backend",
    "load_hparams: model size:         1.00 MiB",
    "reserve_compute_meta:        CPU compute buffer size =     5.00 MiB",
    "sched_reserve:        CPU compute buffer size =    31.00 MiB",
)


def planned(**question: object) -> Answer:
    host = replace(detect_host(), gpus=())
    return estimate(MODEL, hardware=host, quant="Q4_0", n_ctx=2048, cache_ram_bytes=0, **question)  # type: ignore[arg-type]


def write_adapter(path: Path, *, n_layer: int = 28) -> None:
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 16.0)
    for i in range(n_layer):
        writer.add_tensor(f"blk.{i}.attn_q.weight.lora_a", np.zeros((RANK, N_EMBD), dtype=np.float32))
        writer.add_tensor(f"blk.{i}.attn_q.weight.lora_b", np.zeros((2048, RANK), dtype=np.float32))
    finish(writer)


def write_projector(path: Path, *, n_embd: int = 64, n_layer: int = 2, size: int = 64, patch: int = 16) -> None:
    """A small SigLIP with an Idefics3 projector (tools/mtmd/clip.cpp)."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "idefics3")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {"embedding_length": n_embd, "attention.head_count": 4, "feed_forward_length": 4 * n_embd,
                       "block_count": n_layer, "projection_dim": N_EMBD, "image_size": size, "patch_size": patch,
                       "projector.scale_factor": 2, "preproc_image_size": size}.items():  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    shapes = {"v.patch_embd.weight": (n_embd, 3, patch, patch), "v.patch_embd.bias": (n_embd,),
              "v.position_embd.weight": ((size // patch) ** 2, n_embd), "mm.model.fc.weight": (N_EMBD, 4 * n_embd),
              "v.post_ln.weight": (n_embd,), "v.post_ln.bias": (n_embd,)}  # fmt: skip
    for i in range(n_layer):
        wide = {"ffn_up": (4 * n_embd, n_embd), "ffn_down": (n_embd, 4 * n_embd)}
        square = {f"attn_{name}": (n_embd, n_embd) for name in ("q", "k", "v", "out")}
        for name, shape in (wide | square | {"ln1": (n_embd,), "ln2": (n_embd,)}).items():
            shapes[f"v.blk.{i}.{name}.weight"] = shape
            shapes[f"v.blk.{i}.{name}.bias"] = shape[:1]
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_servers_buffers_are_told_apart() -> None:
    own, beside = own_and_companions(LINES)
    assert [b.n_bytes for b in own] == [round(356.53 * MIB), 31 * MIB]
    assert [b.n_bytes for b in beside] == [7 * MIB, MIB, 604 * MIB, 29 * MIB, 5 * MIB]


def test_fit_params_is_not_asked_for_companions(toolchain: Toolchain, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    write_adapter(adapter, n_layer=1)
    with pytest.raises(CannotExpress, match="an adapter"):
        ask_engine(planned(lora=(adapter,), n_parallel=1, reserve="fit-params"))


@pytest.mark.tools
def test_a_draft_takes_what_was_calculated(toolchain: Toolchain) -> None:
    answer = planned(draft=MODEL, type_k="q8_0", type_v="q8_0")
    found = ask_engine(answer)
    assert found.measured is not None
    told, said = found.measured.device(HOST), answer.memory.device(HOST)
    parts = ("mapped_bytes", "repacked_bytes", "context_bytes", "compute_bytes", "extra_bytes")
    assert {part: abs(getattr(told, part) - getattr(said, part)) // MIB for part in parts} == dict.fromkeys(parts, 0)
    # a start reserves the logits of one token a slot; with the first draft the buffer grows to what is planned
    assert abs(said.output_bytes - 4 * told.output_bytes) < MIB


@pytest.mark.tools
def test_an_adapter_and_a_projector_are_loaded(toolchain: Toolchain, tmp_path: Path) -> None:
    adapter, projector = tmp_path / "adapter.gguf", tmp_path / "mmproj.gguf"
    write_adapter(adapter)
    write_projector(projector)
    answer = planned(lora=(adapter,), mmproj=projector)
    found = rehearse(answer, toolchain, n_prompt=32, n_decode=4, folder=tmp_path)
    told, said = found.measured.device(HOST), answer.memory.device(HOST)
    weights = adapter.stat().st_size + projector.stat().st_size
    assert said.extra_bytes == weights
    assert weights < told.extra_bytes < weights + 2 * MIB  # and the projector's compute buffer
    assert abs(told.context_bytes - said.context_bytes) < MIB
    assert found.speed is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.gguf", "mmproj.gguf"]
