"""llama-swap: models that are started when they are asked for, as many at once as fit together."""

from __future__ import annotations

import re
import shlex
from typing import Any

from quantplan.errors import CannotExport
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented
from quantplan.serving.export.together import check_names, sets_that_fit
from quantplan.serving.export.yaml_text import yaml_text

KEY_VARIABLE = "QUANTPLAN_API_KEY"
_PORT = "${PORT}"
_LEAST_S = 15  # of healthCheckTimeout, by its schema
_NAME_LENGTH = 128
_FIRST_PORT = 5800


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """llama-swap.yaml. Raises CannotExport for words that are macros there, DoesNotFit."""
    check_names(deployments, "llama-swap")
    first = deployments[0]
    told: dict[str, Any] = {
        "healthCheckTimeout": max(_LEAST_S, *(told.target.load_s for told in deployments)),
        "unloadTimeout": first.target.drain_s,
        "startPort": _FIRST_PORT,
        "logLevel": "info",
        "captureBuffer": 0,  # prompts and answers are not kept
        "apiKeys": [f"${{env.{KEY_VARIABLE}}}"],
        "models": {one.alias: _model(one) for one in deployments},
    }
    together = sets_that_fit(deployments, "llama-swap")
    if len(deployments) > 1:
        told["matrix"] = _matrix(deployments, together)
    marks = "".join(f"# {one.title}\n{commented(one)}" for one in deployments)
    listen = f"{first.target.host or '127.0.0.1'}:{first.target.port}"
    start = f"# Start: llama-swap -config llama-swap.yaml -listen {listen}\n"
    file = File(name="llama-swap.yaml", text=f"{marks}{start}{yaml_text(told)}")
    return Exported(files=(file,), notes=_notes(deployments, together, listen))


def _model(told: Deployment) -> dict[str, Any]:
    """It listens on a port that llama-swap gives it; its keys are llama-swap's, which takes them from the request."""
    return {
        "name": f"{told.alias} {told.plan.quant}"[:_NAME_LENGTH],
        "macros": {"models": _plain(str(told.on_target))},
        "cmd": _command(told),
        "env": ["XDG_CONFIG_HOME=/nonexistent", "GGML_NO_BACKTRACE=1"],
        "proxy": f"http://127.0.0.1:{_PORT}",
        "checkEndpoint": "/health",
        "ttl": 0,
        "concurrencyLimit": told.plan.n_parallel + told.n_queue,
        "metadata": told.marks,
    }


def _command(told: Deployment) -> str:
    """A flag a line. The model's folder is a macro: another one is written once."""
    words = told.argv(told.target.program, host="127.0.0.1", port=told.target.port)
    lines: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        quoted = _PORT if before == "--port" else _quoted(word, str(told.on_target))
        if not lines or re.match(r"--\w", word):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return "\n".join(lines) + "\n"


def _quoted(word: str, folder: str) -> str:
    """For llama-swap's shlex; a macro's value is put in as it is, so only a folder without quotes can be one."""
    _plain(word)
    if word.startswith(f"{folder}/") and shlex.quote(folder) == folder:
        return "${models}" + shlex.quote(word[len(folder) :])
    return shlex.quote(word)


def _plain(word: str) -> str:
    """Raises CannotExport: llama-swap would put something in its place."""
    if "${" in word or "\n" in word:
        raise CannotExport(target="llama-swap", why=f"{word!r} reads as one of its macros",
                           instead="rename the file or folder")  # fmt: skip
    return word


def _matrix(deployments: tuple[Deployment, ...], together: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """What may run at the same time. To lose a model costs as much as there is to load again."""
    sizes = [sum(file.bytes for file in told.files) for told in deployments]
    return {
        "vars": {f"m{index}": told.alias for index, told in enumerate(deployments)},
        "evict_costs": {f"m{index}": max(1, round(size / min(sizes))) for index, size in enumerate(sizes)},
        "sets": {f"s{number}": " & ".join(f"m{index}" for index in one) for number, one in enumerate(together)},
    }


def _notes(deployments: tuple[Deployment, ...], together: tuple[tuple[int, ...], ...], listen: str) -> tuple[str, ...]:
    most = max(sum(deployments[index].memory_max_bytes for index in one) for one in together)
    return (
        f"llama-swap limits no memory and no CPUs: whoever starts it has to allow {most // 1024**2} MiB",
        f"llama-swap takes its key from the variable {KEY_VARIABLE} and does not start without it; the servers behind "
        "it listen on 127.0.0.1 and ask for none",
        f"the address is llama-swap's own flag: -listen {listen}",
        "every flag of the server is written: no LLAMA_ARG_ variable of llama-swap's environment speaks for one",
    )


def _needs(_: Deployment) -> tuple[Need, ...]:
    # the first release whose keys we know (2026-05-26); `matrix` and `apiKeys` came some releases before it
    return (Need(version=(219,), what="matrix"),)


EXPORTER = Exporter(target="llama-swap", write=write, needs=_needs, many=True)
