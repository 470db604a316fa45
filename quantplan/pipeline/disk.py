"""How much disk a build takes, step by step: sizes added up along the schedule that the runner follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from quantplan.pipeline.schedule import CONVERTED, DIGESTS, IMATRIX, MMPROJ, SOURCE, Action, Kind, Order, Work, schedule

RECORDS_BYTES = 1 << 20  # run.json, logs, scores, receipts and cards; 0.3 MiB for five texts and three presets


class DiskMode(Enum):
    """What is asked for. AUTO is fast where it fits, else tight, else remote."""

    AUTO = "auto"
    FAST = "fast"  # intermediates stay: the next preset of the same model starts from them
    TIGHT = "tight"  # dropped as soon as what is made from them is verified
    REMOTE = "remote"  # tight, and the weights are read from the hub, twice, and never lie here


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSizes:
    """The size of every file of a build. `quants` names every preset made, the baseline too."""

    converted_bytes: int
    quants: Mapping[str, int]
    logits_bytes: int = 0  # one text, one model
    source_bytes: int = 0  # on the same disk and made by this build; 0 for a folder that was there
    mmproj_bytes: int = 0
    imatrix_bytes: int = 0
    small_source_bytes: int = 0  # what of source_bytes is no weights
    digests_bytes: int = 0

    def of(self, key: str) -> int:
        """The size of a file of the schedule."""
        named = {SOURCE: self.source_bytes, CONVERTED: self.converted_bytes, MMPROJ: self.mmproj_bytes,
                 IMATRIX: self.imatrix_bytes, DIGESTS: self.digests_bytes}  # fmt: skip
        whole = key.removesuffix(" split")
        if whole in named:
            return named[whole]
        return self.logits_bytes if key.startswith("logits ") else self.quants[whole]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStep:
    """One entry of the schedule: what it adds or frees, and what lies on the disk when it has ended."""

    name: str
    writes_bytes: int
    frees_bytes: int
    on_disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """A build's use of the disk. `peak_bytes` counts all that the build itself puts there."""

    mode: DiskMode  # FAST, TIGHT or REMOTE
    order: Order
    steps: tuple[DiskStep, ...]
    peak_bytes: int
    peak_step: str
    final_bytes: int
    actions: tuple[Action, ...]


def disk_plan(
    sizes: BuildSizes, work: Work, mode: DiskMode, *, free_bytes: int | None = None,
    remote_free_bytes: int | None = None,
) -> DiskPlan:  # fmt: skip
    """The plan of one mode. With AUTO: the fast one where it fits into free_bytes (or none is given), else the tight,
    else the remote where that fits into remote_free_bytes (None: the weights cannot be read so).

    Tight takes the order with the lower peak: many presets are cheaper one after the other, many or large files of
    reference scores are cheaper one text after the other.
    """
    fast = _along(sizes, work, Order.KEEP, DiskMode.FAST)
    if mode is DiskMode.FAST or (mode is DiskMode.AUTO and (free_bytes is None or fast.peak_bytes <= free_bytes)):
        return fast
    remote = _dropping(_without_weights(sizes), replace(work, remote=True, source_is_ours=False), DiskMode.REMOTE)
    if mode is DiskMode.REMOTE:
        return remote
    tight = _dropping(sizes, work, DiskMode.TIGHT)
    if mode is DiskMode.TIGHT or free_bytes is None or remote_free_bytes is None:
        return tight
    return remote if tight.peak_bytes > free_bytes and remote.peak_bytes <= remote_free_bytes else tight


def _without_weights(sizes: BuildSizes) -> BuildSizes:
    return replace(sizes, source_bytes=sizes.small_source_bytes)


def _dropping(sizes: BuildSizes, work: Work, mode: DiskMode) -> DiskPlan:
    by_text, by_quant = (_along(sizes, work, order, mode) for order in (Order.BY_TEXT, Order.BY_QUANT))
    return by_text if by_text.peak_bytes <= by_quant.peak_bytes else by_quant


def _along(sizes: BuildSizes, work: Work, order: Order, mode: DiskMode) -> DiskPlan:
    actions = schedule(work, order)
    steps = tuple(_steps(actions, sizes))
    highest = max(steps, key=lambda step: step.on_disk_bytes)
    return DiskPlan(
        mode=mode, order=order, steps=steps, peak_bytes=highest.on_disk_bytes, peak_step=highest.name,
        final_bytes=steps[-1].on_disk_bytes, actions=actions,
    )  # fmt: skip


def _steps(actions: Iterable[Action], sizes: BuildSizes) -> Iterable[DiskStep]:
    there: dict[str, int] = {SOURCE: sizes.of(SOURCE)}
    for action in actions:
        frees = sum(there.pop(key, 0) for key in action.needs) if action.kind is Kind.DROP else 0
        writes = 0
        if action.makes is not None:
            writes = there[action.makes] = sizes.of(action.makes)
        on_disk = RECORDS_BYTES + sum(there.values())
        yield DiskStep(name=action.name, writes_bytes=writes, frees_bytes=frees, on_disk_bytes=on_disk)
