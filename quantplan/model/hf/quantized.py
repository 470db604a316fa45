"""Checkpoints that are already quantized: what the pinned converter makes of each tensor.

conversion/base.py (commit 0c1e570), dequant_model() and _generate_nvfp4_tensors(): most are dequantized to the
outtype, NVFP4 and MXFP4 are repacked as they are, the rest is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from quantplan.errors import UnsupportedQuantization
from quantplan.model.hf.layout import Shape

FILE_TYPE_IDS = {"MXFP4": 38, "NVFP4": 39}  # gguf.LlamaFileType.MOSTLY_MXFP4_MOE, MOSTLY_NVFP4


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight as the converter sees it: its shape in PyTorch's order, and its ggml type where that is kept."""

    shape: Shape
    kind: str | None = None
    scales: tuple[str, ...] = ()  # F32 tensors written beside it: scale, input_scale
    dtype: str = ""  # as the checkpoint has it


Weights = MutableMapping[str, Stored]


def method_of(config: Mapping[str, Any]) -> str | None:
    """`quant_method`, None where nothing is quantized."""
    method = config.get("quant_method")
    return method.lower() if isinstance(method, str) else None


def kept_type(config: Mapping[str, Any]) -> str | None:
    """The type that quantized weights keep in the GGUF, None where they are dequantized. Raises where refused."""
    method = method_of(config)
    if method == "mxfp4":
        return "MXFP4"
    if method is None and config.get("quant_algo") is None:
        return None
    if _is_nvfp4(config):
        return "NVFP4"
    if method not in _READERS and method is not None:
        raise UnsupportedQuantization(method=method)
    return None


def _is_nvfp4(config: Mapping[str, Any]) -> bool:
    layers = config.get("quantized_layers")
    by_layer = layers.values() if isinstance(layers, Mapping) else ()
    algorithms = [config.get("quant_algo"), *(v.get("quant_algo") for v in by_layer if isinstance(v, Mapping))]
    groups = config.get("config_groups")
    formats = (
        [g.get("format") for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    )
    packed = config.get("format") == "nvfp4-pack-quantized" or (
        config.get("format") == "mixed-precision" and bool(formats) and set(formats) == {"nvfp4-pack-quantized"}
    )
    return any(str(a).endswith("NVFP4") for a in algorithms) or (method_of(config) == "compressed-tensors" and packed)


def read_quantized(weights: Weights, config: Mapping[str, Any]) -> None:
    """Replaces the parts of quantized weights by the weights. Raises UnsupportedQuantization."""
    kept = kept_type(config)
    method = method_of(config)
    if kept == "NVFP4":
        _nvfp4(weights)
    if kept == "MXFP4":
        return  # the experts' blocks and scales are taken by the family
    reader = _READERS.get(method or "")
    if reader is not None:
        reader(weights, config)


def _drop(weights: Weights, *ends: str) -> None:
    for name in [name for name in weights if name.endswith(ends)]:
        del weights[name]


def _fp8(weights: Weights, _: Mapping[str, Any]) -> None:
    _drop(weights, "_scale_inv", ".activation_scale", "_activation_scale", ".qscale_weight", ".qscale_act")


def _bitnet(weights: Weights, _: Mapping[str, Any]) -> None:
    """Four weights a byte, along the rows."""
    for name in [name for name in weights if name.endswith(".weight_scale")]:
        weight = name.removesuffix("_scale")
        if weight in weights:
            rows, *rest = weights[weight].shape
            weights[weight] = Stored((rows * 4, *rest))
        del weights[name]


def _gptq(weights: Weights, config: Mapping[str, Any]) -> None:
    bits = config.get("bits")
    if bits not in (2, 4, 8):
        raise UnsupportedQuantization(method="gptq", why=f"{bits}-bit weights")
    for name in [name for name in weights if name.endswith(".qweight")]:
        base = name.removesuffix(".qweight")
        n_packed, n_out = weights[name].shape
        if f"{base}.g_idx" not in weights:
            raise UnsupportedQuantization(method="gptq", why=f"{base} has no g_idx")
        weights[f"{base}.weight"] = Stored((n_out, n_packed * 32 // int(bits)))
        for part in ("g_idx", "qzeros", "qweight", "scales"):
            weights.pop(f"{base}.{part}", None)


def _compressed(weights: Weights, config: Mapping[str, Any]) -> None:
    kind, groups = config.get("format"), config.get("config_groups") or {}
    if kind == "nvfp4-pack-quantized" or _is_nvfp4(config):
        return
    if len(groups) != 1:
        raise UnsupportedQuantization(method="compressed-tensors", why=f"{len(groups)} groups of layers")
    scheme = next(iter(groups.values())).get("weights") or {}
    if kind in ("float-quantized", "int-quantized", "naive-quantized"):
        if scheme.get("strategy") not in ("channel", "block") or scheme.get("group_size") is not None:
            raise UnsupportedQuantization(method="compressed-tensors", why=f"strategy {scheme.get('strategy')!r}")
        _drop(weights, ".weight_scale", ".input_scale", ".weight_zero_point", ".input_zero_point")
    elif kind == "pack-quantized":
        _pack_quantized(weights, scheme)
    else:
        raise UnsupportedQuantization(method="compressed-tensors", why=f"format {kind!r}")


def _pack_quantized(weights: Weights, scheme: Mapping[str, Any]) -> None:
    """32-bit words of weights, along the columns; the scales tell how many columns there are."""
    bits, group = scheme.get("num_bits"), scheme.get("group_size")
    if scheme.get("strategy") != "group" or not isinstance(bits, int) or not isinstance(group, int):
        raise UnsupportedQuantization(method="compressed-tensors", why=f"strategy {scheme.get('strategy')!r}")
    for name in [name for name in weights if name.endswith(".weight_packed")]:
        base = name.removesuffix("_packed")
        rows, words = weights[name].shape
        scale = weights.get(f"{base}_scale")
        columns = scale.shape[1] * group if scale and len(scale.shape) > 1 else words * (32 // bits)
        weights[base] = Stored((rows, columns))
        for part in ("_packed", "_shape", "_scale", "_zero_point"):
            weights.pop(base + part, None)


def _modelopt(weights: Weights, _: Mapping[str, Any]) -> None:
    _drop(weights, ".weight_scale", ".input_scale", ".k_scale", ".v_scale", ".weight_scale_2")


def _nvfp4(weights: Weights) -> None:
    """Weights with a block scale stay NVFP4; their scale for the whole tensor is a tensor of its own."""
    for name in [name for name in weights if name.endswith(".weight_packed")]:
        weights.setdefault(name.removesuffix("_packed"), weights.pop(name))
    for old, new in ((".weight_global_scale", ".weight_scale_2"), (".input_global_scale", ".input_scale")):
        for name in [name for name in weights if name.endswith(old)]:
            weights.setdefault(name.removesuffix(old) + new, weights.pop(name))
    for name in [name for name in weights if name.endswith(".weight_scale")]:
        base = name.removesuffix("_scale")
        if base not in weights or len(weights[name].shape) < 2:
            continue
        rows, n_blocks = weights[name].shape
        parts = {".scale": f"{base}_scale_2", ".input_scale": base.removesuffix(".weight") + ".input_scale"}
        scales = tuple(suffix for suffix, part in parts.items() if weights.pop(part, None) is not None)
        weights[base] = Stored((rows, n_blocks // 4 * 64), "NVFP4", scales)
        del weights[name]
    _drop(weights, ".k_scale", ".v_scale")


_READERS: Mapping[str, Callable[[Weights, Mapping[str, Any]], None]] = {
    "fp8": _fp8,
    "bitnet": _bitnet,
    "gptq": _gptq,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}
