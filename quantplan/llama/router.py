"""llama-server as a router of several models: its command line and its preset file, as values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantplan.errors import BadValue
from quantplan.llama.commands import Program, ServerSettings, server

# What the router sets for its children itself (tools/server/server-models.cpp, b11312).
_ROUTERS_OWN = frozenset({"host", "port", "alias", "api-key-file"})
_NOT_IN_A_VALUE = ";#\r\n"  # common/preset.cpp: they begin a comment or end the line


def preset_file(settings: Mapping[str, ServerSettings], *, unified_per_slot: bool) -> str:
    """The .ini: one section a model, every flag of its plan written. Raises BadValue for what the format cannot say."""
    return preset_text({
        name: server((), told, unified_per_slot=unified_per_slot) for name, told in settings.items()
    })  # fmt: skip


def preset_text(commands: Mapping[str, tuple[str, ...]], *, load_on_startup: bool = False) -> str:
    """The .ini of servers' flags, by the name of the model. Raises BadValue for what the format cannot say."""
    lines = ["version = 1"]
    for name, argv in commands.items():
        if not name or name == "*" or any(sign in name for sign in "[]" + _NOT_IN_A_VALUE):
            raise BadValue(what="model name", value=name, why="cannot be a section of llama-server's preset file")
        lines += ["", f"[{name}]", f"load-on-startup = {str(load_on_startup).lower()}", *_keys(argv)]
    return "\n".join(lines) + "\n"


def _keys(argv: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    index = 0
    while index < len(argv):
        flag = argv[index].removeprefix("--")
        has_value = index + 1 < len(argv) and not argv[index + 1].startswith("--")
        value = argv[index + 1] if has_value else "true"
        if any(sign in value for sign in _NOT_IN_A_VALUE):
            raise BadValue(what=flag, value=value, why="cannot be written in llama-server's preset file")
        if flag not in _ROUTERS_OWN:
            found.append(f"{flag} = {value}")
        index += 2 if has_value else 1
    return found


def router(
    program: Program, preset: Path, *, host: str, port: int, n_models_max: int, api_key_file: Path | None
) -> tuple[str, ...]:
    """llama-server without a model: it starts one server a model, when it is told to."""
    key = ("--api-key-file", str(api_key_file)) if api_key_file else ()
    return (
        *program,
        "--models-preset", str(preset),
        "--models-max", str(n_models_max),
        "--models-autoload",
        "--host", host,
        "--port", str(port),
        "--no-ui",
        "--no-agent",
        "--offline",
        "--cors-origins", "localhost",
        "--log-colors", "off",
        "--log-verbosity", "3",
        *key,
    )  # fmt: skip
