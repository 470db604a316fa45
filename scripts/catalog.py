"""Writes data/catalog.json: the models that quantplan knows without a network.

From a list of {name, hub_id, parameters, config} (configurations as transformers 5 writes them), a table of published
models (parameter counts, layers, heads, contexts, licences, GGUF repositories), and scripts/catalog_models.json, which
says what other models have which configuration. A model is refused whose configuration does not give what was
published of it. What a configuration has at its class's default is left out again, so that the file stays small;
data/hf_defaults.json puts it back.

    python scripts/catalog.py --configs model_configs.json --published models_published.csv [--check]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from quantplan.model.hf_config import header_from_config

_TARGET = _ROOT / "data" / "catalog.json"
_MODELS = _ROOT / "scripts" / "catalog_models.json"
_SPEED_MODELS = _ROOT / "scripts" / "speed_models.json"
_DROPPED = {
    "transformers_version", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "attention_dropout", "pretraining_tp", "hidden_act", "hidden_activation", "output_router_logits", "dtype",
    "router_aux_loss_coef", "resid_pdrop", "embd_pdrop", "router_jitter_noise", "hidden_dropout", "use_mamba_kernels",
    "rescale_prenorm_residual", "residual_in_fp32", "residual_dropout", "embedding_dropout", "residual_multiplier_",
}  # fmt: skip
_SUFFIXES = ("-Instruct", "-it", "-Chat", "-hf", "-instruct", "-chat", "-PT")
_MXFP4 = "the hub's experts are MXFP4: the converter repacks them and llama-quantize will not requantize them"
_FP8 = "the hub's weights are FP8: the converter dequantizes them to bf16"
_MTP = "the hub's checkpoint has an MTP layer more, which the converter includes"
# How the hub's own files are stored where that is not bf16 (the configuration here is of the bf16 model).
_STORED = {
    "openai/gpt-oss-20b": _MXFP4, "openai/gpt-oss-120b": _MXFP4, "openai/gpt-oss-safeguard-20b": _MXFP4,
    "openai/gpt-oss-safeguard-120b": _MXFP4, "deepseek-ai/DeepSeek-V3": _FP8, "MiniMaxAI/MiniMax-M2": _FP8,
    "MiniMaxAI/MiniMax-M2.1": _FP8, "MiniMaxAI/MiniMax-M2.5": _FP8,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": _MTP, "Qwen/Qwen3-Next-80B-A3B-Thinking": _MTP, "zai-org/GLM-4.5-Air": _MTP,
    "Qwen/Qwen3.5-0.8B": _MTP, "Qwen/Qwen3.5-2B": _MTP, "Qwen/Qwen3.5-9B": _MTP, "Qwen/Qwen3.5-27B": _MTP,
    "Qwen/Qwen3.6-27B": _MTP, "Qwen/Qwen3.5-35B-A3B": _MTP, "Qwen/Qwen3.6-35B-A3B": _MTP, "zai-org/GLM-4.7-Flash": _MTP,
}  # fmt: skip
# What published counts have that the language model in 16 bit has not, where that is more than a percent.
_BESIDE = {
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "MTP layer", "Qwen/Qwen3-Next-80B-A3B-Thinking": "MTP layer",
    "zai-org/GLM-4.5-Air": "MTP layer", "zai-org/GLM-4.7-Flash": "MTP layer", "Qwen/Qwen3.5-0.8B": "MTP layer",
    "Qwen/Qwen3.5-2B": "MTP layer", "Qwen/Qwen3.5-9B": "MTP layer", "Qwen/Qwen3.5-27B": "MTP layer",
    "Qwen/Qwen3.6-27B": "MTP layer", "Qwen/Qwen3.5-35B-A3B": "MTP layer", "Qwen/Qwen3.6-35B-A3B": "MTP layer",
    "deepseek-ai/DeepSeek-V3": "MTP layer, and scales of FP8", "deepseek-ai/DeepSeek-R1": "MTP layer",
    "openai/gpt-oss-20b": "scales of MXFP4", "openai/gpt-oss-120b": "scales of MXFP4",
    "openai/gpt-oss-safeguard-20b": "scales of MXFP4", "openai/gpt-oss-safeguard-120b": "scales of MXFP4",
    "Qwen/Qwen3-0.6B": "the tied output counted again", "Qwen/Qwen3-1.7B": "the tied output counted again",
    "tencent/Hunyuan-7B-Instruct": "tied there, not in the configuration",
    "nvidia/Nemotron-Mini-4B-Instruct": "tied there, not in the configuration",
}  # fmt: skip
_OUTPUT_AGAIN = frozenset({"google/gemma-4-26B-A4B-it", "google/gemma-4-31B-it"})  # their counts have it twice
_ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LARGEST_TOWER = 800_000_000
_CONFIG = "https://huggingface.co/{}/blob/main/config.json"
_WITH_TOOL = "as transformers 5.23.0 writes it"
_BY_HAND = "by hand, held against the published parameter count, layers and heads"


def _aliases(name: str, hub_id: str) -> list[str]:
    bare = hub_id.rsplit("/", maxsplit=1)[-1]
    names = [name, bare]
    names += [bare.removesuffix(suffix) for suffix in _SUFFIXES if bare.endswith(suffix)]
    return sorted({name for name in names if name != hub_id}, key=lambda name: (name.lower(), name))


def _slim(config: dict[str, Any]) -> dict[str, Any]:
    """A null is kept where it stands against a default: q_lora_rank."""
    return {k: v for k, v in config.items() if k not in _DROPPED and (v is not None or k.endswith("_rank"))}


def _counted(config: dict[str, Any]) -> int:
    return sum(t.n_elements for t in header_from_config(config).tensors if t.name not in _ROPE_TABLES)


class _Sources:
    """The tables that the catalog is made of."""

    def __init__(self, configs: Path, published: Path) -> None:
        told = json.loads(configs.read_text(encoding="utf-8"))
        self.first = {entry["hub_id"]: entry for entry in told}
        with published.open(newline="", encoding="utf-8") as file:
            self.published = {row["name"].lower(): row for row in csv.DictReader(file)}
        chosen = json.loads(_MODELS.read_text(encoding="utf-8"))
        self.models: list[dict[str, Any]] = chosen["models"]
        speed = json.loads(_SPEED_MODELS.read_text(encoding="utf-8"))["models"]
        self.towers = {row["id"]: row["vision"] for row in speed if "vision" in row}
        self.configs = {
            **{row["id"]: row["config"] for row in speed},
            **chosen["geometries"],
            **{entry["hub_id"]: _slim(entry["config"]) for entry in told},
        }


def _row(model: dict[str, Any], sources: _Sources) -> dict[str, Any]:
    hub_id = model["id"]
    like = model.get("like", hub_id)
    config = dict(sources.configs[like])
    published = sources.published.get(hub_id.lower(), {})
    first = sources.first.get(hub_id)
    n_ctx = None if first else _n_ctx(model, published)
    counted = first["parameters"] if first else _counted(config)
    total = int(published.get("parameters") or 0) or None
    row: dict[str, Any] = {
        "id": hub_id,
        "name": first["name"] if first else hub_id.rpartition("/")[2],
        "aliases": _aliases(first["name"] if first else hub_id.rpartition("/")[2], hub_id),
        "parameters": counted,
        "published": total,
        "licence": model.get("licence") or published.get("license") or None,
        "released": model.get("released") or published.get("release_date", "")[:7],
        "uses": model["uses"],
        "config": like,
    }
    if n_ctx is not None:
        row["n_ctx"] = n_ctx
    row["gguf"] = published.get("gguf_repos", "").split()
    if model.get("pooling"):
        row["pooling"] = model["pooling"]
    _account(row, config, total, sees="vision" in model["uses"], tower=sources.towers.get(like))
    row["source"] = {"config": _CONFIG.format(hub_id), "how": _WITH_TOOL if first else _BY_HAND}
    if hub_id in _STORED:
        row["note"] = _STORED[hub_id]
    if row.get("note") == _MXFP4:
        row["only_presets"] = ["MXFP4_MOE"]
    if not first:
        _check(row, config, published)
    if not row["licence"] or not row["released"]:
        raise SystemExit(f"{hub_id}: no licence or no date")
    return row


def _n_ctx(model: dict[str, Any], published: dict[str, str]) -> int:
    """The context of its configuration; the table's where it read one."""
    if "n_ctx" in model:
        return int(model["n_ctx"])
    if not published.get("num_hidden_layers"):
        raise SystemExit(f"{model['id']}: the table has no context of a configuration; say n_ctx")
    return int(published["context_length"])


def _account(row: dict[str, Any], config: dict[str, Any], total: int | None, *, sees: bool, tower: int | None) -> None:
    """What the published count has beyond the language model: the vision tower, and what else is known. Where that
    is an MTP layer too, the tower's own count is needed."""
    if total is None:
        return
    if row["id"] in _BESIDE:
        row["beside"] = _BESIDE[row["id"]]
        if sees and tower:
            row["vision_parameters"] = tower
        return
    more = total - row["parameters"]
    if row["id"] in _OUTPUT_AGAIN:
        row["beside"] = "the tied output counted again"
        more -= int(config["hidden_size"]) * 262144
    if sees and not 0 < more < _LARGEST_TOWER:
        raise SystemExit(f"{row['id']}: a vision tower of {more:,} parameters cannot be right")
    if sees:
        row["vision_parameters"] = more


def _check(row: dict[str, Any], config: dict[str, Any], published: dict[str, str]) -> None:
    """Refuses what does not give the published figures."""
    if not published:
        raise SystemExit(f"{row['id']}: is not in the table of published models")
    more = row["published"] - row["parameters"] - row.get("vision_parameters", 0)
    if "beside" not in row and abs(more) > 0.01 * row["published"]:
        raise SystemExit(f"{row['id']}: {row['parameters']:,} parameters, published are {row['published']:,}")
    text = config.get("text_config", config)
    for ours, theirs in (
        ("num_hidden_layers", "num_hidden_layers"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_key_value_heads", "num_key_value_heads"),
    ):
        if ours in text and published[theirs] and int(published[theirs]) != text[ours]:
            raise SystemExit(f"{row['id']}: {ours} {text[ours]}, published are {published[theirs]}")


def build(configs: Path, published: Path) -> str:
    sources = _Sources(configs, published)
    missing = set(sources.first) - {model["id"] for model in sources.models}
    if missing:
        raise SystemExit(f"not in scripts/catalog_models.json: {', '.join(sorted(missing))}")
    rows = sorted((_row(model, sources) for model in sources.models), key=lambda row: row["id"].lower())
    used = {row["config"] for row in rows}
    shared = {name: config for name, config in sources.configs.items() if name in used}
    source = (
        "public configurations (50 as transformers 5.23.0 writes them, others by hand: each model says which); "
        "published counts, contexts, licences and GGUF repositories from llmfit 1.1.17 (MIT)"
    )
    told = ",\n".join(f"    {json.dumps(name)}: {json.dumps(shared[name])}" for name in sorted(shared, key=str.lower))
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    return f'{{\n  "source": {json.dumps(source)},\n  "configs": {{\n{told}\n  }},\n  "models": [\n{lines}\n  ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    args = parser.parse_args()
    text = build(args.configs, args.published)
    if args.check:
        sys.exit(0 if text == _TARGET.read_text(encoding="utf-8") else 1)
    _TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
