"""`quantplan fleet export`: the build file as a document of another engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from quantplan.cli.options import emit, json_option, say

_ENGINES = ("github", "argo", "kubernetes")


@click.command("export", epilog="Example: quantplan fleet export github fleet.toml")
@click.argument("engine", type=click.Choice(_ENGINES))
@click.argument("buildfile", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it there.")
@click.option("--image", metavar="IMAGE", help="Container with quantplan and its tools (argo, kubernetes).")
@click.option("--claim", default="quantplan-artifacts", show_default=True, help="The volume claim that all share.")
@click.option("--storage", metavar="SIZE", help="Make that claim too, of this size (500Gi).")
@click.option("--share-cache", is_flag=True, help="Keep downloads and tools on the volume, not in the containers.")
@click.option("--namespace", metavar="NAME", help="Of everything in the cluster.")
@click.option("--token-secret", default="hf-token", show_default=True, help="Secret whose key HF_TOKEN is the hub's.")
@click.option("--package", default="quantplan", show_default=True, help="What pip installs (github).")
@click.option("--runner", default="ubuntu-latest", show_default=True, help="Runner label (github).")
@click.option("--directory", default=".", show_default=True, help="The build file's folder in the repository (github).")
@click.option("--deadline", "deadline_s", type=click.IntRange(60), default=86_400, show_default=True,
              help="Seconds after which a build is given up (argo, kubernetes).")  # fmt: skip
@click.option("--no-check", is_flag=True, help="Do not ask the hub whether the models are there and can be built.")
@json_option
def command(
    engine: str, buildfile: Path, output: Path | None, no_check: bool, as_json: bool, **place: Any
) -> None:  # fmt: skip
    """Write BUILDFILE as a GitHub Actions workflow with a matrix, as an Argo Workflow, or as Kubernetes Jobs.

    Each build is the same commands that `fleet run` starts; in a cluster they share one volume, with its conversions
    and receipts. Every model is checked first, as by `fleet check`, but for this machine's disk and memory.
    """
    from quantplan.artifact.receipt import write_atomically
    from quantplan.pipeline.fleet_file import read_fleet

    if engine != "github" and not place["image"]:
        raise click.UsageError("name the container with --image", click.get_current_context())
    fleet = read_fleet(buildfile)
    memory = {} if no_check else _checked(fleet)
    text, names = _document(fleet, engine, memory, {key: value for key, value in place.items() if value is not None})
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text)
        say(f"{output}: {len(names)} build(s) for {engine}")
    data = {"engine": engine, "builds": names, "file": output, "text": text}
    emit("fleet-export", data, as_json=as_json, text=str(output) if output else text.rstrip("\n"))


def _document(fleet: Any, engine: str, memory: Mapping[str, int], told: dict[str, Any]) -> tuple[str, list[str]]:
    from quantplan import __version__
    from quantplan.pipeline import fleet_export, fleet_github, fleet_kubernetes

    place = fleet_export.Place(**told)
    head = f"Made by quantplan {__version__} from {fleet.path.name}: quantplan fleet export {engine} {fleet.path.name}"
    if engine == "github":
        tasks = fleet_export.tasks_of(fleet, output=fleet_github.OUTPUT, files_at=None, memory=memory)
        documents: tuple[Mapping[str, Any], ...] = (fleet_github.workflow(tasks, place),)
    else:
        at = fleet_kubernetes.FILES_AT
        tasks = fleet_export.tasks_of(fleet, output=fleet_kubernetes.VOLUME_AT, files_at=at, memory=memory)
        make = fleet_kubernetes.argo if engine == "argo" else fleet_kubernetes.jobs
        documents = make(tasks, place)
    return fleet_export.rendered(documents, head=head), [task.name for task in tasks.tasks]


def _checked(fleet: Any) -> dict[str, int]:
    """Planned memory by unit. Raises FleetRefused; what this machine lacks is no refusal: it runs elsewhere."""
    from quantplan import errors
    from quantplan.cli.build_request import preflight
    from quantplan.cli.fleet_plan import options_of
    from quantplan.pipeline.fleet_budget import OWN_MEMORY_BYTES
    from quantplan.pipeline.fleet_order import units_of

    memory, refusals = {}, []
    for unit in units_of(fleet.entries):
        try:
            found = preflight(unit.model, options_of(unit, fleet, None))
        except errors.QuantplanError as error:
            refusals.append((unit.name, error))
            continue
        ours = (errors.NoDiskSpace, errors.DoesNotFit)
        refusals += [(unit.name, error) for error in found.refusals if not isinstance(error, ours)]
        if found.memory:
            memory[unit.name] = max(step.need_bytes for step in found.memory) + OWN_MEMORY_BYTES
    if refusals:
        raise errors.FleetRefused(path=fleet.path, refusals=refusals)
    return memory
