"""The ggml type that the converter gives a tensor."""

from __future__ import annotations

import re

from quantplan.errors import BadValue
from quantplan.model.hf.layout import OUTTYPE

_OUTTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32", "q8_0": "Q8_0"}
_BLOCK = re.compile(r"^(?:\w+\.)?blk\.\d+\.")
# conversion/base.py (commit 0c1e570), ModelBase.prepare_tensors(): always float32
_F32_NAMES = frozenset({
    "ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types", "ssm_conv1d", "shortconv.conv",
    "time_mix_first", "time_mix_w1", "time_mix_w2", "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_lerp_fused",
    "altup_correct_coef", "altup_predict_coef", "ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v", "indexer.proj",
})  # fmt: skip


def converted_type(name: str, n_dims: int, outtype: str, kind: str | None = None) -> str:
    """The kind where there is one; F32 for vectors, norms, routers, small convolutions and what is no weight; else
    the outtype."""
    if outtype not in _OUTTYPES:
        raise BadValue(what="outtype", value=outtype, why=f"is none of {', '.join(_OUTTYPES)}")
    if kind is not None:
        return _OUTTYPES[outtype] if kind == OUTTYPE else kind
    if n_dims <= 1 or name.endswith("_norm.weight") or not name.endswith((".weight", ".lora_a", ".lora_b")):
        return "F32"
    return "F32" if _BLOCK.sub("", name).removesuffix(".weight") in _F32_NAMES else _OUTTYPES[outtype]
