"""llama-cpp-python on the very build that the tools are: installed without compiling, loaded from its libraries."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from quantplan.errors import ToolMissing
from quantplan.llama import fetch, toolchain
from quantplan.llama.fetch import Say
from quantplan.llama.process import Runner
from quantplan.llama.types import Toolchain

LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"  # llama_cpp/llama_cpp.py reads it at import, and wants libmtmd there too


def install_bindings(sdist: Path | None, *, say: Say, run: Runner) -> None:
    """Installs llama-cpp-python into this Python's environment; LLAMA_BUILD=OFF compiles nothing (7 s)."""
    source = fetch.fetch_sdist(sdist, say=say, run=run)
    say(f"installing {toolchain.SDIST_NAME} {toolchain.SDIST_VERSION} on the build of the tools (nothing compiles)")
    run(
        (*fetch.pip_install_command(), "--quiet", str(source)),
        step="install llama-cpp-python", extra_env={"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
    )  # fmt: skip


def load_bindings(tools: Toolchain) -> ModuleType:
    """The llama_cpp module on the toolchain's libraries. Raises ToolMissing without the package or libraries."""
    if tools.library_folder is None:
        raise ToolMissing(tool="llama-cpp-python", why=f"needs libllama, which {tools.folder} does not have")
    if importlib.util.find_spec("llama_cpp") is None:
        raise ToolMissing(tool="llama-cpp-python", why="is not installed")
    os.environ[LIBRARY_VARIABLE] = str(tools.library_folder)
    return importlib.import_module("llama_cpp")
