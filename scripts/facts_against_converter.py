"""Holds the weightless file made from ModelFacts against the pinned converter's: llama-fit-params must say the same.

For every model of the catalog (or of --models) both files are made: ours from the configuration alone, the other by
the converter's own classes (scripts/weightless_from_converter.py, which needs the build extra and the pinned tree).
llama-fit-params is asked about both; a refusal counts as an answer and must be the same too. Exit 4 on a difference.

    python scripts/facts_against_converter.py --tree LLAMA_CPP [--only NAME] [--models model_configs.json] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from quantplan.errors import ToolFailed
from quantplan.llama.toolchain import find_toolchain
from quantplan.llama.types import Toolchain
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config
from quantplan.rehearsal.engine_word import ask_fit_params
from quantplan.rehearsal.weightless import write_weightless
from quantplan.units import MIB

ROOT = Path(__file__).resolve().parent.parent
CONTEXTS = (
    ContextParams(n_ctx=8192, n_parallel=1),
    ContextParams(n_ctx=4096, n_parallel=2, kv_unified=False, type_k="Q8_0", type_v="Q8_0"),
)
# transformers 5 writes these two otherwise than the hub's config.json, which is the spelling that the converter reads.
# From its own spelling the converter makes files that llama-fit-params refuses; ours are made from that spelling here.
_LAYERS = {"linear_attention": "mamba", "full_attention": "attention"}
_NOISE = re.compile(r"^\S*\d+\.\d+\.\d+\.\d+ |'[^']*\.gguf'|\S+\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What llama-fit-params said of both files, a line a context."""

    name: str
    ours: tuple[str, ...]
    converters: tuple[str, ...]

    @property
    def same(self) -> bool:
        return self.ours == self.converters


def said_of(tools: Toolchain, path: Path) -> tuple[str, ...]:
    """Its devices and MiB, or its refusal without what names the file."""
    lines = []
    for ctx in CONTEXTS:
        try:
            devices = ask_fit_params(tools, path, ctx, Placement()).devices
        except ToolFailed as error:
            lines.append("refused: " + " / ".join(_NOISE.sub("", line) for line in error.last_lines))
            continue
        lines.append("; ".join(f"{d.name} {d.model_bytes // MIB} {d.context_bytes // MIB} {d.compute_bytes // MIB}"
                               for d in devices))  # fmt: skip
    return tuple(lines)


def compare(tools: Toolchain, name: str, config: dict[str, Any], converters: Path) -> Compared:
    """Both files of one model, the converter's being there already."""
    ours = converters.with_suffix(".ours.gguf")
    header = header_from_config(config, path=name)
    write_weightless(ours, header.metadata, header.tensors)
    try:
        return Compared(name=name, ours=said_of(tools, ours), converters=said_of(tools, converters))
    finally:
        ours.unlink()


def as_on_the_hub(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the hub's spelling."""
    if config["model_type"] == "minimax_m2":
        return {"scoring_func": "sigmoid", **config}
    if config["model_type"] == "granitemoehybrid":
        return {**config, "layer_types": [_LAYERS.get(kind, kind) for kind in config["layer_types"]]}
    return config


def converted(entries: Sequence[dict[str, Any]], folder: Path, *, tree: Path) -> None:
    """The converter's weightless files, in a process of its own: it brings its own gguf."""
    configs = folder / "configs.json"
    configs.write_text(json.dumps(list(entries)))
    script = ROOT / "scripts" / "weightless_from_converter.py"
    argv = [sys.executable, str(script), "--tree", str(tree), "--configs", str(configs), "--output", str(folder)]
    subprocess.run(argv, check=False, stdout=sys.stderr)


def entries_of(models: Path | None, only: Sequence[str] | None) -> list[dict[str, Any]]:
    """Names and configurations: of the file, else of the catalog."""
    if models is not None:
        rows = [{"name": row["name"], "config": row["config"]} for row in json.loads(models.read_text())]
    else:
        rows = [{"name": e.name, "config": dict(e.config)} for e in catalog.entries() if e.folder is None]
    return [row for row in rows if not only or row["name"] in only]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=os.environ.get("QUANTPLAN_LLAMA_TREE"), help="the pinned tree")
    parser.add_argument("--models", type=Path, help="a list of {name, config}; left out, the catalog")
    parser.add_argument("--only", action="append", help="a name (repeatable)")
    parser.add_argument("--as-transformers", action="store_true", help="no hub's spelling, not even for the two")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tools, wrong = find_toolchain(), 0
    entries = entries_of(args.models, args.only)
    with tempfile.TemporaryDirectory(prefix="quantplan-") as name:
        folder = Path(name)
        spelled = as_on_the_hub if not args.as_transformers else dict
        converted([{**e, "config": spelled(e["config"])} for e in entries], folder, tree=args.tree)
        for entry in entries:
            file = folder / f"{entry['name']}.gguf"
            if not file.is_file():
                wrong += 1
                print("NO FILE BY THE CONVERTER", entry["name"])
                continue
            found = compare(tools, entry["name"], entry["config"], file)
            wrong += not found.same
            if args.json:
                print(json.dumps({"name": found.name, "same": found.same, "ours": found.ours,
                                  "converters": found.converters}))  # fmt: skip
            else:
                told = " | ".join(found.ours) + ("" if found.same else f"\n      not {' | '.join(found.converters)}")
                print("same " if found.same else "DIFFERENT", found.name, told, flush=True)
    print(f"{len(entries) - wrong} of {len(entries)} the same", file=sys.stderr)
    return 4 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
