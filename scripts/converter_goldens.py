"""Writes tests/data/converter_goldens.json: what the pinned converter made of many configurations, in digests.

Reads folders of pairs NAME.json, NAME.gguf that scripts/weightless_from_converter.py wrote. Tests hold
quantplan.model.hf_config against it without torch; where a digest differs, write the GGUF again and compare.

    python scripts/converter_goldens.py folder/ … --output tests/data/converter_goldens.json [--merge]

A pair with NAME.tensors.json beside it is of a checkpoint that transformers does not write as it is: it goes to
`checkpoints`, with the tensors. The model types of hub_ling3_raw… and gpt_neox_raw end in `_` so that the converter
reads config.json as it is: transformers 5.23 knows the types, but drops or renames fields that the converter asks for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from quantplan.model.gguf_header import read_gguf_header

_NOT_NEEDED = {
    "id2label", "label2id", "transformers_version", "initializer_range", "return_dict", "use_cache", "_name_or_path",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "problem_type", "is_encoder_decoder",
    "audio_config", "code_predictor_config", "talker_config", "code2wav_config", "attention_dropout", "dtype",
    "bos_token_id", "eos_token_id", "pad_token_id", "router_aux_loss_coef",
}  # fmt: skip
# What no configuration can tell, or what the small checkpoint was written differently for.
LEFT_OUT = {
    "glm4_moe": "its NextN layer is in the configuration, but not in a checkpoint that transformers writes",
    "glm4_moe0": "the converter was told to leave NextN out",
    "hub_glm45air": "the converter was told to leave NextN out",
    "qwen3_vl_moe": "transformers writes its fused experts the other way round than the hub's files",
}


def digest(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """sha256 over name, shape and type of every tensor, in the order of the names."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))} {kind}" for name, shape, kind in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def key_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """All but what names the model and its chat template: those of the architecture, and the file type."""
    metadata = {k: v for k, v in metadata.items() if k != "tokenizer.chat_template"}
    kept = ("general.architecture", "general.file_type")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in metadata.items() if "general." not in k or k in kept}


def _slim(config: Mapping[str, Any]) -> dict[str, Any]:
    out = {k: v for k, v in config.items() if k not in _NOT_NEEDED}
    if isinstance(out.get("vision_config"), dict):
        out["vision_config"] = {k: v for k, v in out["vision_config"].items() if k == "deepstack_visual_indexes"}
    return {k: _slim(v) if isinstance(v, dict) and k.endswith("_config") else v for k, v in out.items()}


def golden(config: Mapping[str, Any] | None, gguf: Path) -> dict[str, Any]:
    header = read_gguf_header(gguf)
    row = {
        "n_tensors": len(header.tensors),
        "digest": digest((t.name, t.shape, t.type_name) for t in header.tensors),
        "metadata": key_values(header.metadata),
    }
    return row if config is None else {"config": _slim(config), **row}


def checkpoint_golden(config: Mapping[str, Any], gguf: Path, tensors: Path) -> dict[str, Any]:
    """With the checkpoint's tensors as [name, shape, dtype]."""
    return {**golden(config, gguf), "tensors": json.loads(tensors.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="with configurations beside the GGUF files")
    parser.add_argument("--catalog", type=Path, help="GGUF files named as in the catalog")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--merge", action="store_true", help="keep the rows of the output that no folder has")
    args = parser.parse_args()
    old = json.loads(args.output.read_text()) if args.merge else {}
    rows, checkpoints = old.get("configurations", {}), old.get("checkpoints", {})
    for gguf in (path for folder in args.folders for path in sorted(folder.glob("*.gguf"))):
        config, tensors = json.loads(gguf.with_suffix(".json").read_text()), gguf.with_suffix(".tensors.json")
        if tensors.exists():
            checkpoints[gguf.stem] = checkpoint_golden(config, gguf, tensors)
        elif gguf.stem not in LEFT_OUT:
            rows[gguf.stem] = golden(config, gguf)
    catalog = old.get("catalog", {})
    if args.catalog:
        catalog |= {gguf.stem: golden(None, gguf) for gguf in sorted(args.catalog.glob("*.gguf"))}
    parts = []
    for title, part in (("catalog", catalog), ("configurations", rows), ("checkpoints", checkpoints)):
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(part[name], sort_keys=True)}" for name in sorted(part))
        parts.append(f"  {json.dumps(title)}: {{\n{lines}\n  }}")
    source = "convert_hf_to_gguf.py of llama.cpp 0c1e570 on transformers 5.23.0, bf16"
    args.output.write_text(f'{{\n  "source": {json.dumps(source)},\n' + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
