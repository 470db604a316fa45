"""Our recipes put to llama-quantize itself, on a file without weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.llama.commands import Program
from quantplan.llama.dry_run import DryRun, dry_run, parse_dry_run, write_smallest_imatrix
from quantplan.llama.process import run_tool
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.quant.presets import PresetRefused, PresetResult, apply_preset
from quantplan.rehearsal.weightless import write_weightless
from quantplan.units import MIB

Ask = Callable[[Sequence[str]], tuple[int, Sequence[str]]]  # argv to return code and printed lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One preset in which the tool and we disagree."""

    preset: str
    with_imatrix: bool
    why: str


def ask_tool(argv: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Runs llama-quantize in its clean room."""
    done = run_tool(argv, step="dry run", timeout_s=60, check=False)
    return done.returncode, (*done.stderr, *done.stdout)


def verify_presets(
    facts: ModelFacts, presets: Sequence[str], *, program: Program, ask: Ask = ask_tool
) -> tuple[Difference, ...]:
    """Every preset, with and without an imatrix, against the tool's dry run."""
    found: list[Difference] = []
    with tempfile.TemporaryDirectory(prefix="quantplan-") as folder:
        source, imatrix = Path(folder) / "weightless.gguf", Path(folder) / "imatrix.dat"
        write_weightless(source, facts.metadata, facts.tensors)
        write_smallest_imatrix(imatrix)
        for preset in presets:
            for weights in (None, imatrix):
                code, lines = ask(dry_run(program, source, preset, imatrix=weights))
                why = difference(_ours(facts, preset, with_imatrix=weights is not None), code, parse_dry_run(lines))
                if why:
                    found.append(Difference(preset=preset, with_imatrix=weights is not None, why=why))
    return tuple(found)


def _ours(facts: ModelFacts, preset: str, *, with_imatrix: bool) -> PresetResult | None:
    try:
        return apply_preset(facts.tensors, facts.metadata, preset, with_imatrix=with_imatrix)
    except PresetRefused:
        return None


def difference(ours: PresetResult | None, returncode: int, told: DryRun) -> str | None:
    """What differs, in words; None where the tool says the same."""
    if ours is None:
        return None if returncode else "the tool accepts what we refuse"
    if returncode:
        return f"the tool ended with status {returncode}"
    wrong = _types_that_differ(ours.tensors, told.types)
    if wrong:
        return f"{len(wrong)} tensors differ: {wrong[0]}"
    if told.quant_mib != f"{ours.tensor_bytes / MIB:.2f}":
        return f"the tool counts {told.quant_mib} MiB, we {ours.tensor_bytes / MIB:.2f} MiB"
    return None


def _types_that_differ(tensors: Sequence[TensorFacts], told: Mapping[str, str]) -> list[str]:
    ours = {tensor.name: tensor.type_name for tensor in tensors}
    names = [*ours, *(name for name in told if name not in ours)]
    return [
        f"{name} is {told.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in names
        if ours.get(name) != told.get(name)
    ]
