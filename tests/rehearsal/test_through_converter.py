"""Architectures that our tables do not know, answered through the converter's own classes in a process of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quantplan.errors import ToolMissing, UnsupportedArchitecture
from quantplan.llama.types import Toolchain
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.read import read_model
from quantplan.model.resolve import CheckpointModel, from_path
from quantplan.model.safetensors_header import SafetensorsTensor
from quantplan.rehearsal.engine_word import ask_fit_params, weightless_file
from quantplan.rehearsal.through_converter import (
    converter_tree,
    facts_through_converter,
    read_any_model,
    write_safetensors_hole,
)

N_EMBD, N_FF, N_LAYER, N_VOCAB = 256, 512, 2, 1000
CONFIG = {
    "architectures": ["OrionForCausalLM"], "model_type": "orion", "hidden_size": N_EMBD, "intermediate_size": N_FF,
    "num_hidden_layers": N_LAYER, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": N_VOCAB,
    "max_sequence_length": 4096, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def orion(tmp_path: Path) -> Path:
    """A checkpoint that the converter knows and our tables do not, without weights."""
    shapes = {"model.embed_tokens.weight": (N_VOCAB, N_EMBD), "lm_head.weight": (N_VOCAB, N_EMBD),
              "model.norm.weight": (N_EMBD,), "model.norm.bias": (N_EMBD,)}  # fmt: skip
    for i in range(N_LAYER):
        square = {f"self_attn.{name}_proj.weight": (N_EMBD, N_EMBD) for name in "qkvo"}
        mlp = {"mlp.gate_proj.weight": (N_FF, N_EMBD), "mlp.up_proj.weight": (N_FF, N_EMBD),
               "mlp.down_proj.weight": (N_EMBD, N_FF)}  # fmt: skip
        norms = {f"{name}_layernorm.{part}": (N_EMBD,) for name in ("input", "post_attention")
                 for part in ("weight", "bias")}  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in (square | mlp | norms).items()}
    folder = tmp_path / "orion"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors_hole(folder / "model.safetensors",
                           [SafetensorsTensor(name=n, dtype="BF16", shape=s) for n, s in shapes.items()])  # fmt: skip
    return folder


@pytest.fixture
def tree(toolchain: Toolchain) -> Path:
    if given := os.environ.get("QUANTPLAN_LLAMA_TREE"):
        return Path(given)
    try:
        return converter_tree()
    except ToolMissing as error:
        pytest.skip(f"{error}; install it with: quantplan toolchain install --converter")


def test_our_tables_do_not_know_it(orion: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="OrionForCausalLM"):
        read_model(str(orion))


def test_what_the_converter_lacks_is_said(orion: Path) -> None:
    with pytest.raises(ToolMissing):
        converter_tree(lacking=lambda: ("torch",))


@pytest.mark.build
@pytest.mark.tools
def test_the_engine_answers_for_it(orion: Path, tree: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    found = from_path(orion)
    assert isinstance(found, CheckpointModel)
    facts = facts_through_converter(found, tree=tree)
    assert (facts.arch, facts.n_layer, facts.n_vocab) == ("orion", N_LAYER, N_VOCAB)
    assert len(facts.tensors) == 4 + 11 * N_LAYER
    ctx = ContextParams(n_ctx=1024, n_parallel=1)
    with weightless_file(facts, facts.tensors, folder=tmp_path) as file:
        told = ask_fit_params(toolchain, file, ctx, Placement()).devices[0]
    assert told.context_bytes == 2 * N_LAYER * N_EMBD * 1024 * 2


def test_a_model_of_the_tables_never_asks_the_converter() -> None:
    assert read_any_model("Qwen/Qwen3-0.6B") == read_model("Qwen/Qwen3-0.6B")
