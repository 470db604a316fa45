"""Multi-token prediction tensors that checkpoints keep under `mtp.`: put behind the last layer, as the converter does.

conversion/qwen.py, exaone.py and nemotron.py (commit 0c1e570).
"""

from __future__ import annotations

import re

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.quantized import Weights

# what the layers share or the first has, by its name among a NextN layer's
_PARTS = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}
_NEMOTRON_PARTS = {
    "1.norm.weight": "post_attention_layernorm.weight",
    "1.final_layernorm.weight": "shared_head.norm.weight",
}
_LAYER = re.compile(r"mtp\.layers\.(\d+)\.(.+)")
_PART = re.compile(rf"mtp\.({'|'.join(_PARTS)})\.([^.]+)")


def _mtp_names(weights: Weights) -> list[str]:
    return [name for name in weights if name.startswith("mtp.")]


def read_qwen_mtp(c: HfConfig, weights: Weights) -> None:
    """_QwenMtpMixin: how many layers there are is counted where the configuration does not say it."""
    for name in [name for name in weights if name.startswith("model.mtp.")]:
        weights[name.removeprefix("model.")] = weights.pop(name)
    n_layer, counted = c.n("num_hidden_layers"), 0
    for name in _mtp_names(weights):
        layer, part = _LAYER.fullmatch(name), _PART.fullmatch(name)
        if layer:
            counted = max(counted, int(layer[1]) + 1)
            weights[f"model.layers.{n_layer + int(layer[1])}.{layer[2]}"] = weights.pop(name)
        elif part:
            weights[f"model.layers.{n_layer}.{_PARTS[part[1]]}.{part[2]}"] = weights.pop(name)
    if not c.n("mtp_num_hidden_layers", default=0):
        c.put("mtp_num_hidden_layers", counted)


def read_exaone_mtp(c: HfConfig, weights: Weights) -> None:
    """ExaoneMoEModel and Exaone4_5_TextModel: what is not a layer's goes to every NextN layer, and where
    `mtp_share_layers` says so a layer's too. Without NextN layers all of it is left out."""
    n_layer, n_mtp = c.n("num_hidden_layers"), c.n("num_nextn_predict_layers", default=0)
    every = range(n_layer, n_layer + n_mtp)
    for name in _mtp_names(weights) if n_mtp else ():
        layer, part = _LAYER.fullmatch(name), _PART.fullmatch(name)
        if layer:
            to = every if c.flag("mtp_share_layers") else (n_layer + int(layer[1]),)
            targets = [f"model.layers.{i}.{layer[2]}" for i in to]
        elif part:
            targets = [f"model.layers.{i}.{_PARTS[part[1]]}.{part[2]}" for i in every]
        else:
            continue
        stored = weights.pop(name)
        weights.update(dict.fromkeys(targets, stored))


def read_nemotron_mtp(weights: Weights, *, n_block: int) -> None:
    """NemotronHModel: one layer, kept as two: 0 attends and joins the embeddings, 1 has the experts."""
    for name in _mtp_names(weights):
        layer = _LAYER.fullmatch(name)
        if layer and layer[1] in ("0", "1"):
            part = _NEMOTRON_PARTS.get(f"{layer[1]}.{layer[2]}", layer[2])
            weights[f"backbone.layers.{n_block - 1}.{part}"] = weights.pop(name)
