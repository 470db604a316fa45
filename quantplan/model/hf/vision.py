"""The language models inside vision models: the converter writes them alone, the tower goes to an mmproj file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.dense import llama_metadata, llama_tensors, nothing, plain_tensors, qk_norm_by_head
from quantplan.model.hf.families import Family
from quantplan.model.hf.hybrid import qwen_next_blocks, qwen_next_metadata, qwen_next_tensors
from quantplan.model.hf.layout import Layout
from quantplan.model.hf.metadata import Metadata, f32
from quantplan.model.hf.moe import (
    blocks_with_nextn,
    expert_widths,
    glm4_moe_metadata,
    glm4_moe_tensors,
    nextn,
    nextn_block,
    qwen3_moe_tensors,
)
from quantplan.model.hf.mtp import read_exaone_mtp, read_qwen_mtp
from quantplan.model.hf.variants import exaone4_metadata, exaone4_tensors, glm4_metadata, glm4_tensors

_DEEPSTACK_LAYERS = 3  # Qwen3VLVisionConfig.deepstack_visual_indexes has three where the file has none


def _deepstack(c: HfConfig, md: Metadata) -> None:
    vision = c.top.get("vision_config")
    indexes = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    md.put("n_deepstack_layers", len(indexes) if isinstance(indexes, list) else _DEEPSTACK_LAYERS)


def qwen3_vl_moe_metadata(c: HfConfig, md: Metadata) -> None:
    expert_widths(c, md)
    _deepstack(c, md)


def qwen35_metadata(c: HfConfig, md: Metadata) -> None:
    qwen_next_metadata(c, md)
    md.values.setdefault(f"{md.arch}.rope.dimension_sections", [11, 11, 10, 0])  # Qwen3_5 in conversion/qwen.py


def mistral3_metadata(c: HfConfig, md: Metadata) -> None:
    llama_metadata(c, md)
    rope = c.rope()
    if rope.get("rope_type") == "yarn":
        mscale = rope.get("mscale_all_dim")
        md.put("rope.scaling.yarn_log_multiplier", None if mscale is None else f32(mscale))
    beta = rope.get("llama_4_scaling_beta")
    md.put_f32("attention.temperature_scale", beta)


def exaone4_5_tensors(c: HfConfig, t: Layout) -> None:
    exaone4_tensors(c, t)
    for i in range(c.n("num_hidden_layers"), t.n_block):
        nextn_block(t.block(i), shared=False)


def exaone4_5_metadata(c: HfConfig, md: Metadata) -> None:
    exaone4_metadata(c, md)
    md.put("nextn_predict_layers", nextn(c) or None)


Tensors = Callable[..., None]
_QWEN35: Tensors = partial(qwen_next_tensors, split=True, moe=False)
_QWEN35_MOE: Tensors = partial(qwen_next_tensors, split=True, moe=True)

FAMILIES = {
    **dict.fromkeys(
        ("Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5OmniModel"),
        Family("qwen2vl", partial(plain_tensors, bias=True, out_bias=False, mlp_bias=False), nothing),
    ),
    "Qwen3VLForConditionalGeneration": Family(
        "qwen3vl", partial(plain_tensors, qk_norm=qk_norm_by_head, mlp_bias=False), _deepstack
    ),
    "Qwen3VLMoeForConditionalGeneration": Family("qwen3vlmoe", qwen3_moe_tensors, qwen3_vl_moe_metadata),
    **dict.fromkeys(
        ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"),
        Family("qwen35", _QWEN35, qwen35_metadata, qwen_next_blocks, read=read_qwen_mtp),
    ),
    "MiniCPMV4_6ForConditionalGeneration": Family(
        "qwen35", partial(_QWEN35, with_mtp=False), qwen35_metadata, qwen_next_blocks
    ),
    **dict.fromkeys(
        ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
        Family("qwen35moe", _QWEN35_MOE, qwen35_metadata, qwen_next_blocks, read=read_qwen_mtp),
    ),
    **dict.fromkeys(
        ("LlavaForConditionalGeneration", "VLlama3ForCausalLM", "LlamaModel", "VoxtralForConditionalGeneration"),
        Family("llama", llama_tensors, llama_metadata),
    ),
    **dict.fromkeys(
        ("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
        Family("mistral3", llama_tensors, mistral3_metadata),
    ),
    "Glm4vForConditionalGeneration": Family("glm4", glm4_tensors, glm4_metadata),
    "Glm4vMoeForConditionalGeneration": Family("glm4moe", glm4_moe_tensors, glm4_moe_metadata),
    "Exaone4_5_ForConditionalGeneration": Family(
        "exaone4", exaone4_5_tensors, exaone4_5_metadata, blocks_with_nextn, read=read_exaone_mtp
    ),
}
