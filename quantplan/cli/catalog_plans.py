"""Best plans of many models on one host: what is alike is planned once, two processes share the work, and what was
planned is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan import __version__
from quantplan.cli import planning
from quantplan.cli.recommendation import companions
from quantplan.hardware.facts import HostFacts
from quantplan.model.catalog import CatalogEntry
from quantplan.places import cache_folder, data_file
from quantplan.planner import instruments
from quantplan.planner.ranking import Candidate, Delivered, delivered
from quantplan.planner.request import PlanRequest
from quantplan.planner.score import first_token_seconds
from quantplan.units import MIB

if TYPE_CHECKING:
    from quantplan.model.facts import ModelFacts
    from quantplan.planner.speed import SpeedHost

_STEP_BYTES = 256 * MIB  # this machine's free memory is taken down to whole steps, so that plans can be kept
_ENOUGH_FOR_TWO = 8  # models: below that another process is not worth its start
_DATA = ("catalog.json", "speed_calibration.json", "quality_prior.json", "gpus.json", "hf_defaults.json",
         "driver_context.csv")  # fmt: skip
_MOST_KEPT = 24  # files of plans

Row = dict[str, Any]


def steady(host: HostFacts) -> HostFacts:
    """The host one sits at with its free memory in whole steps: it changes with every program's breath. A named machine
    stays as it is."""
    if host.profile is not None:
        return host
    ram = replace(host.ram, available_bytes=host.ram.available_bytes // _STEP_BYTES * _STEP_BYTES)
    gpus = tuple(replace(gpu, free_bytes=gpu.free_bytes // _STEP_BYTES * _STEP_BYTES) for gpu in host.gpus)
    disk = host.disk and replace(host.disk, free_bytes=host.disk.free_bytes // (4 * _STEP_BYTES) * 4 * _STEP_BYTES)
    return replace(host, ram=ram, gpus=gpus, disk=disk)


def candidates(
    entries: Sequence[CatalogEntry], host: HostFacts, request: PlanRequest, *, margins: Mapping[str, int],
    with_projector: bool = False,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Each model with its best plan. `with_projector`: the tower of a model that sees is loaded too."""
    file = _kept_file(host, request, margins, with_projector)
    kept = _read(file)
    missing = [entry for entry in entries if entry.id not in kept]
    if missing:
        work = _Work(host=host, request=request, margins=dict(margins), with_projector=with_projector)
        kept |= work.rows(missing)
        _write(file, kept)
    return tuple(_candidate(entry, kept[entry.id]) for entry in entries)


def _candidate(entry: CatalogEntry, row: Row) -> Candidate:
    plan = row["plan"]
    if plan is not None:
        plan = {**plan, "devices": tuple((name, n) for name, n in plan["devices"]), "key": tuple(plan["key"])}
    return Candidate(
        id=entry.id, parameters=row["parameters"], active=row["active"], released=entry.released, embeds=row["embeds"],
        plan=Delivered(**plan) if plan is not None else None, why=row["why"], facts=entry,
        notes=tuple(row["notes"]),
    )  # fmt: skip


# Planning ----------------------------------------------------------------------------------------------------------


class _Work:
    """What is to be planned, and with what."""

    def __init__(
        self, *, host: HostFacts, request: PlanRequest, margins: dict[str, int], with_projector: bool
    ) -> None:  # fmt: skip
        from quantplan.rehearsal.calibration import speed_host_for

        self.host, self.request, self.margins, self.with_projector = host, request, margins, with_projector
        self.speeds: SpeedHost = speed_host_for(host)

    def rows(self, entries: Sequence[CatalogEntry]) -> dict[str, Row]:
        """One row a model. Models that cannot differ share their plan."""
        alike: dict[object, list[CatalogEntry]] = {}
        for entry in entries:
            alike.setdefault(self._kind(entry), []).append(entry)
        groups = [[entry.id for entry in group] for group in alike.values()]
        groups.sort(key=len)
        planned = _in_processes(self, [ids[0] for ids in groups])
        return {model: row for ids, row in zip(groups, planned, strict=True) for model in ids}

    def _kind(self, entry: CatalogEntry) -> object:
        """What decides a plan: tensors, the contexts to choose from, the family of the quality table, and what was
        measured of this very model."""
        from quantplan.quant.quality import family_of
        from quantplan.quant.quality_table import read_quality_table

        table = read_quality_table()
        if entry.folder is not None or self.speeds_are_measured or planning.measured_here(entry.id, table):
            return entry.id
        config = {**entry.config, **_text(entry.config)}
        n_ctx = config.get("max_position_embeddings")
        trained = n_ctx if isinstance(n_ctx, int) else entry.id
        contexts = instruments.contexts(self.request, trained) if isinstance(trained, int) else trained
        least = instruments.least_context(self.request, trained) if isinstance(trained, int) else None
        shape = entry.shape.partition("@")[0] if "embedding" not in entry.uses else entry.shape
        return (shape, contexts, least, family_of(entry.id, table), entry.only_presets, entry.pooling,
                entry.vision_parameters if self.with_projector else None)  # fmt: skip

    @property
    def speeds_are_measured(self) -> bool:
        return any(device.measured for device in self.speeds.devices)

    def row(self, model: str) -> Row:
        """The plan of one model, or why there is none."""
        from quantplan.errors import Contradiction, DoesNotFit, QuantplanError
        from quantplan.model.read import read_model

        facts = read_model(model)
        row: Row = {"parameters": facts.parameters, "active": facts.active_parameters, "embeds": False, "plan": None,
                    "notes": ()}  # fmt: skip
        try:
            found = self._planned(facts)
        except (DoesNotFit, Contradiction) as error:
            return {**row, "why": str(error)}
        except QuantplanError as error:  # a model that these options do not suit is left out, the others are ranked
            return {**row, "why": str(error)}
        outline = found.tools.outline_of(found.plan.quant)
        first = first_token_seconds(found.choice.merits, found.request.workload)
        plan = delivered(found.choice, found.request, file_bytes=outline.file_bytes, first_token_s=first)
        notes = found.warnings  # of the plan's figures, as that a buffer is a lower bound
        return {**row, "embeds": found.nature.embeds, "plan": asdict(plan), "why": None, "notes": notes}

    def _planned(self, facts: ModelFacts) -> planning.Planned:
        beside = companions(facts, self.host, self.request, draft=None, mmproj=None, sees=self.with_projector)
        return planning.recommend(facts, self.host, self.request, margins=self.margins, companions=beside,
                                  with_alternatives=False, with_changes=False, speeds=self.speeds)  # fmt: skip


def _text(config: Mapping[str, object]) -> Mapping[str, object]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else {}


_forked: list[_Work] = []  # what a forked process finds


def _row(model: str) -> Row:
    return _forked[-1].row(model)


def _in_processes(work: _Work, models: Sequence[str]) -> Iterable[Row]:
    """A row a model, by as many processes as there are cores, at most four."""
    import multiprocessing
    import threading

    n = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    forks = "fork" in multiprocessing.get_all_start_methods() and threading.active_count() == 1
    if len(models) < _ENOUGH_FOR_TWO or n < 2 or not forks:
        return [work.row(model) for model in models]
    _forked.append(work)
    try:
        with multiprocessing.get_context("fork").Pool(n) as pool:
            return pool.map(_row, models, chunksize=2)
    finally:
        _forked.pop()


# Kept plans --------------------------------------------------------------------------------------------------------


def _kept_file(host: HostFacts, request: PlanRequest, margins: Mapping[str, int], with_projector: bool) -> Path:
    """The file of what was planned with all that decides a plan: the machine and what was measured on it, the options,
    the data, the version."""
    from quantplan.rehearsal.calibration import bench_file

    told = {
        "host": host.to_json(), "request": repr(request), "margins": sorted(margins.items()),
        "projector": with_projector, "version": __version__, "code": _newest_code(),
        "data": [_stamp(data_file(name)) for name in _DATA],
        "measured": [] if host.profile else [_stamp(bench_file(host))], "history": _measured_quality(),
    }  # fmt: skip
    key = sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_folder() / "catalog-plans" / f"{key}.json"


def _measured_quality() -> object:
    """What changes when a gate was recorded here; other results of the history change no plan."""
    from quantplan.artifact.history_store import store_file
    from quantplan.errors import HistoryUnreadable

    if not store_file().exists():
        return None
    from quantplan.quant.own_quality import gates

    try:
        found = gates(store_file())
    except HistoryUnreadable:
        return _stamp(store_file())
    return len(found), repr(found[-1]) if found else None


def _newest_code() -> int:
    """When the newest module that a plan depends on was changed: a checkout's version says nothing."""
    package = Path(__file__).resolve().parent.parent
    folders = ("cli", "planner", "memory", "quant", "model", "model/hf", "hardware", "rehearsal")
    return max(file.stat().st_mtime_ns for name in folders for file in os.scandir(package / name) if file.is_file())


def _stamp(path: Path) -> object:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns)


def _read(file: Path) -> dict[str, Row]:
    """What was kept; what was cut or changed counts as not kept."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(told) if isinstance(told, dict) else {}


def _write(file: Path, rows: Mapping[str, Row]) -> None:
    """Keeps the plans, whole or not at all, and of old ones no more than a few. A cache that cannot be written costs
    time, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(rows, separators=(",", ":")), encoding="utf-8")
        partial.replace(file)
        old = sorted(file.parent.glob("*.json"), key=lambda one: one.stat().st_mtime)
        for one in old[:-_MOST_KEPT]:
            one.unlink(missing_ok=True)
    except OSError:
        return
