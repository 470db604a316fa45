"""Our own measurements of quality, from the history: what replaces the published prior on this host."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from quantplan.artifact.history import Entry, entries, is_model
from quantplan.artifact.history_store import store_file
from quantplan.artifact.results import Metric
from quantplan.quant.quality import OwnMeasurement, QualityTable, family_of

_STEM = re.compile(r"[-_ ]?\d+(?:x\d+)?(?:\.\d+)?[bm](?![a-z])", re.IGNORECASE)


def own_measurements(model: str, *, table: QualityTable, store: Path | None = None) -> tuple[OwnMeasurement, ...]:
    """The newest measurement of every preset of this model and of its siblings: models of its family, or of one name
    up to the size (`Mistral-7B…`, `Mistral-24B…`). Raises HistoryUnreadable."""
    newest: dict[tuple[str, str, bool], OwnMeasurement] = {}
    for entry in gates(store or store_file()):
        same = is_model(entry, model)
        if not (same or is_sibling(entry.model, model, table)):
            continue
        own = _own(entry, same)
        if own is not None:
            newest[entry.model, own.quant, own.with_imatrix] = own
    return tuple(newest.values())


def gates(store: Path) -> tuple[Entry, ...]:
    """Every gate of the history, oldest first; read once while the file stays as it is, since a look at the catalog
    asks for each model. Raises HistoryUnreadable."""
    try:
        found = store.stat()
    except OSError:
        return ()
    return _gates(store, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=2)
def _gates(store: Path, _size: int, _changed: int) -> tuple[Entry, ...]:
    return tuple(entries(kind="gate", store=store))


def is_sibling(name: str, other: str, table: QualityTable) -> bool:
    """Whether two names are of one family, or the same up to the size."""
    families = family_of(name, table), family_of(other, table)
    if families != (None, None):
        return families[0] == families[1]
    stems = _stem(name), _stem(other)
    return stems[0] is not None and stems[0] == stems[1]


def _stem(name: str) -> str | None:
    base = name.rsplit("/", 1)[-1]
    found = _STEM.search(base)
    return base[: found.start()].casefold() or None if found else None


def _own(entry: Entry, same: bool) -> OwnMeasurement | None:
    artifact, divergence = entry.artifact, _mean([m for m in entry.result.metrics if m.name == "kld_mean"])
    if artifact is None or artifact.n_params is None or divergence is None:
        return None
    ratios = [m.value for m in entry.result.metrics if m.name == "ppl_ratio" and m.value is not None and m.value > 0]
    value, low, high = divergence
    return OwnMeasurement(
        model=entry.model,
        quant=artifact.quant,
        with_imatrix=artifact.with_imatrix,
        n_params=artifact.n_params,
        n_active=artifact.n_active if artifact.n_active != artifact.n_params else None,
        kld_mean=value,
        ppl_ratio=math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None,
        low=low,
        high=high,
        made_at=entry.made_at[:10],
        same_model=same,
    )


def _mean(metrics: Sequence[Metric]) -> tuple[float, float | None, float | None] | None:
    """Mean over the texts, each counting the same, with two standard errors on both sides."""
    values = [m.value for m in metrics if m.value is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    errors = [m.se for m in metrics if m.value is not None and m.se is not None]
    if len(errors) != len(values):
        return mean, None, None
    half = 2 * math.sqrt(sum(se**2 for se in errors)) / len(values)
    return mean, max(0.0, mean - half), mean + half
