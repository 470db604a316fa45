"""Checkpoints that are already quantized: what the pinned converter makes of each tensor."""

from __future__ import annotations

from typing import Any

import pytest

from quantplan.errors import UnsupportedQuantization
from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config
from quantplan.model.safetensors_header import SafetensorsTensor

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
LAYER = "model.layers.0."
WEIGHTS = {
    "self_attn.q_proj": (128, 128), "self_attn.k_proj": (64, 128), "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128), "mlp.gate_proj": (256, 128), "mlp.up_proj": (256, 128), "mlp.down_proj": (128, 256),
}  # fmt: skip
PLAIN = {"model.embed_tokens.weight": (256, 128), "model.norm.weight": (128,)} | {
    f"{LAYER}{name}.weight": (128,) for name in ("input_layernorm", "post_attention_layernorm")
}


def header(quantization: dict[str, Any] | None, parts: dict[str, tuple[tuple[int, ...], str]]) -> Any:
    """A one-layer Llama whose seven matrices lie in parts: suffix to (shape of the out x in matrix, dtype)."""
    tensors = [SafetensorsTensor(name=name, shape=shape, dtype="BF16") for name, shape in PLAIN.items()]
    for name, (rows, columns) in WEIGHTS.items():
        for suffix, (scale, dtype) in parts.items():
            shape = tuple(int(eval(str(s), {"r": rows, "c": columns})) for s in scale)
            tensors.append(SafetensorsTensor(name=f"{LAYER}{name}{suffix}", shape=shape, dtype=dtype))
    return header_from_config({**LLAMA, "quantization_config": quantization}, tensors=tensors)


BF16 = header(None, {".weight": (("r", "c"), "BF16")})


@pytest.mark.parametrize(
    ("quantization", "parts"),
    [
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            {".weight": (("r", "c"), "F8_E4M3"), ".weight_scale_inv": (("(r+127)//128", "(c+127)//128"), "F32")},
        ),
        (
            {"quant_method": "gptq", "bits": 4},
            {".qweight": (("c//8", "r"), "I32"), ".qzeros": (("1", "r//8"), "I32"), ".scales": (("1", "r"), "F16"),
             ".g_idx": (("c",), "I32")},
        ),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized",
             "config_groups": {"group_0": {"weights": {"strategy": "channel", "type": "float", "num_bits": 8}}}},
            {".weight": (("r", "c"), "F8_E4M3"), ".weight_scale": (("r", "1"), "BF16")},
        ),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized",
             "config_groups": {"group_0": {"weights": {"strategy": "group", "group_size": 32, "num_bits": 4}}}},
            {".weight_packed": (("r", "c//8"), "I32"), ".weight_scale": (("r", "c//32"), "BF16"),
             ".weight_shape": (("2",), "I64")},
        ),
        ({"quant_method": "bitnet"}, {".weight": (("r//4", "c"), "U8"), ".weight_scale": (("1",), "BF16")}),
    ],
)  # fmt: skip
def test_most_are_dequantized_to_bf16(quantization: dict[str, Any], parts: dict[str, Any]) -> None:
    read = header(quantization, parts)
    assert read.tensors == BF16.tensors
    assert read.warnings == ()
    assert read.metadata["general.file_type"] == 32


def test_nvfp4_stays_nvfp4_with_its_scales() -> None:
    read = header(
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {
            ".weight": (("r", "c//2"), "U8"), ".weight_scale": (("r", "c//16"), "F8_E4M3"),
            ".weight_scale_2": (("1",), "F32"), ".input_scale": (("1",), "F32"),
        },
    )  # fmt: skip
    tensors = {t.name: (t.shape, t.type_name) for t in read.tensors}
    assert tensors["blk.0.ffn_down.weight"] == ((256, 128), "NVFP4")
    assert tensors["blk.0.ffn_down.scale"] == ((1,), "F32")
    assert tensors["blk.0.ffn_down.input_scale"] == ((1,), "F32")
    assert tensors["token_embd.weight"] == ((128, 256), "BF16")
    assert read.metadata["general.file_type"] == 39
    assert len(tensors) == len(BF16.tensors) + 14


def test_the_experts_of_gpt_oss_stay_mxfp4() -> None:
    entry = catalog.find("gpt-oss-20b")
    assert entry is not None
    read = header_from_config({**entry.config, "quantization_config": {"quant_method": "mxfp4"}})
    types = {t.name: t.type_name for t in read.tensors}
    assert types["blk.3.ffn_up_exps.weight"] == "MXFP4"
    assert types["blk.3.attn_q.weight"] == "BF16"
    assert read.metadata["general.file_type"] == 38


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "awq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3}, {"quant_method": "hqq"}, {"quant_method": "mxfp4"},
        {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"g": {"weights": {}}}},
        {"quant_method": "compressed-tensors", "format": "float-quantized",
         "config_groups": {"g": {"weights": {"strategy": "tensor"}}}},
    ],
)  # fmt: skip
def test_the_rest_is_refused(quantization: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedQuantization):
        header(quantization, {".qweight": (("c//8", "r"), "I32"), ".g_idx": (("c",), "I32")})
