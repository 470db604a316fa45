"""One pull, from the choice to the artifact: host, tools, reference and plan come together here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan import errors
from quantplan.artifact.plan_file import Plan
from quantplan.cli.pull_source import Chosen, choose, fetch
from quantplan.llama.types import Toolchain
from quantplan.pipeline.pull import Finished, Gated, Pulled, pull
from quantplan.pipeline.pull_gate import Reference, judge_against
from quantplan.places import cache_folder

if TYPE_CHECKING:
    from quantplan.hardware.facts import HostFacts

Say = Callable[[str], None]
ALL_LAYERS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What was typed beside MODEL."""

    quant: str | None
    n_ctx: int | None
    reference: str
    output: Path
    texts: tuple[str, ...]
    chunks: int | None
    policy: str | None
    llama: Path | None


def run(model: str, *, say: Say, **options: Any) -> tuple[Chosen, Pulled, tuple[str, ...]]:
    """The choice, the artifact, and warnings."""
    from quantplan.artifact.history import record_artifact
    from quantplan.hardware.detect import detect_host
    from quantplan.pipeline.layout import engine_entry

    asked = _Asked(**options)
    host = detect_host()
    chosen = choose(model, quant=asked.quant, n_ctx=asked.n_ctx, host=host)
    say(f"{chosen.name} ({chosen.label}): {chosen.why}")
    found = fetch(chosen)
    warnings: list[str] = []
    tools, why = _tools(asked)
    reference = None
    if tools is not None and asked.reference != "none":
        reference, why = _reference(chosen, found, asked, say)
    judge = _judge(reference, chosen, asked, tools, host) if reference and tools else None
    pulled = pull(
        found, output=asked.output, judge=judge, why_unmeasured=why,
        make_plan=lambda file: _plan(file, chosen, host, warnings),
        tools=engine_entry(tools) if tools and judge else {}, tell=lambda step, what: say(f"{step}: {what}"),
        host={"fingerprint": host.fingerprint, "cpu": host.cpu.model, "threads": host.cpu.n_threads},
    )  # fmt: skip
    said = record_artifact(pulled.folder)
    return chosen, pulled, (*warnings, *([said] if said else []))


def _tools(asked: _Asked) -> tuple[Toolchain | None, str]:
    from quantplan.llama.toolchain import find_toolchain

    if asked.reference == "none":
        return None, "no reference was asked for, so nothing was measured"
    try:
        return find_toolchain(explicit=asked.llama), ""
    except errors.ToolMissing as error:
        return None, f"{error}: nothing could be measured"


def _reference(chosen: Chosen, found: Finished, asked: _Asked, say: Say) -> tuple[Reference | None, str]:
    """What to judge by, on this disk; or why there is nothing."""
    if asked.reference not in ("auto", "base"):
        return _given(Path(asked.reference)), ""
    if chosen.label in ("BF16", "F16", "F32"):
        return None, "it is a 16-bit file itself: there is nothing to hold it against"
    if asked.reference == "auto" and chosen.reference_name is not None:
        return _of_repository(chosen, say), ""
    base = chosen.base_model or base_model_of(found.files[0])
    if base is None:
        return None, "no reference: its repository has no BF16 or Q8_0 file, and no base model is named"
    try:
        from quantplan.cli.base_reference import build_reference

        return build_reference(base, say=say), ""
    except errors.QuantplanError as error:
        if asked.reference == "base":
            raise
        return None, f"no reference: its base model {base} cannot be built here ({error})"


def _given(path: Path) -> Reference:
    from quantplan.cli.pull_source import own_label
    from quantplan.model.gguf_choice import quant_of

    if not path.is_file():
        raise errors.BadModelFile(path=path, why="no such file")
    label = own_label(path)
    return Reference(path=path, quant=label if label != "UNKNOWN" else quant_of(path.name) or "F32", told=path.name)


def _of_repository(chosen: Chosen, say: Say) -> Reference:
    from quantplan.cli.progress import DownloadBar
    from quantplan.cli.pull_source import shards_of
    from quantplan.model.gguf_choice import quant_of
    from quantplan.pipeline.download import download

    assert chosen.hub is not None
    assert chosen.files is not None
    assert chosen.reference_name is not None
    repository = chosen.files.repository
    say(f"reference: {chosen.reference_name} of the same repository")
    bar = DownloadBar(f"{repository.id} (reference)")
    got = download(chosen.hub, repository, shards_of(chosen.reference_name), progress=bar)
    quant = (quant_of(chosen.reference_name) or "F32").upper()
    return Reference(path=got.files[0], quant=quant, told=f"{repository.id}/{chosen.reference_name}")


def base_model_of(path: Path) -> str | None:
    """The base model that the file's own metadata names, as a repository of the hub."""
    from quantplan.model.gguf_header import read_gguf_header
    from quantplan.model.model_name import hub_name

    try:
        metadata = read_gguf_header(path).metadata
    except errors.BadModelFile:
        return None
    url = metadata.get("general.base_model.0.repo_url") or metadata.get("general.source.url")
    told = "/".join(str(url).rstrip("/").split("/")[-2:]) if isinstance(url, str) else None
    return told if told and hub_name(told) else None


def _judge(
    reference: Reference, chosen: Chosen, asked: _Asked, tools: Toolchain, host: HostFacts
) -> Callable[[Path, Callable[[str, str], None]], Gated]:
    from quantplan.cli.build_request import corpora
    from quantplan.llama.commands import EvalSettings
    from quantplan.pipeline.policy import load_policy

    texts, policy = corpora(asked.texts), load_policy(asked.policy)
    policy = replace(policy, budget_chunks=asked.chunks) if asked.chunks else policy
    settings = EvalSettings(
        n_threads=host.cpu.n_threads, n_gpu_layers=ALL_LAYERS if tools.backend == "cuda" else 0
    )  # fmt: skip

    def judge(model: Path, tell: Callable[[str, str], None]) -> Gated:
        base = cache_folder() / "gate"
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as folder:
            return judge_against(
                reference, model, label=chosen.label, tools=tools, corpora=texts, settings=settings, policy=policy,
                work=Path(folder), tell=tell,
            )  # fmt: skip

    return judge


def _plan(file: Path, chosen: Chosen, host: HostFacts, warnings: list[str]) -> Plan | None:
    """The plan for this host; none, with a warning, where the model does not fit."""
    from quantplan.cli.planning import plan_file

    try:
        return plan_file(file, quant=chosen.label, host=host, name=chosen.name)
    except errors.DoesNotFit as error:
        warnings.append(f"no plan for this host: {error}")
        return None
