"""Writes docs/architectures.md: what quantplan knows of each architecture of the pinned build.

python scripts/architectures.py --tree LLAMA_CPP [--check]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))
from quantplan.model.hf.families import families  # noqa: E402
from quantplan.model.hf_config import header_from_config  # noqa: E402
from quantplan.model.layer_rules import UNMODELLED  # noqa: E402

_TARGET = _ROOT / "docs" / "architectures.md"
_GOLDENS = _ROOT / "tests" / "data" / "converter_goldens.json"
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
    for row in goldens["configurations"].values():
        config = row["config"]
        text = next((config[k] for k in ("text_config",) if isinstance(config.get(k), dict)), {})
        name = (text.get("architectures") or config["architectures"])[0]
        held.setdefault(header_from_config(config).metadata["general.architecture"], set()).add(name)
    for row in goldens["catalog"].values():
        arch = row["metadata"]["general.architecture"]
        held.setdefault(arch, set())
    return held


def table(tree: Path) -> str:
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
    return _INTRO + "\n".join(lines) + f"\n\n{n_exact} of {len(lines)} architectures are exact from a checkpoint.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=os.environ.get("QUANTPLAN_LLAMA_TREE"))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = table(args.tree)
    if args.check:
        sys.exit(0 if text == _TARGET.read_text() else 1)
    _TARGET.parent.mkdir(exist_ok=True)
    _TARGET.write_text(text)


if __name__ == "__main__":
    main()
