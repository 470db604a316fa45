"""What a running server was told, from its three sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantplan.llama import server_flags as flags
from quantplan.llama.process import run_tool
from quantplan.llama.types import Toolchain


def values(told: dict[str, flags.Told]) -> dict[str, str]:
    return {name: one.value for name, one in told.items()}


def test_short_and_long_words_are_one_setting() -> None:
    told = flags.from_argv(("-c", "4096", "-np", "2", "-nkvu", "-ctk", "q8_0", "--n_gpu_layers", "99", "-fa", "on"))
    assert values(told) == {"ctx-size": "4096", "parallel": "2", "nkvu": "on", "cache-type-k": "q8_0",
                            "n-gpu-layers": "99", "flash-attn": "on"}  # fmt: skip
    assert values(flags.from_argv(("--no-kv-unified", "--jinja", "--kv-unified"))) == {
        "kv-unified": "on",
        "jinja": "on",
    }
    assert values(flags.from_argv(("-no-kvu", "--threads", "-1"))) == {"kv-unified": "off", "threads": "-1"}


def test_unknown_flags_keep_their_value() -> None:
    told = flags.from_argv(("--rope-freq-scale", "0.5", "--lora", "a.gguf", "--swa-full", "--port", "1"))
    assert values(told) == {"rope-freq-scale": "0.5", "lora": "a.gguf", "swa-full": "on", "port": "1"}


def test_variables() -> None:
    told = flags.from_environment({"LLAMA_ARG_CTX_SIZE": "512", "LLAMA_ARG_NO_JINJA": "1", "LLAMA_ARG_TEMPERATURE": "0",
                                   "HOME": "/"})  # fmt: skip
    assert values(told) == {"ctx-size": "512", "jinja": "off", "temperature": "0"}
    assert told["ctx-size"].source == "LLAMA_ARG_CTX_SIZE"


def test_a_settings_file() -> None:
    text = "version = 1\nctx-size = 512 ; small\n[*]\nLLAMA_ARG_N_PARALLEL = 3\n[other]\nthreads = 1\n# t = 1\n"
    told = flags.from_settings_file(text, path="/x/config.ini")
    assert values(told) == {"ctx-size": "512", "parallel": "3"}


def test_the_command_line_wins_over_variables_and_these_over_files() -> None:
    file = {"threads": flags.Told(value="1", source="f"), "numa": flags.Told(value="distribute", source="f")}
    told = flags.merged(file, flags.from_environment({"LLAMA_ARG_THREADS": "2"}), flags.from_argv(("-t", "3")))
    assert values(told) == {"threads": "3", "numa": "distribute"}


def test_strays() -> None:
    environ = {"OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1", "LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_ARG_X": "1"}
    assert flags.stray_variables(environ) == ("LLAMA_ARG_X", "OMP_NUM_THREADS")


def test_where_settings_files_lie() -> None:
    system = "/etc/llama.cpp/config.ini"
    assert flags.settings_files({"XDG_CONFIG_HOME": "/a"}, home=None) == (system, "/a/llama.cpp/config.ini")
    assert flags.settings_files({"HOME": "/h"}, home=None) == (system, "/h/.config/llama.cpp/config.ini")
    assert flags.settings_files({}, home=None) == (system,)


@pytest.mark.parametrize(("one", "other", "equal"), [
    ("on", "1", True), ("ON", "true", True), ("11.5,23", "11.50,23.0", True), ("F16", "f16", True), (None, None, True),
    ("512", "256", False), (None, "512", False), ("auto", "on", False),
])  # fmt: skip
def test_values_that_mean_the_same(one: str | None, other: str | None, equal: bool) -> None:
    assert flags.same(one, other) is equal


@pytest.mark.tools
def test_the_engine_knows_every_word_and_variable(toolchain: Toolchain, tmp_path: Path) -> None:
    """Names, variables and defaults as the pinned build's own help has them."""
    told = run_tool((*toolchain.programs["llama-server"], "--help"), step="help", check=False)
    text = "\n".join((*told.stdout, *told.stderr))
    words = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))
    variables = set(re.findall(r"\(env: (\w+)\)", text))
    without_variable = {"cpu-range", "threads-batch"}
    for flag in flags.PLANNED_FLAGS:
        assert set(flag.words) | set(flag.off_words) <= words, flag
        if flag.name not in without_variable:
            assert flag.variable in variables, flag
    for name, default in (("batch-size", "2048"), ("ubatch-size", "512"), ("cache-ram", "8192"), ("load-mode", "auto")):
        assert flags.DEFAULTS[name] == default
        entry = text[text.index(f"--{name} ") :]
        assert re.search(rf"\(default:\s+'?{default}'?", entry[:900]), name
