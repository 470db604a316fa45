"""Writes data/hf_defaults.json: what a configuration that leaves a field out means, by model type.

The fields' defaults are read from the configuration classes of the installed transformers; only numbers, flags, short
strings and what nests them are kept, for the model types whose architecture the pinned converter registers.

    python scripts/hf_defaults.py --tree LLAMA_CPP [--check]
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

_TARGET = Path(__file__).resolve().parent.parent / "data" / "hf_defaults.json"
_GENERIC = {
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "is_encoder_decoder",
    "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "initializer_range", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "attention_dropout", "pretraining_tp", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "output_attentions",
    "router_jitter_noise", "output_router_logits", "router_aux_loss_coef", "decoder_start_token_id", "summary_type",
    "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_logits", "classifier_dropout",
    "residual_dropout", "embedding_dropout", "use_mamba_kernels", "num_logits_to_keep",
}  # fmt: skip


def registered_architectures(tree: Path) -> set[str]:
    """The names in the decorators of conversion/*.py, read without importing them."""
    names: set[str] = set()
    for path in sorted((tree / "conversion").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ModelBase.register":
                names.update(a.value for a in node.args if isinstance(a, ast.Constant))
    return names


def _plain(value: Any) -> bool:
    if isinstance(value, (bool, int, float, str)) or value is None:
        return True
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(_plain(v) for v in value)
    return isinstance(value, dict) and all(_plain(v) for v in value.values())


def defaults_of(config_class: Any) -> dict[str, Any]:
    """One model type: the declared defaults (not those computed from others), aliases, the type of its text part."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in _GENERIC or default is dataclasses.MISSING or default is None or not _plain(default):
            continue
        fields[field.name] = list(default) if isinstance(default, tuple) else default
    row: dict[str, Any] = {"fields": fields}
    computed = _computed(config_class)
    if computed:
        row["computed"] = computed
    if getattr(config_class, "attribute_map", None):
        row["aliases"] = dict(config_class.attribute_map)
    if getattr(config_class, "default_theta", None) is not None:
        row["default_theta"] = config_class.default_theta
    for part in ("text_config", "llm_config", "language_config", "thinker_config"):
        text = (getattr(config_class, "sub_configs", None) or {}).get(part)
        if text is not None:
            row["text"] = getattr(text, "model_type", "")
    return row


def _computed(config_class: Any) -> list[str]:
    """Fields without a declared default that the class fills from others."""
    empty = [f.name for f in dataclasses.fields(config_class) if f.default is None and f.name not in _GENERIC]
    try:
        made = config_class()
    except Exception:
        return []
    return sorted(name for name in empty if getattr(made, name, None) is not None)


def table(tree: Path) -> dict[str, Any]:
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = registered_architectures(tree)
    wanted: set[str] = set()
    for mapping in vars(modeling_auto).values():
        if isinstance(mapping, dict) and type(mapping).__name__ == "OrderedDict":
            for model_type, classes in mapping.items():
                names = classes if isinstance(classes, (list, tuple)) else (classes,)
                if isinstance(model_type, str) and known.intersection(n for n in names if isinstance(n, str)):
                    wanted.add(model_type)
    rows: dict[str, Any] = {}
    while wanted:
        model_type = wanted.pop()
        try:
            row = defaults_of(CONFIG_MAPPING[model_type])
        except Exception as error:
            print(f"left out {model_type}: {error}", file=sys.stderr)
            continue
        rows[model_type] = row
        text = row.get("text")
        if text and text not in rows:
            wanted.add(text)
    return {
        "source": f"declared defaults of transformers {transformers.__version__}'s configuration classes (Apache-2.0)",
        "model_types": dict(sorted(rows.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=os.environ.get("QUANTPLAN_LLAMA_TREE"))
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    args = parser.parse_args()
    text = render(table(args.tree))
    if args.check:
        sys.exit(0 if text == _TARGET.read_text() else 1)
    _TARGET.write_text(text)


def render(data: dict[str, Any]) -> str:
    """One model type a line: diffs stay readable."""
    rows = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in data["model_types"].items())
    return f'{{\n  "source": {json.dumps(data["source"])},\n  "model_types": {{\n{rows}\n  }}\n}}\n'


if __name__ == "__main__":
    main()
