"""Writes docs/architectures.md: what quantplan knows of each architecture of the pinned build.

python scripts/architectures.py --tree LLAMA_CPP [--published models_published.csv] [--check]

Without the table of published models their counts are those of the last writing.
"""

from __future__ import annotations

import argparse
import ast
import collections
import csv
import json
import os
import re
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))
from quantplan.model.hf.families import families
from quantplan.model.hf_config import architecture_of, header_from_config
from quantplan.model.layer_rules import UNMODELLED

_TARGET = _ROOT / "docs" / "architectures.md"
_GOLDENS = _ROOT / "tests" / "data" / "converter_goldens.json"
# Of model types without a golden: the name in `architectures` of their checkpoints on the hub.
_NAMES = {
    "bailing_hybrid": "BailingMoeV3ForCausalLM",
    "emo": "EmoForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "idefics3": "Idefics3ForConditionalGeneration",
    "llada2_moe": "LLaDA2MoeModelLM",
    "mimo_v2": "MiMoV2ForCausalLM",
    "minicpmv": "MiniCPMV",
    "nemotron-nas": "DeciLMForCausalLM",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "t5gemma": "T5GemmaForConditionalGeneration",
}
_MOST_FREQUENT = 45  # of the registered model types; the bar is 40
_FREQUENT = """
## The most frequent

The model types most often published (`models_published.csv`: {n_models} models) that the pinned converter registers a
language model for. {n_exact} of the {n_shown} are exact{first}.

| | `model_type` | models | from a checkpoint | architecture |
|---|---|---|---|---|
"""
_INTRO = """# Architectures

What quantplan knows of each architecture of the pinned llama.cpp (commit 0c1e570). Written by
`scripts/architectures.py`; do not edit.

**Sizes from a checkpoint** (a Hugging Face folder, a repository or a `config.json`):

- `exact`: names, shapes, types and key-values of every tensor are those that `convert_hf_to_gguf.py` writes. Each was
  compared with the converter's own classes, on the configurations in `tests/data/converter_goldens.json`.
- `engine only`: the pinned converter knows it and we do not derive its header: convert it, or give a GGUF.
- `-`: the converter makes no language model of this architecture.

From a **GGUF** every architecture is exact: its tensors are read, and the recipes of llama-quantize look at names and
shapes only.

**Context memory**: `modelled` where the engine's rules for it are in quantplan, `range` where they are not: ask the
engine.

| architecture | from a checkpoint | context memory | names in `architectures` |
|---|---|---|---|
"""


def engine_architectures(tree: Path) -> list[str]:
    """LLM_ARCH_NAMES of src/llama-arch.cpp."""
    text = (tree / "src" / "llama-arch.cpp").read_text()
    block = text[text.index("LLM_ARCH_NAMES") :]
    names = re.findall(r'\{ *LLM_ARCH_\w+, *"([^"]+)" *\}', block[: block.index("};")])
    return sorted(set(names) - {"(unknown)", "clip"})


def converter_architectures(tree: Path) -> dict[str, set[str]]:
    """GGUF architecture to the registered names of the model classes that write it (text models)."""
    sys.path.insert(0, str(tree / "gguf-py"))
    constants = ast.parse((tree / "gguf-py" / "gguf" / "constants.py").read_text())
    names: dict[str, str] = {}
    for node in ast.walk(constants):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODEL_ARCH_NAMES" and node.value:
            assert isinstance(node.value, ast.Dict)
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                names[ast.unparse(key).removeprefix("MODEL_ARCH.")] = ast.literal_eval(value)
    found: dict[str, set[str]] = {}
    for path in sorted((tree / "conversion").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                registered = {
                    arg.value
                    for deco in node.decorator_list
                    if isinstance(deco, ast.Call) and ast.unparse(deco.func) == "ModelBase.register"
                    for arg in deco.args
                    if isinstance(arg, ast.Constant)
                }
                for line in ast.walk(node):
                    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "model_arch":
                        arch = names.get(ast.unparse(line.value).split(".")[-1])
                        if arch and arch != "clip":
                            found.setdefault(arch, set()).update(registered)
    return found


def verified() -> dict[str, set[str]]:
    """GGUF architecture to the names in `architectures` that the goldens hold."""
    goldens = json.loads(_GOLDENS.read_text())
    held: dict[str, set[str]] = {}
    for row in [*goldens["configurations"].values(), *goldens["checkpoints"].values()]:
        config = row["config"]
        text = next((config[k] for k in ("text_config",) if isinstance(config.get(k), dict)), {})
        name = (text.get("architectures") or config["architectures"])[0]
        held.setdefault(header_from_config(config).metadata["general.architecture"], set()).add(name)
    for row in goldens["catalog"].values():
        arch = row["metadata"]["general.architecture"]
        held.setdefault(arch, set())
    return held


def registered(tree: Path) -> set[str]:
    """The names that the converter makes language models of: TEXT_MODEL_MAP of conversion/__init__.py."""
    for node in ast.parse((tree / "conversion" / "__init__.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value:
            return set(ast.literal_eval(node.value))
    raise SystemExit("no TEXT_MODEL_MAP in conversion/__init__.py")


def names_by_type() -> dict[str, str]:
    """Model type to the name that decides the converter's class: of the goldens, the catalog and a table."""
    goldens = json.loads(_GOLDENS.read_text())
    configs = [row["config"] for part in ("configurations", "checkpoints") for row in goldens[part].values()]
    found = {config["model_type"]: architecture_of(config) for config in reversed(configs)}
    return {**_NAMES, **found}


def counts(published: Path | None) -> collections.Counter[str]:
    """Published models by model type; of the table as written where the file is not here."""
    if published is None:
        rows = re.findall(r"^\| \d+ \| (\S+) \| (\d+) \|", _TARGET.read_text(), re.M)
        return collections.Counter({name: int(n) for name, n in rows})
    with published.open(newline="") as file:
        return collections.Counter(row["architecture"] for row in csv.DictReader(file))


def frequent(tree: Path, published: Path | None) -> str:
    by_type, known, ours, held = names_by_type(), registered(tree), families(), verified()
    rows = []
    found = counts(published)
    for model_type, n in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        name = by_type.get(model_type)
        if name is None or name not in known:
            continue
        family = ours.get(name)
        exact = family is not None and family.arch in held
        rows.append((model_type, n, exact, family.arch if family else name))
        if len(rows) == _MOST_FREQUENT:
            break
    missing = [i for i, row in enumerate(rows, 1) if not row[2]]
    n_models = sum(found.values()) if published else _told_models()
    first = f"; the first that is not is number {missing[0]}" if missing else ""
    n_exact = len(rows) - len(missing)
    head = _FREQUENT.format(n_models=n_models, n_exact=n_exact, n_shown=len(rows), first=first)
    lines = [
        f"| {i} | {model_type} | {n} | {'exact' if exact else 'engine only'} | {arch} |"
        for i, (model_type, n, exact, arch) in enumerate(rows, 1)
    ]
    return head + "\n".join(lines) + "\n"


def _told_models() -> int:
    told = re.search(r"`models_published.csv`: (\d+) models", _TARGET.read_text())
    return int(told[1]) if told else 0


def table(tree: Path, published: Path | None) -> str:
    ours: dict[str, set[str]] = {}
    for name, family in families().items():
        ours.setdefault(family.arch, set()).add(name)
    ours.setdefault("nemotron_h_moe", set()).add("NemotronHForCausalLM")
    held, converter = verified(), converter_architectures(tree)
    lines = []
    for arch in engine_architectures(tree):
        exact = arch in held and arch in ours
        known = "exact" if exact else "engine only" if arch in converter or arch in ours else "-"
        memory = "range" if arch in UNMODELLED else "modelled"
        names = ", ".join(sorted(ours.get(arch, set()))) if exact else ""
        lines.append(f"| {arch} | {known} | {memory} | {names} |")
    n_exact = sum(line.split(" | ")[1] == "exact" for line in lines)
    told = f"\n\n{n_exact} of {len(lines)} architectures are exact from a checkpoint.\n"
    return _INTRO + "\n".join(lines) + told + frequent(tree, published)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=os.environ.get("QUANTPLAN_LLAMA_TREE"))
    parser.add_argument("--published", type=Path, help="a CSV of published models with their model type")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = table(args.tree, args.published)
    if args.check:
        sys.exit(0 if text == _TARGET.read_text() else 1)
    _TARGET.parent.mkdir(exist_ok=True)
    _TARGET.write_text(text)


if __name__ == "__main__":
    main()
