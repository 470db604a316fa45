"""What a bench runs: which models, on which devices."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.errors import BadValue
from quantplan.hardware.facts import HostFacts
from quantplan.memory.estimate import HOST
from quantplan.rehearsal.bench import BenchJob, default_models, jobs_for, real_file

USUAL_PRESET = "Q4_K_M"


def plan_bench(
    model: str | None, host: HostFacts, *, quant: str | None = None, devices: Sequence[str] = ()
) -> list[BenchJob]:
    """The named model, or the usual two, on the named devices or all. Raises BadValue, UnknownModel, DoesNotFit."""
    from quantplan.rehearsal.through_converter import read_any_model

    here = (*(gpu.name for gpu in host.gpus), HOST)
    unknown = next((name for name in devices if name not in here), None)
    if unknown is not None:
        raise BadValue(what="device", value=unknown, why=f"is not of this host, which has {', '.join(here)}")
    wanted = tuple(devices) or here
    if model is None:
        jobs = []
        for device in wanted:
            named = [(read_any_model(name), quant or preset) for name, preset in default_models(host, device)]
            jobs += jobs_for(named, host, devices=(device,))
        return jobs
    facts = read_any_model(model)
    file = real_file(facts, model) if quant is None else None
    preset = quant or (None if file is not None else USUAL_PRESET)
    return jobs_for([(facts, preset)], host, devices=wanted, file=file)
