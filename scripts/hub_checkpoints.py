"""Checkpoints as the hub keeps them, made of those that transformers writes: what it renames, quantizes or leaves out.

Used by scripts/weightless_from_converter.py; shapes and dtypes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Shaped = tuple[str, tuple[int, ...], str]  # name, shape, safetensors dtype

_FP8_BLOCK = 128  # quantization_config.weight_block_size
_FP4_GROUP = 32
_DEEPSEEK4_FP8 = re.compile(r"\.(wq_a|wq_b|wkv|wo_a|wo_b)\.weight$|\.shared_experts\.w\d\.weight$")
# what transformers 5.23 does not turn back into the hub's names
_DEEPSEEK4_NAMES = {
    "model.": "", "embed_tokens.": "embed.", "hc_head.hc_": "hc_head_", ".attn.norm.": ".attn.kv_norm.",
}  # fmt: skip
_DEEPSEEK4_F32 = re.compile(r"hc_(attn|ffn|head)_|\.attn_sink$|\.ape$|\.gate\.bias$")


def deepseek4(tensors: Iterable[Shaped]) -> list[Shaped]:
    """DeepSeek V4: projections in FP8 with a scale a block, experts in FP4 with a scale a group, some in float32.

    The compressors' projections are 16 bit: so the 159.6 GB of DeepSeek-V4-Flash's index add up.
    """
    out: list[Shaped] = []
    for written, shape, dtype in tensors:
        name = written
        for theirs, ours in _DEEPSEEK4_NAMES.items():
            name = name.replace(theirs, ours)
        base = name.removesuffix("weight")
        if ".experts." in name:
            rows, columns = shape
            out.append((name, (rows, columns // 2), "I8"))
            out.append((f"{base}scale", (rows, columns // _FP4_GROUP), "F8_E8M0"))
        elif _DEEPSEEK4_FP8.search(name) and ".compressor." not in name:
            out.append((name, shape, "F8_E4M3"))
            out.append((f"{base}scale", (-(-shape[0] // _FP8_BLOCK), -(-shape[1] // _FP8_BLOCK)), "F8_E8M0"))
        elif _DEEPSEEK4_F32.search(name):
            out.append((name, shape, "F32"))
        else:
            out.append((name, shape, "I64" if name.endswith("tid2eid") else dtype))
    n_embd = next(shape[1] for name, shape, _ in out if name == "embed.weight")
    out.append(("mtp.0.enorm.weight", (n_embd,), "BF16"))  # of the layer that the converter leaves out
    return out


def with_mtp(tensors: Iterable[Shaped], config: Mapping[str, Any], *, n_mtp: int) -> list[Shaped]:
    """Adds multi-token prediction layers under `mtp.`, each built like the last attention layer without experts
    (with experts where no layer is without)."""
    all_tensors = list(tensors)
    layers: dict[str, list[Shaped]] = {}
    for name, shape, dtype in all_tensors:
        match = re.match(r"(model\.(?:language_model\.)?layers\.\d+)\.(.+)", name)
        if match:
            layers.setdefault(match[1], []).append((match[2], shape, dtype))
    attends = [rows for rows in layers.values() if any("self_attn." in name for name, *_ in rows)]
    dense = [rows for rows in attends if any(name == "mlp.gate_proj.weight" for name, *_ in rows)]
    n_embd = {**config, **config.get("text_config", {})}["hidden_size"]
    out = [
        (f"mtp.layers.{k}.{name}", shape, dtype) for k in range(n_mtp) for name, shape, dtype in (dense or attends)[-1]
    ]
    out.append(("mtp.fc.weight", (n_embd, 2 * n_embd), "BF16"))
    out += [(f"mtp.{n}.weight", (n_embd,), "BF16") for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")]
    return all_tensors + out


_NEMOTRON_NAMES = {
    "model.embed_tokens.": "backbone.embeddings.",
    "model.norm.": "backbone.norm_f.",
    "model.": "backbone.",
}


def nemotron_h(tensors: Iterable[Shaped], *, n_mtp: int) -> list[Shaped]:
    """Nemotron-H: `backbone`, and its MTP layer kept as two, of an attention and of an expert layer."""
    out: list[Shaped] = []
    for written, shape, dtype in tensors:
        old = next((old for old in _NEMOTRON_NAMES if written.startswith(old)), "")
        out.append((_NEMOTRON_NAMES.get(old, "") + written.removeprefix(old), shape, dtype))
    if n_mtp:
        for k, part in enumerate(("mixer.q_proj.", "mixer.experts.")):
            prefix = next(name.split("mixer.")[0] for name, *_ in out if part in name)
            out += [(f"mtp.layers.{k}.{n.removeprefix(prefix)}", s, d) for n, s, d in out if n.startswith(prefix)]
        n_embd = next(shape[1] for name, shape, _ in out if name == "backbone.embeddings.weight")
        out.append(("mtp.layers.0.eh_proj.weight", (n_embd, 2 * n_embd), "BF16"))
        ends = ("0.enorm", "0.hnorm", "1.final_layernorm")
        out += [(f"mtp.layers.{end}.weight", (n_embd,), "BF16") for end in ends]
    return out


def as_on_the_hub(tensors: list[Shaped], config: Mapping[str, Any], *, n_mtp: int) -> list[Shaped]:
    """The tensors as they are where transformers writes them like the hub has them."""
    if config.get("model_type") == "deepseek_v4":
        return deepseek4(tensors)
    if config.get("model_type") == "nemotron_h" and "hybrid_override_pattern" in config:
        return nemotron_h(tensors, n_mtp=n_mtp)
    return with_mtp(tensors, config, n_mtp=n_mtp) if n_mtp else tensors
