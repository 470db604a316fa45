"""A 16-bit reference built from a base model: preflight, download, conversion. Kept for the next time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantplan import errors
from quantplan.llama.process import run_tool
from quantplan.model.repository import Repository
from quantplan.pipeline.pull_gate import Reference
from quantplan.places import cache_folder

Say = Callable[[str], None]


def references_folder() -> Path:
    return cache_folder() / "references"


def build_reference(base: str, *, say: Say) -> Reference:
    """The bf16 GGUF of a base model on the hub. Raises what a build of it would raise."""
    from quantplan.cli.build_fetch import fetched
    from quantplan.cli.build_request import Allowed, Options, examined, tools_for_build
    from quantplan.hardware.detect import detect_host
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.candidate import find_candidate
    from quantplan.pipeline.reference import make_reference

    candidate = find_candidate(f"{base}@main" if "@" not in base else base)
    if candidate.repository is None:
        raise errors.UnknownModel(model=base)
    target = _target(candidate.repository)
    if not target.is_file():
        _, converter = tools_for_build(None)
        target.parent.mkdir(parents=True, exist_ok=True)
        say(f"reference: building the 16-bit file of {base}")
        options = Options(quants=(), output=target.parent)
        found = examined(candidate, options, (), EvalSettings(), detect_host(), converter)
        for refusal in found.refusals:
            raise refusal
        source = fetched(candidate, found, converter, Allowed())
        make_reference(
            source.folder, target, converter=converter, run=run_tool, tell=lambda step, what: say(f"{step}: {what}")
        )
    return Reference(path=target, quant="BF16", told=f"{candidate.repository.id}, converted here")


def _target(repository: Repository) -> Path:
    return references_folder() / f"{repository.id.replace('/', '--')}-{repository.commit[:12]}-BF16.gguf"
