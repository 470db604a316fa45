"""The programs of this machine that an export names."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.cli.options import say

if TYPE_CHECKING:
    from quantplan.artifact.plan_file import Plan

_ELSEWHERE = ("/usr/local/bin/llama-server",)


def program_for(plan: Plan, *, program: str | None, llama: Path | None) -> tuple[str, ...]:
    """llama-server as it is started on the target: as said, else the one found here if it can keep the plan.

    Raises CannotExport, TargetTooOld and ToolMissing for tools that were named and cannot.
    """
    from quantplan.errors import CannotExport, TargetTooOld, ToolMissing
    from quantplan.llama.toolchain import BUILD_NUMBER, find_toolchain, unified_per_slot
    from quantplan.memory.estimate import HOST

    if program is not None:
        return (program,)
    try:
        tools = find_toolchain(explicit=llama)
    except ToolMissing:
        if llama is not None:
            raise
        say(f"Note: no llama-server is here; {_ELSEWHERE[0]} is named")
        return _ELSEWHERE
    cards = [one.name for one in plan.memory if one.name != HOST and one.total_bytes > 0]
    if cards and tools.backend == "cpu":
        why = f"it puts a part of the model on {cards[0]}, and {tools.folder} is built for the CPU only"
        if llama is not None:
            raise CannotExport(target="llama-server", why=why)
        say(f"Note: {why}; {_ELSEWHERE[0]} is named instead")
        return _ELSEWHERE
    if plan.kv_unified and plan.n_parallel > 1 and not unified_per_slot(tools):
        raise TargetTooOld(target="llama-server", version=tools.build.label, needed=f"b{BUILD_NUMBER}",
                           what="a limit for each slot of a shared pool")  # fmt: skip
    first, *rest = tools.programs["llama-server"]
    return (str(Path(first).resolve()), *rest)


def checker() -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """How quantplan is run, and the folders that it needs for that."""
    import quantplan

    own = Path(quantplan.__file__).resolve().parents[1]
    found = shutil.which("quantplan")
    python = str(Path(sys.executable).absolute())
    installed = own.is_relative_to(sys.prefix)
    path = () if installed else ("/usr/bin/env", f"PYTHONPATH={own}")
    program = (str(Path(found).absolute()),) if found else (*path, python, "-m", "quantplan")
    return program, tuple(dict.fromkeys((Path(sys.prefix), Path(sys.base_prefix), own)))


def cuda_architectures(plan: Plan) -> str | None:
    """Those of this machine's cards, if the plan was made for it; None where nobody knows."""
    from quantplan.hardware.host import host_for

    if not any(one.name.startswith("CUDA") for one in plan.memory):
        return None
    host = host_for(None)
    if plan.host_fingerprint != host.fingerprint:
        return None
    found = {card.compute_capability for card in host.gpus if card.compute_capability}
    return ";".join(f"{major}{minor}" for major, minor in sorted(found)) or None
