"""`quantplan export FORMAT`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.export_client import command as client
from quantplan.cli.options import emit, json_option, say
from quantplan.serving.export.formats import FORMATS

if TYPE_CHECKING:
    from quantplan.serving.export.deployment import Deployment
    from quantplan.serving.export.exported import Exported
    from quantplan.serving.export.target import Target

_PATH = click.Path(path_type=Path)
_COMMON = (
    click.argument("artifacts", nargs=-1, type=_PATH, metavar="[ARTIFACT|MODEL]"),
    click.option("--plan", "plan_file", type=_PATH, help="Another plan than the artifact's own."),
    click.option("--model", type=_PATH, help="The model file, where a plan is given that does not lie beside it."),
    click.option("--output", type=_PATH, help="Write the files to this folder (default: print a single one)."),
    click.option("--name", help="Name of the service (default: model and preset)."),
    click.option("--host", help="The address to be reached at (default: this machine only)."),
    click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True),
    click.option("--public", is_flag=True, help="Allow an address that other machines can reach."),
    click.option("--api-key-file", help="Where the file of API keys lies on the target."),
    click.option("--target-version", help="The target's version: refused where it is too old for what is written."),
    click.option("--allow-unvalidated", is_flag=True, help="Export without a passing gate result; the files say so."),
    json_option,
)
# By name, so that a format names what it takes.
_OPTIONS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "image": (click.option("--image", help="Image of llama-server with its digest: NAME@sha256:…"),),
    "folder": (click.option("--folder", type=_PATH, help="Folder of the model on the target (default: as here)."),),
    "load": (click.option("--load-timeout", "load_s", type=click.IntRange(1, 86400), default=600, show_default=True,
                          help="Seconds that the model may load."),),
    "drain": (click.option("--drain", "drain_s", type=click.IntRange(0, 3600), default=30, show_default=True,
                           help="Seconds that running requests have when it is told to end."),),
    "cuda-arch": (click.option("--cuda-arch", "cuda_architectures", metavar="LIST",
                               help="CUDA architectures to build for, as CMake is told: 89 or 80;90."),),
    "queue": (click.option("--queue", "n_queue", type=click.IntRange(0, 10000),
                           help="Requests that may wait beside those in slots (default: as many as slots)."),),
    "keys": (click.option("--keys", "n_keys", type=click.IntRange(1), default=1, show_default=True,
                          help="Keys in use: of several, none may take all places."),),
    "nodes": (click.option("--nodes", "n_nodes", type=click.IntRange(1, 1000), default=1, show_default=True,
                           help="Machines that serve one model together."),),
    "nvlink": (click.option("--nvlink/--no-nvlink", default=None,
                            help="Whether the cards of a node are linked (default: taken for granted, and said)."),),
    "server-name": (click.option("--server-name", help="The name that clients reach it by."),),
    "program": (
        click.option("--llama", type=_PATH, help="Folder of the llama.cpp tools that it is to start."),
        click.option("--program", help="llama-server on the target, where that is another machine."),
    ),
}  # fmt: skip


@click.group("export", epilog="Example: quantplan export systemd artifacts/quantplan-tiny-Q4_K_M --output deploy/")
def command() -> None:
    """Take a plan to the launcher that you use: complete, hardened, every value explicit.

    Refused when a file does not match its receipt and when the newest gate result is not a pass. What a format has no
    word for is said, with what happens instead.
    """


def _run(name: str, given: dict[str, Any]) -> None:
    """One export: checked, made, and written or printed."""
    from quantplan.serving.export.formats import export
    from quantplan.serving.export.write import write_files

    target, deployments = _deployments(name, given)
    made = export(name, deployments, version=given["target_version"])
    folder = given["output"]
    if folder is not None:
        written = write_files(folder, made.files)
        text = "\n".join(map(str, written))
    else:
        text = _printed(name, made, as_json=given["as_json"])
    data = {"format": name, "files": made.files, "notes": made.notes, "output": folder, "port": target.port,
            "deployments": [deployment.marks for deployment in deployments]}  # fmt: skip
    for note in made.notes if not given["as_json"] else ():
        say(f"Note: {note}")
    emit("export", data, as_json=given["as_json"], text=text)


def _printed(name: str, made: Exported, *, as_json: bool) -> str:
    """The single file; several would not be told apart on one output. Raises SeveralFiles."""
    from quantplan.errors import SeveralFiles

    if len(made.files) > 1 and not as_json:
        raise SeveralFiles(target=name, names=[file.name for file in made.files])
    return made.files[0].text.removesuffix("\n")


def _deployments(name: str, given: dict[str, Any]) -> tuple[Target, tuple[Deployment, ...]]:
    from quantplan.errors import BadValue
    from quantplan.serving.bind import check_bind

    plan_file, paths = given["plan_file"], given["artifacts"]
    if not paths and plan_file is None:
        raise BadValue(what="artifact", value=None, why="is missing: name its folder, or a plan")
    if given["host"] is not None:
        check_bind(given["host"], public=given["public"], has_key=True)
    sources = paths or (plan_file,)
    if len(sources) > 1 and plan_file is not None:
        raise BadValue(what="plan", value=str(plan_file), why="goes with one artifact, several were given")
    target = None
    made = []
    for source in sources:
        served, used = _served(source, given)
        target = target or _target(given, served)
        made.append(_admitted(served, used, target, given))
    assert target is not None
    return target, tuple(made)


def _served(source: Path, given: dict[str, Any]) -> tuple[Any, Path]:
    """What is to be served, and the plan file in use. A bare GGUF takes the plan that is given."""
    from quantplan.artifact.receipt import NAME
    from quantplan.artifact.store import artifact_folder
    from quantplan.errors import BadValue
    from quantplan.serving.source import find_served, is_plan

    plan_file: Path | None = given["plan_file"]
    if plan_file is not None and source.suffix == ".gguf" and not (source.parent / NAME).is_file():
        return find_served(plan_file, model=source), plan_file
    if is_plan(source):
        return find_served(source, model=given["model"]), source
    used = plan_file or artifact_folder(source) / "plan.json"
    if not used.is_file():
        raise BadValue(what="plan", value=str(used), why="is not there: name one for this artifact")
    return find_served(source, plan_file=used, model=given["model"]), used


def _admitted(served: Any, plan_file: Path, target: Target, given: dict[str, Any]) -> Deployment:
    from quantplan.serving.export.deployment import deployment_of
    from quantplan.serving.source import admit

    say(f"checking {served.model.name} against its receipt")
    admit(served, allow_unvalidated=given["allow_unvalidated"], say=say)
    return deployment_of(served, plan_file=plan_file, target=target)


def _target(given: dict[str, Any], served: Any) -> Target:
    """What the command line says of the place; the programs of this machine where it names no others."""
    from dataclasses import fields

    from quantplan.cli.export_programs import checker, program_for
    from quantplan.serving.export.target import Target

    known = {field.name for field in fields(Target)}
    said = {key: value for key, value in given.items() if key in known and value is not None and key != "program"}
    if "program" in given:
        said["program"] = program_for(served.plan, program=given["program"], llama=given["llama"])
        said["quantplan"], said["checker"] = checker()
    if "cuda_architectures" in given and given["cuda_architectures"] is None:
        from quantplan.cli.export_programs import cuda_architectures

        said["cuda_architectures"] = cuda_architectures(served.plan)
    return Target(**said)


def _subcommand(name: str) -> click.Command:
    def run(**given: Any) -> None:
        _run(name, given)

    told = FORMATS[name].help
    run.__doc__ = f"{told if told.startswith('llama') else told[0].upper() + told[1:]}."
    own = [option for word in FORMATS[name].options for option in _OPTIONS[word]]
    function: Any = run
    for option in reversed((*_COMMON[:-1], *own, _COMMON[-1])):
        function = option(function)
    made: click.Command = click.command(
        name, epilog=f"Example: quantplan export {name} artifacts/quantplan-tiny-Q4_K_M --output deploy/"
    )(function)
    return made


for _name in FORMATS:
    command.add_command(_subcommand(_name))
command.add_command(client)
