"""`quantplan toolchain status|install`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantplan.cli.options import emit, json_option, say


@click.group("toolchain", epilog="Example: quantplan toolchain install")
def command() -> None:
    """Find or build the llama.cpp tools, and test that they work on this host."""


@command.command("status", epilog="Example: quantplan toolchain status --self-test")
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of the tools, before any other place.")
@click.option("--self-test", "test", is_flag=True, help="Quantize and run a tiny model of each preset now.")
@json_option
def status(llama: Path | None, test: bool, as_json: bool) -> int:
    """Which llama.cpp would be used, which build it is, and whether it works here."""
    from quantplan.llama import process, self_test
    from quantplan.llama.toolchain import find_toolchain

    tools = find_toolchain(explicit=llama)
    result = self_test.self_test(tools.programs) if test else self_test.self_tested(tools)
    data = _described(tools, result)
    emit(
        "toolchain-status", data, as_json=as_json, text=_text(data), engine=tools.engine(), ok=result.ok,
        warnings=process.unmaskable_settings(),
    )  # fmt: skip
    return 0 if result.ok else 4


@command.command("install", epilog="Example: quantplan toolchain install --converter --bindings")
@click.option("--backend", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--sdist", type=click.Path(path_type=Path), help="The pinned source archive, where there is no network.")
@click.option("--converter", is_flag=True, help="Also torch and transformers, which convert_hf_to_gguf.py needs.")
@click.option("--bindings", is_flag=True, help="Also llama-cpp-python, on the same build: nothing compiles twice.")
@click.option("--force", is_flag=True, help="Build again even if the finished build is there.")
@json_option
def install(backend: str, sdist: Path | None, converter: bool, bindings: bool, force: bool, as_json: bool) -> None:
    """Build the pinned llama.cpp into your cache (5 min on 2 cores), self-test it, and remember it."""
    from quantplan.llama import binding, fetch, self_test
    from quantplan.llama import install as build
    from quantplan.llama.process import run_tool

    request = build.decide_backend(backend, sdist=sdist, say=say)
    tools = build.install(request, say=say, force=force)
    if converter:
        fetch.install_converter(say=say, run=run_tool)
    if bindings:
        binding.install_bindings(sdist, say=say, run=run_tool)
    data = _described(tools, self_test.self_tested(tools))
    emit("toolchain-install", data, as_json=as_json, text=_text(data), engine=tools.engine())


def _described(tools: Any, result: Any) -> dict[str, object]:
    import importlib.util

    from quantplan.llama import fetch
    from quantplan.llama.toolchain import converter_script

    return {
        "origin": tools.origin,
        "folder": tools.folder,
        "build": tools.build,
        "label": tools.build.label,
        "backend": tools.backend,
        "tools": sorted(tools.programs),
        "missing": tools.missing,
        "converter": converter_script(tools),
        "converter_missing": fetch.missing_converter_modules(),
        "bindings": importlib.util.find_spec("llama_cpp") is not None,
        "self_test": result,
        "notes": tools.notes,
    }


def _text(data: dict[str, Any]) -> str:
    lacking = ", ".join(data["converter_missing"])
    test = data["self_test"]
    lines = [
        f"llama.cpp   {data['label']} ({data['backend']}), {data['origin'].value}: {data['folder']}",
        f"tools       {len(data['tools'])} found" + (f", missing {', '.join(data['missing'])}" * bool(data["missing"])),
        f"self-test   {'passed' if test.ok else 'FAILED: ' + '; '.join(test.failures)}",
        f"converter   {data['converter'] or 'not installed'}" + (f" (Python lacks {lacking})" if lacking else ""),
        f"bindings    {'llama-cpp-python installed' if data['bindings'] else 'not installed'}",
    ]
    return "\n".join(lines + [f"note        {note}" for note in data["notes"] if not note.startswith("cpu ")])
