"""The choice of the engine for what was planned."""

from __future__ import annotations

from typing import Any

from quantplan.cli.planning import Planned
from quantplan.memory.drivers import driver_context
from quantplan.planner.plan import reads_host
from quantplan.planner.runtime import Asked, RuntimeChoice, choose


def runtime_choice(planned: Planned, *, asked: str | None, use: str = "general") -> RuntimeChoice:
    """The choice, or the engine that was asked for. Raises RuntimeCannot where that one cannot serve the model here."""
    from quantplan.errors import RuntimeCannot

    setting, host = planned.choice.setting, planned.host
    driver = driver_context(host.gpus[0].product).planned_bytes if host.gpus else 0
    found = choose(Asked(
        facts=planned.facts, nature=planned.nature, gpus=host.gpus, n_ctx=setting.n_ctx,
        n_parallel=setting.n_parallel, whole=not reads_host(setting, planned.facts.n_layer), quant=setting.quant,
        total_per_s=planned.choice.merits.total, driver_bytes=driver, wants_images=use == "vision",
        wants_tools=use in ("tools", "agents"), template_tools=_template_tools(planned.facts),
    ))  # fmt: skip
    if asked is not None and asked != "auto" and not found.of(asked).can:
        others = [option.runtime for option in found.options if option.can]
        raise RuntimeCannot(runtime=asked, model=planned.facts.id, why=found.of(asked).why, others=others)
    return found


def _template_tools(facts: Any) -> bool | None:
    """Whether the chat template speaks of tools; None where it is not at hand."""
    template = facts.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        return "tools" in template
    from quantplan.model import catalog

    entry = catalog.find(facts.id)
    return True if entry is not None and "tools" in entry.uses else None
