"""The header derived of a configuration, against what the pinned converter wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.errors import BadConfig, QuantplanError, UnsupportedArchitecture
from quantplan.model import catalog
from quantplan.model.hf_config import ConvertedHeader, architecture_of, header_from_config
from quantplan.model.safetensors_header import SafetensorsTensor

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data" / "converter_goldens.json").read_text())
# Keys in which we differ from the converter on purpose, each with its reason.
ON_PURPOSE = {
    "expert_gating_func": "MiniMax M2: transformers drops the scoring function, and the engine aborts without one",
    "head_count_kv": "Granite 4: transformers 5 renames the layer types and the converter finds no attention layer",
    "general.file_type": "GPT-NeoX: the converter writes none; llama-quantize adds it",
    "xielu.": "Apertus: the values are in the weights",
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip


def digest(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    lines = sorted(f"{name} {'x'.join(map(str, shape))} {kind}" for name, shape, kind in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def compared(header: ConvertedHeader, golden: dict[str, Any]) -> None:
    assert len(header.tensors) == golden["n_tensors"]
    assert digest((t.name, t.shape, t.type_name) for t in header.tensors) == golden["digest"]
    ours = {key: list(v) if isinstance(v, tuple) else v for key, v in header.metadata.items()}
    keys = {key for key in {*ours, *golden["metadata"]} if not any(part in key for part in ON_PURPOSE)}
    told = golden["metadata"]
    assert {k: ours.get(k) for k in keys} == {k: told.get(k) for k in keys}


@pytest.mark.parametrize("name", sorted(GOLDENS["catalog"]))
def test_every_catalog_model_is_as_the_converter_writes_it(name: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    compared(header_from_config(entry.config), GOLDENS["catalog"][name])


@pytest.mark.parametrize("name", sorted(GOLDENS["configurations"]))
def test_every_architecture_is_as_the_converter_writes_it(name: str) -> None:
    golden = GOLDENS["configurations"][name]
    compared(header_from_config(golden["config"]), golden)


@pytest.mark.parametrize("name", sorted(GOLDENS["checkpoints"]))
def test_every_checkpoint_is_as_the_converter_writes_it(name: str) -> None:
    golden = GOLDENS["checkpoints"][name]
    compared(header_from_config(golden["config"], tensors=_stored(golden)), golden)


def _stored(golden: dict[str, Any]) -> list[SafetensorsTensor]:
    return [SafetensorsTensor(name=name, shape=tuple(shape), dtype=kind) for name, shape, kind in golden["tensors"]]


@pytest.mark.parametrize(
    ("name", "n_dropped"), [("hub_qwen3next_mtp", 0), ("hub_exaone_moe_mtp", 0), ("hub_exaone4_5_mtp_dropped", 15)]
)
def test_mtp_tensors_are_dropped_only_where_the_converter_drops_them(name: str, n_dropped: int) -> None:
    golden = GOLDENS["checkpoints"][name]
    header = header_from_config(golden["config"], tensors=_stored(golden))
    assert len(header.dropped) == n_dropped
    assert all(name.startswith("mtp.") for name in header.dropped)
    assert bool(header.warnings) == bool(n_dropped)


def test_mtp_layers_that_no_configuration_tells_of_are_warned_of_without_the_checkpoint() -> None:
    config = GOLDENS["checkpoints"]["hub_qwen3next_mtp"]["config"]
    assert any("MTP" in warning for warning in header_from_config(config).warnings)
    told = GOLDENS["checkpoints"]["hub_qwen3_5_mtp"]["config"]
    assert header_from_config(told).warnings == ()


def test_deepseek_v4_has_the_published_number_of_tensors() -> None:
    """anemll/DeepSeek-V4-Flash-FP4-FP8-SSD: 1199 tensors and 129 of experts, made of the 43 layers of V4 Flash."""
    config = {
        **GOLDENS["configurations"]["hub_deepseek4"]["config"],
        "num_hidden_layers": 43, "num_hash_layers": 3, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    }  # fmt: skip
    header = header_from_config(config)
    assert len(header.tensors) == 1199 + 129
    assert sum(t.type_name == "MXFP4" for t in header.tensors) == 129


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"expert_dtype": "fp8"}, "FP4"),
        ({"expert_dtype": None, "quantization_config": None}, "FP4"),
        ({"compress_ratios": [0, 4]}, "compress_ratios"),
        ({"compress_ratios": None}, "compress_ratios"),
        ({"num_hash_layers": None}, "num_hash_layers"),
    ],
)
def test_a_deepseek_v4_that_the_converter_refuses_is_refused(change: dict[str, Any], told: str) -> None:
    config = {**GOLDENS["configurations"]["hub_deepseek4"]["config"], **change}
    with pytest.raises(QuantplanError, match=told):
        header_from_config(config)


def test_deepseek_v4_experts_in_fp8_are_refused() -> None:
    golden = GOLDENS["checkpoints"]["hub_deepseek4"]
    expert = "layers.0.ffn.experts.0.w1.weight"
    fp8 = [
        SafetensorsTensor(name=t.name, shape=t.shape, dtype="F8_E4M3") if t.name == expert else t
        for t in _stored(golden)
    ]
    with pytest.raises(QuantplanError, match="FP4"):
        header_from_config(golden["config"], tensors=fp8)


def test_exact_tensors_of_a_small_llama() -> None:
    header = header_from_config(LLAMA)
    tensors = {t.name: (t.shape, t.type_name) for t in header.tensors}
    assert tensors["token_embd.weight"] == ((64, 320), "BF16")
    assert tensors["blk.1.attn_k.weight"] == ((64, 32), "BF16")
    assert tensors["blk.1.ffn_down.weight"] == ((128, 64), "BF16")
    assert tensors["output_norm.weight"] == ((64,), "F32")
    assert "output.weight" not in tensors
    assert len(tensors) == 2 + 9 * 2
    assert header.metadata["llama.attention.key_length"] == 16
    assert header.derived


def test_rope_is_read_in_both_spellings() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    on_the_hub = {**LLAMA, "rope_theta": 500000.0, "rope_scaling": {**scaling, "rope_type": "llama3"}}
    as_transformers = {**LLAMA, "rope_parameters": {**scaling, "rope_type": "llama3", "rope_theta": 500000.0}}
    assert header_from_config(on_the_hub) == header_from_config(as_transformers)
    assert header_from_config(on_the_hub).metadata["llama.rope.freq_base"] == 500000.0
    assert any(t.name == "rope_freqs.weight" for t in header_from_config(on_the_hub).tensors)


def test_layer_kinds_are_read_in_both_spellings() -> None:
    lfm2 = dict(GOLDENS["configurations"]["lfm2"]["config"])
    kinds = lfm2.pop("layer_types", None) or ["conv"] * lfm2["num_hidden_layers"]
    by_index = {**lfm2, "full_attn_idxs": [i for i, kind in enumerate(kinds) if kind == "full_attention"]}
    assert header_from_config(by_index) == header_from_config({**lfm2, "layer_types": kinds})


def test_what_is_left_out_takes_its_architectures_default() -> None:
    short = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    golden = GOLDENS["configurations"]["qwen3"]
    compared(header_from_config({**short, "num_hidden_layers": 6}), golden)


def test_an_explicit_null_is_no_default() -> None:
    base = next(e for e in catalog.entries() if e.id.endswith("DeepSeek-V2-Lite-Chat")).config
    assert "blk.0.attn_q.weight" in {t.name for t in header_from_config({**base, "q_lora_rank": None}).tensors}
    assert "blk.0.attn_q_a.weight" in {t.name for t in header_from_config({**base, "q_lora_rank": 1536}).tensors}


def _checkpoint(*, per_expert: bool) -> list[SafetensorsTensor]:
    """A small Mixtral as the hub keeps it, or with its experts fused as transformers 5 does."""
    rows: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (320, 64)), ("model.norm.weight", (64,)), ("lm_head.weight", (320, 64)),
        ("model.layers.0.input_layernorm.weight", (64,)), ("model.layers.0.post_attention_layernorm.weight", (64,)),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64)), ("model.layers.0.self_attn.k_proj.weight", (32, 64)),
        ("model.layers.0.self_attn.v_proj.weight", (32, 64)), ("model.layers.0.self_attn.o_proj.weight", (64, 64)),
        ("model.layers.0.block_sparse_moe.gate.weight", (4, 64)),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,)), ("vision_tower.patch.weight", (3, 5)),
    ]  # fmt: skip
    experts = "model.layers.0.block_sparse_moe.experts"
    if per_expert:
        for x in range(4):
            rows += [(f"{experts}.{x}.{w}.weight", (64, 128) if w == "w2" else (128, 64)) for w in ("w1", "w2", "w3")]
    else:
        rows += [(f"{experts}.gate_up_proj", (4, 256, 64)), (f"{experts}.down_proj", (4, 64, 128))]
    return [SafetensorsTensor(name=name, shape=shape, dtype="BF16") for name, shape in rows]


MIXTRAL = {
    **LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
    "num_hidden_layers": 1, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("per_expert", [True, False])
def test_a_checkpoints_own_tensors_with_experts_apart_or_fused(per_expert: bool) -> None:
    derived = header_from_config(MIXTRAL)
    read = header_from_config(MIXTRAL, tensors=_checkpoint(per_expert=per_expert))
    assert sorted(t.name for t in read.tensors) == sorted(t.name for t in derived.tensors)
    assert {t.name: t.shape for t in read.tensors} == {t.name: t.shape for t in derived.tensors}
    assert not read.derived
    assert (read.vision_parameters, read.vision_bytes) == (15, 30)
    assert read.warnings == ()


def test_the_checkpoint_wins_over_the_configuration() -> None:
    padded = [t for t in _checkpoint(per_expert=True) if t.name != "lm_head.weight"]
    padded[0] = SafetensorsTensor(name=padded[0].name, shape=(384, 64), dtype="BF16")
    bias = SafetensorsTensor(name="model.layers.0.self_attn.q_proj.bias", shape=(64,), dtype="BF16")
    header = header_from_config(MIXTRAL, tensors=[*padded, bias])
    shapes = {t.name: t.shape for t in header.tensors}
    assert shapes["token_embd.weight"] == (64, 384)
    assert shapes["blk.0.attn_q.bias"] == (64,)
    assert "output.weight" not in shapes
    assert header.warnings == ("1 tensors the checkpoint lacks output.weight",)


def test_what_the_gguf_has_no_place_for_is_named() -> None:
    stray = SafetensorsTensor(name="model.layers.0.mystery.weight", shape=(4,), dtype="BF16")
    header = header_from_config(MIXTRAL, tensors=[*_checkpoint(per_expert=True), stray])
    assert header.dropped == ("model.layers.0.mystery.weight",)
    assert "model.layers.0.mystery.weight" in header.warnings[0]


def test_nextn_layers_are_kept_where_the_converter_keeps_them() -> None:
    glm = {**GOLDENS["configurations"]["solar_open"]["config"], "num_nextn_predict_layers": 1}
    header = header_from_config(glm)
    assert header.metadata["glm4moe.block_count"] == glm["num_hidden_layers"] + 1
    assert f"blk.{glm['num_hidden_layers']}.nextn.eh_proj.weight" in {t.name for t in header.tensors}
    deepseek = {**GOLDENS["configurations"]["deepseek_v3"]["config"], "num_nextn_predict_layers": 1}
    assert header_from_config(deepseek).metadata["deepseek2.block_count"] == deepseek["num_hidden_layers"]


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        header_from_config({"architectures": ["NobodyForCausalLM"], "model_type": "nobody"})
    assert "LlamaForCausalLM" in caught.value.supported


@pytest.mark.parametrize(
    "broken",
    [
        {"architectures": []}, {"architectures": "LlamaForCausalLM"}, {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**9}, {"hidden_size": "4096"}, {"hidden_size": -1}, {"vocab_size": 2**50},
        {"num_attention_heads": [4, 4]}, {"num_key_value_heads": True}, {"intermediate_size": 1.5},
    ],
)  # fmt: skip
def test_a_broken_configuration_is_an_error_of_ours(broken: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        header_from_config({**LLAMA, **broken})


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(GOLDENS["configurations"])), st.data())
def test_no_configuration_makes_us_fall_over(name: str, data: st.DataObject) -> None:
    config = dict(GOLDENS["configurations"][name]["config"])
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3, unique=True)):
        if key not in ("num_hidden_layers", "n_layer", "text_config"):
            config[key] = data.draw(VALUES | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2))
    with contextlib.suppress(QuantplanError):
        header_from_config(config)


def test_the_text_parts_architecture_counts() -> None:
    assert architecture_of({"architectures": ["X"], "text_config": {"architectures": ["Lfm2ForCausalLM"]}}) == (
        "Lfm2ForCausalLM"
    )
