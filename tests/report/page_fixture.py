"""A page and the document of the same run, from the command line's own functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from quantplan.cli.plan_options import plan_options, request_from
from quantplan.cli.planning import Planned, recommend
from quantplan.cli.recommend_page import base_command, planned_grid
from quantplan.cli.recommendation import recommendation
from quantplan.hardware.host import host_for
from quantplan.model.read import read_model
from quantplan.report.document import to_plain
from quantplan.report.page import Subject, write_page

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A written page, and what it was made of."""

    file: Path
    subject: Subject
    planned: Planned

    @property
    def address(self) -> str:
        return self.file.as_uri()


def options(*words: str) -> dict[str, Any]:
    """The plan options of a command line, with their defaults."""
    command = plan_options(click.command()(lambda **_: None))
    return dict(command.make_context("recommend", list(words)).params)


def planned_for(model: str, machine: str | None, *words: str, name: str | None = None) -> Planned:
    """The plan of a model on a machine; under another name if one is given."""
    asked = options(*words)
    for beside in ("draft", "mmproj", "margins"):
        asked.pop(beside)
    facts = read_model(model)
    return recommend(replace(facts, id=name) if name else facts, host_for(machine), request_from(**asked))


def make_page(file: Path, model: str, machine: str | None, *words: str, name: str | None = None) -> Page:
    """The page of a plan."""
    planned = planned_for(model, machine, *words, name=name)
    _, data = recommendation(planned)
    base = base_command({**options(*words), "model": name or model, "machine": machine})
    subject = Subject(answer=to_plain(data), grid=planned_grid(planned), base=base, warnings=planned.host.warnings)
    write_page(file, subject)
    return Page(file=file, subject=subject, planned=planned)
