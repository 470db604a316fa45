"""llama-server's settings as LLAMA_ARG_* variables: for `docker run --env-file`, EnvironmentFile=, `set -a; . FILE`."""

from __future__ import annotations

import re

from quantplan.errors import CannotExport
from quantplan.llama import server_flags as flags
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented

# common/arg.cpp (0c1e570): flags of the plan that no variable speaks for.
WITHOUT_VARIABLE = ("threads-batch", "cpu-range")
_PLAIN = re.compile(r"[\w@%+=:,./-]*")
KEY_FILE = "/etc/quantplan/{name}.key"


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """One .env file. What no variable speaks for goes into a note with the words for the command line."""
    (told,) = deployments
    target = told.target
    key = target.api_key_file or KEY_FILE.format(name=told.name)
    argv = told.argv((), host=target.host or "127.0.0.1", port=target.port, api_key_file=key)
    settings = flags.from_argv(argv)
    rest = _rest(told, settings)
    lines = [
        f"# llama-server for {told.title}, engine {told.engine.label}: every setting of the plan\n",
        commented(told),
        f"# Start: llama-server {' '.join(rest)}".rstrip() + "\n",
        *(f"{flags.variable_of(name)}={_quoted(name, one.value)}\n" for name, one in settings.items()
          if name not in WITHOUT_VARIABLE),
    ]  # fmt: skip
    return Exported(files=(File(name=f"{told.name}.env", text="".join(lines)),), notes=_notes(told, rest))


def _rest(told: Deployment, settings: dict[str, flags.Told]) -> tuple[str, ...]:
    """The words that have to stay on the command line; as many threads for batches as for tokens need none."""
    needed = [name for name in WITHOUT_VARIABLE if name in settings]
    if told.plan.threads_batch == told.plan.threads:
        needed.remove("threads-batch")
    return tuple(word for name in needed for word in (f"--{name}", settings[name].value))


def _quoted(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if "'" in value or "\n" in value:
        raise CannotExport(target="an environment file", why=f"{name} {value!r} cannot be quoted in one",
                           instead="another format has quotes for it")  # fmt: skip
    return f"'{value}'"


def _notes(told: Deployment, rest: tuple[str, ...]) -> tuple[str, ...]:
    mib = told.memory_max_bytes // 1024**2
    notes = [
        f"variables limit nothing: whoever starts the server has to allow {mib} MiB of memory and {told.cpus} CPU(s)"
    ]
    if rest:
        notes.append(f"no variable speaks for {' '.join(rest)}: start llama-server with these words")
    if any("'" in line for line in (told.alias, *told.plan.override_tensor)) or " " in told.alias:
        notes.append("values in quotes are read so by shells, systemd and Compose; docker run --env-file keeps them")
    return tuple(notes)


def _needs(told: Deployment) -> tuple[Need, ...]:
    return (Need(version=(told.engine.number,), what="a server as it was measured"),) if told.engine.number else ()


EXPORTER = Exporter(target="llama.cpp", write=write, needs=_needs)
