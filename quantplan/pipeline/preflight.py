"""What can be known of a build before the first byte of weights: what would stop it, and what it takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from quantplan import errors
from quantplan.hardware.facts import HostFacts
from quantplan.model.facts import ModelFacts
from quantplan.model.hf_config import architecture_of
from quantplan.model.read import facts_of
from quantplan.pipeline import disk, logits
from quantplan.pipeline.candidate import Candidate
from quantplan.pipeline.checks import Asked, Check, Level, Preflight
from quantplan.pipeline.disk import BuildSizes, DiskMode, DiskPlan
from quantplan.pipeline.download import missing_bytes, source_folder
from quantplan.pipeline.memory_need import MemoryStep, memory_steps
from quantplan.pipeline.needed import Needed, needed_files
from quantplan.pipeline.presets_check import PresetCheck, check_presets
from quantplan.pipeline.remote.digests import digests_bytes
from quantplan.pipeline.remote.weights import N_PASSES, RemoteWeights, remote_weights
from quantplan.pipeline.schedule import Work
from quantplan.pipeline.source import supported_architectures
from quantplan.pipeline.vocabulary import Vocabulary, read_vocabulary
from quantplan.rehearsal.ask import repack_features
from quantplan.units import MIB, format_size

MAX_SMALL_FILE_BYTES = 64 * MIB
T = TypeVar("T")


class _Checks:
    """The checks so far. A refusal is kept, and the rest is still looked at."""

    def __init__(self) -> None:
        self.found: list[Check] = []

    def add(self, name: str, level: Level, text: str) -> None:
        self.found.append(Check(name=name, level=level, text=text))

    def refuse(self, name: str, error: errors.QuantplanError) -> None:
        self.found.append(Check(name=name, level=Level.REFUSED, text=str(error), error=error))

    def attempt(self, name: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except errors.QuantplanError as error:
            self.refuse(name, error)
            return None

    @property
    def refused(self) -> bool:
        return any(check.error for check in self.found)


def examine(candidate: Candidate, asked: Asked, *, host: HostFacts) -> Preflight:
    """All checks. Nothing is raised for what a check refuses: `refusals` has it, the first one first.

    Raises a HubError where the hub does not answer.
    """
    checks = _Checks()
    _access(candidate, checks)
    needed = checks.attempt(
        "files", lambda: needed_files(candidate.files, allow_code=asked.allow_code, allow_pickle=asked.allow_pickle)
    )
    architecture = checks.attempt("architecture", lambda: _architecture(candidate, asked.converter, checks))
    facts = _facts(candidate, checks, known=architecture is not None)
    vocabulary = None
    if needed is not None and architecture is not None and asked.converter is not None:
        vocabulary = checks.attempt("tokenizer", lambda: _vocabulary(candidate, needed, asked, checks))
        _template(candidate, vocabulary, checks)
    presets: tuple[PresetCheck, ...] = ()
    sizes = None
    if facts is not None:
        kv_bytes = vocabulary.kv_bytes_with(facts.tensors) if vocabulary else None
        presets = check_presets(facts, (*asked.quants, asked.baseline), kv_bytes=kv_bytes)
        _presets(presets, facts, asked, checks)
        sizes = _sizes(candidate, needed, presets, facts, asked)
    remote = _remote(candidate, needed, asked, checks) if needed is not None else None
    plan = _disk(sizes, candidate, asked, checks, remote=remote)
    is_remote = remote is not None and (plan.mode if plan is not None else asked.mode) is DiskMode.REMOTE
    names = () if needed is None else needed.without_weights if is_remote else needed.all
    files = tuple((name, candidate.bytes_of(name)) for name in names)
    memory = _memory(facts, presets, host, checks)
    return Preflight(
        model=candidate.checkpoint.id, name=candidate.name, licence=candidate.licence, architecture=architecture,
        repo=candidate.checkpoint.source.repo, revision=candidate.checkpoint.source.revision, files=files,
        download_bytes=sum(n or 0 for _, n in files) if candidate.repository else 0,
        missing_bytes=missing_bytes(candidate.repository, names) if candidate.repository else 0,
        remote=remote, is_remote=is_remote,
        checks=tuple(checks.found), facts=facts, needed=needed, vocabulary=vocabulary, presets=presets, sizes=sizes,
        sizes_are_exact=vocabulary is not None and sizes is not None, disk=plan, free_bytes=_free(asked.output),
        memory=memory, memory_limit_bytes=host.ram.available_bytes,
    )  # fmt: skip


def _access(candidate: Candidate, checks: _Checks) -> None:
    repository = candidate.repository
    if repository is not None:
        gated = "gated, and open to this token" if repository.gated else "open"
        checks.add("access", Level.OK, f"{repository.id} at commit {repository.commit[:12]}: {gated}")
    if candidate.licence:
        checks.add("licence", Level.OK, candidate.licence)
    else:
        checks.add("licence", Level.WARNING, f"{candidate.checkpoint.id}: no licence is stated")


def _architecture(candidate: Candidate, converter: Path | None, checks: _Checks) -> str:
    name = architecture_of(candidate.checkpoint.config)
    if converter is not None and name not in supported_architectures(converter):
        raise errors.UnsupportedArchitecture(architecture=name, path=candidate.files.name)
    known = "supported by the pinned converter" if converter is not None else "the converter is not here to be asked"
    checks.add("architecture", Level.OK if converter is not None else Level.NOTE, f"{name}, {known}")
    return name


def _facts(candidate: Candidate, checks: _Checks, *, known: bool) -> ModelFacts | None:
    try:
        return facts_of(candidate.checkpoint)
    except errors.UnsupportedArchitecture as error:
        if known:  # to the converter, not to our tables
            text = f"sizes and memory of {error.architecture} are not in our tables: they are not checked beforehand"
            checks.add("sizes", Level.WARNING, text)
    except errors.QuantplanError as error:
        checks.refuse("checkpoint", error)
    return None


def _vocabulary(candidate: Candidate, needed: Needed, asked: Asked, checks: _Checks) -> Vocabulary:
    assert asked.converter is not None
    contents = {
        name: candidate.files.read(name, max_bytes=MAX_SMALL_FILE_BYTES) for name in (*needed.small, *needed.code)
    }
    found = read_vocabulary(
        contents, model=candidate.files.name, name=candidate.name, converter=asked.converter,
        tensors=candidate.checkpoint.tensors,
    )  # fmt: skip
    pre = f", {found.pre}" if found.pre and found.pre != "default" else ""
    checks.add("tokenizer", Level.OK, f"recognized ({found.tokenizer}{pre}), {found.n_tokens or 0:,} tokens")
    return found


def _template(candidate: Candidate, vocabulary: Vocabulary | None, checks: _Checks) -> None:
    if vocabulary is None:
        return
    if vocabulary.has_chat_template:
        checks.add("chat template", Level.OK, "found, and it arrives in the GGUF")
    elif candidate.checkpoint.has_chat_template:
        checks.refuse("chat template", errors.TemplateLost(model=candidate.files.name))
    else:
        text = f"{candidate.files.name}: no chat template: chat requests will be formatted by a guess"
        checks.add("chat template", Level.WARNING, text)


def _presets(presets: Sequence[PresetCheck], facts: ModelFacts, asked: Asked, checks: _Checks) -> None:
    for preset in presets:
        if preset.name not in asked.quants:
            continue
        if preset.error is not None:
            checks.refuse(preset.name, preset.error)
        elif preset.needs_imatrix and not asked.with_imatrix:
            checks.refuse(preset.name, errors.ImatrixNeeded(preset=preset.name))
        elif preset.fallbacks:
            text = (
                f"{preset.name}: {len(preset.fallbacks)} tensors have rows that do not fill its blocks and get another "
                f"type ({preset.bits_per_weight:.2f} bits per weight in all): {', '.join(preset.fallbacks[:3])}"
            )
            checks.add(preset.name, Level.WARNING, text)
        else:
            need = "made with an imatrix" if asked.with_imatrix else "no imatrix needed"
            checks.add(preset.name, Level.OK, f"{preset.bits_per_weight:.2f} bits per weight, {need}")


def _sizes(
    candidate: Candidate, needed: Needed | None, presets: Sequence[PresetCheck], facts: ModelFacts, asked: Asked
) -> BuildSizes | None:
    sizes: Mapping[str, int] = {preset.name: preset.n_bytes for preset in presets if preset.n_bytes is not None}
    if "BF16" not in sizes or any(name not in sizes for name in asked.quants):
        return None
    names = needed.all if needed else ()
    ours = candidate.repository is not None and _same_disk(source_folder(candidate.repository), asked.output)
    scores = logits.predicted_bytes(n_ctx=asked.n_ctx, n_vocab=facts.n_vocab, n_chunk=asked.n_chunks)
    return BuildSizes(
        converted_bytes=sizes["BF16"], quants={k: v for k, v in sizes.items() if k != "BF16"}, logits_bytes=scores,
        source_bytes=_bytes_of(candidate, names) if ours else 0,
        small_source_bytes=_bytes_of(candidate, needed.without_weights if needed else ()) if ours else 0,
        digests_bytes=digests_bytes(len(facts.tensors)),
    )  # fmt: skip


def _bytes_of(candidate: Candidate, names: Sequence[str]) -> int:
    return sum(candidate.bytes_of(name) or 0 for name in names)


def _remote(candidate: Candidate, needed: Needed, asked: Asked, checks: _Checks) -> RemoteWeights | None:
    """The weights as they could be read from the hub; a refusal where that was asked for and cannot be."""
    try:
        return remote_weights(candidate, needed)
    except errors.CannotReadRemotely as error:
        if asked.mode is DiskMode.REMOTE:
            checks.refuse("disk", error)
        return None


def _disk(
    sizes: BuildSizes | None, candidate: Candidate, asked: Asked, checks: _Checks, *, remote: RemoteWeights | None
) -> DiskPlan | None:
    """The plan that fits; a refusal where none does. What lies there from an earlier run counts as free."""
    if sizes is None or (remote is None and asked.mode is DiskMode.REMOTE):
        return None
    work = Work(
        quants=asked.quants, baseline=asked.baseline if asked.baseline in sizes.quants else None, texts=asked.texts,
        source_is_ours=sizes.source_bytes > 0,
    )  # fmt: skip
    here, made = 0, _made(asked.output / ".work" / candidate.name)
    if sizes.source_bytes and candidate.repository:
        here = sum(p.stat().st_size for p in source_folder(candidate.repository).glob("*") if p.is_file())
    free = _free(asked.output) + made
    remote_free = free + min(here, sizes.small_source_bytes) if remote is not None else None
    plan = disk.disk_plan(sizes, work, asked.mode, free_bytes=free + here, remote_free_bytes=remote_free)
    free = remote_free if plan.mode is DiskMode.REMOTE and remote_free is not None else free + here
    if plan.peak_bytes > free:
        least = disk.disk_plan(sizes, work, DiskMode.REMOTE).peak_bytes
        checks.refuse("disk", errors.NoDiskSpace(
            path=asked.output, need_bytes=plan.peak_bytes, free_bytes=free,
            remote_bytes=least if remote_free is not None and least <= remote_free else None,
        ))  # fmt: skip
        return plan
    how = {DiskMode.FAST: "everything stays until the end", DiskMode.TIGHT: "each file is deleted once it is used up",
           DiskMode.REMOTE: _price(remote)}  # fmt: skip
    text = f"{format_size(plan.peak_bytes)} at most ({plan.peak_step}), {format_size(free)} free; {how[plan.mode]}"
    checks.add("disk", Level.OK, text)
    return plan


def _price(remote: RemoteWeights | None) -> str:
    n_bytes = remote.n_bytes if remote is not None else 0
    traffic = format_size(N_PASSES * n_bytes)
    return f"the weights never lie here: they are read from the hub, twice ({traffic} of traffic)"


def _memory(
    facts: ModelFacts | None, presets: Sequence[PresetCheck], host: HostFacts, checks: _Checks
) -> tuple[MemoryStep, ...]:
    if facts is None:
        return ()
    quants = [(preset.name, preset.tensors) for preset in presets if preset.error is None and preset.name != "BF16"]
    steps = tuple(memory_steps(facts, quants, simd=repack_features(host)))
    limit = host.ram.available_bytes
    worst = max(steps, key=lambda step: step.need_bytes)
    if worst.need_bytes > limit:
        what = f"the step {worst.name!r}"
        error = errors.DoesNotFit(device="this host", need_bytes=worst.need_bytes, free_bytes=limit, what=what)
        checks.refuse("memory", error)
    else:
        text = f"{format_size(worst.need_bytes)} at most ({worst.name}), {format_size(limit)} available"
        checks.add("memory", Level.OK, text)
        mapped = max(steps, key=lambda step: step.mapped_bytes)
        if mapped.mapped_bytes + mapped.need_bytes > limit:
            slow = f"the 16-bit file ({format_size(mapped.mapped_bytes)}) is larger than the memory: scoring reads it "
            checks.add("memory", Level.WARNING, f"{slow}from the disk again for every batch, which is slow")
    return steps


def _made(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _free(output: Path) -> int:
    return shutil.disk_usage(_existing(output)).free


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _same_disk(one: Path, other: Path) -> bool:
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev
