"""llama-server as a router of one or several models: its preset file, and the command that starts it."""

from __future__ import annotations

from pathlib import Path

from quantplan.errors import BadValue, CannotExport
from quantplan.llama.router import preset_text, router
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented
from quantplan.serving.export.shell import HEAD, command
from quantplan.serving.export.together import any_so_many, check_names, sets_that_fit

KEY_FILE = "/etc/quantplan/router.key"
_PRESET = "models.ini"


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """models.ini and router.sh. Raises CannotExport for words that the file cannot hold, DoesNotFit."""
    check_names(deployments, "llama-server's router")
    together = sets_that_fit(deployments, "llama-server's router")
    n_max = any_so_many(together, len(deployments))
    try:
        text = preset_text(
            {told.alias: told.argv((), host="127.0.0.1", port=told.target.port) for told in deployments},
            load_on_startup=n_max == len(deployments),
        )
    except BadValue as error:
        raise CannotExport(target="llama-server's router", why=str(error)) from error
    marks = "".join(f"# {told.title}\n{commented(told)}" for told in deployments)
    files = (
        File(name=_PRESET, text=f"{marks}{text}"),
        File(name="router.sh", text=_script(deployments[0], marks, n_max), mode=0o755),
    )
    return Exported(files=files, notes=_notes(deployments, together, n_max))


def _script(told: Deployment, marks: str, n_max: int) -> str:
    """What finds the file beside itself."""
    target = told.target
    argv = router(target.program, Path("PRESET"), host=target.host or "127.0.0.1", port=target.port,
                  n_models_max=n_max, api_key_file=Path(target.api_key_file or KEY_FILE))  # fmt: skip
    lines = command(argv).replace(" PRESET", f' "$(dirname "$0")/{_PRESET}"')
    return f"{HEAD}{marks}\n{lines}\n"


def _notes(deployments: tuple[Deployment, ...], together: tuple[tuple[int, ...], ...], n_max: int) -> tuple[str, ...]:
    first = deployments[0]
    limits = sorted((told.memory_max_bytes for told in deployments), reverse=True)
    notes = [
        f"the router limits no memory: whoever starts it has to allow {sum(limits[:n_max]) // 1024**2} MiB",
        "the router has no limit of waiting requests: put nginx, Traefik or quantplan's gateway before it",
        f"the keys lie in {first.target.api_key_file or KEY_FILE}: make that file, mode 0600, before the first start",
    ]
    if len(deployments) > 1:
        notes.append(f"the router counts models, not bytes: at most {n_max} of {len(deployments)} at once, so that any "
                     "of them fit; the longest unused goes first")  # fmt: skip
    most = max(len(one) for one in together)
    if most > n_max:
        notes.append(
            f"up to {most} of them would fit where they are the smaller ones: quantplan's gateway counts bytes"
        )
    return tuple(notes)


def _needs(told: Deployment) -> tuple[Need, ...]:
    return (Need(version=(told.engine.number,), what="a server as it was measured"),) if told.engine.number else ()


EXPORTER = Exporter(target="llama.cpp", write=write, needs=_needs, many=True)
