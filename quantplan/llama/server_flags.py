"""What a running llama-server was really told: its command line, its environment and its settings files, in the order
in which the engine lets them win (common/arg.cpp, common_params_parse_ex, build 0c1e570: file, environment, argv).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ENVIRONMENT_PREFIX = "LLAMA_ARG_"
# What else a tool reads without being asked: kernels, devices, threads. llama.process keeps them out of its room.
INFLUENTIAL = ("LLAMA_", "GGML_", "MTMD_", "OMP_", "GOMP_", "KMP_", "SPACEMIT_")
_OURS = ("GGML_NO_BACKTRACE",)  # set by quantplan: an abort would attach gdb


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One setting of llama-server by its long name without dashes. `default` is what the engine does untold."""

    name: str
    words: tuple[str, ...]
    off_words: tuple[str, ...] = ()
    variable: str | None = None
    default: str | None = None


def _flag(name: str, *words: str, off: Sequence[str] = (), variable: str | None = None, default: str | None = None,
          ) -> Flag:  # fmt: skip
    own = variable or ENVIRONMENT_PREFIX + name.upper().replace("-", "_")
    return Flag(name=name, words=(f"--{name}", *words), off_words=tuple(off), variable=own, default=default)


# common/arg.cpp, common_params_parser_init (0c1e570): names, variables and the defaults of common/common.h
PLANNED_FLAGS: tuple[Flag, ...] = (
    _flag("model", "-m"),
    _flag("ctx-size", "-c", default="0"),
    _flag("parallel", "-np", variable="LLAMA_ARG_N_PARALLEL", default="-1"),
    _flag("kv-unified", "-kvu", off=("--no-kv-unified", "-no-kvu")),
    _flag("kv-unified-per-slot"),
    _flag("cache-type-k", "-ctk", default="f16"),
    _flag("cache-type-v", "-ctv", default="f16"),
    _flag("flash-attn", "-fa", default="auto"),
    _flag("batch-size", "-b", variable="LLAMA_ARG_BATCH", default="2048"),
    _flag("ubatch-size", "-ub", variable="LLAMA_ARG_UBATCH", default="512"),
    _flag("n-gpu-layers", "-ngl", "--gpu-layers", default="auto"),
    _flag("threads", "-t", default="-1"),
    _flag("threads-batch", "-tb", default="-1"),
    _flag("cache-ram", "-cram", default="8192"),
    _flag("load-mode", "-lm", default="auto"),
    _flag("fit", "-fit", default="on"),
    _flag("jinja", off=("--no-jinja",), default="on"),
    _flag("context-shift", off=("--no-context-shift",), default="off"),
    _flag("tensor-split", "-ts"),
    _flag("n-cpu-moe", "-ncmoe"),
    _flag("override-tensor", "-ot"),
    _flag("numa"),
    _flag("cpu-range", "-Cr"),
    _flag("mmproj", "-mm"),
    _flag("model-draft", "-md", "--spec-draft-model", variable="LLAMA_ARG_SPEC_DRAFT_MODEL"),
    _flag("spec-type"),
    _flag("device", "-dev"),
    _flag("embedding", "--embeddings", variable="LLAMA_ARG_EMBEDDINGS"),
    _flag("host", default="127.0.0.1"),
)

# What says nothing about the answers, the memory or the speed that were planned.
_HARMLESS = (
    _flag("port"),
    _flag("alias", "-a"),
    _flag("api-key-file"),
    _flag("api-key", variable="LLAMA_API_KEY"),
    _flag("ui", "--webui", off=("--no-ui", "--no-webui")),
    _flag("agent", "-ag", off=("--no-agent", "-no-ag"), default="off"),
    _flag("metrics", variable="LLAMA_ARG_ENDPOINT_METRICS"),
    _flag("slots", off=("--no-slots",), variable="LLAMA_ARG_ENDPOINT_SLOTS"),
    _flag("offline"),
    _flag("cors-origins"),
    _flag("log-colors"),
    _flag("log-verbosity", "-lv", "--verbosity"),
    _flag("log-file"),
    _flag("log-disable"),
    _flag("log-jsonl", off=("--no-log-jsonl",)),
    _flag("log-prefix", off=("--no-log-prefix",)),
    _flag("log-timestamps", off=("--no-log-timestamps",)),
    _flag("verbose", "-v", "--log-verbose"),
    _flag("perf", off=("--no-perf",)),
    _flag("warmup", off=("--no-warmup",)),
    _flag("timeout", "-to"),
    _flag("threads-http"),
    _flag("sse-ping-interval"),
    _flag("ssl-key-file"),
    _flag("ssl-cert-file"),
    _flag("tags"),
)
HARMLESS = frozenset(flag.name for flag in _HARMLESS)
_BY_WORD = {word: (flag, True) for flag in (*PLANNED_FLAGS, *_HARMLESS) for word in flag.words} | {
    word: (flag, False) for flag in (*PLANNED_FLAGS, *_HARMLESS) for word in flag.off_words
}
_BY_VARIABLE = {flag.variable: flag for flag in (*PLANNED_FLAGS, *_HARMLESS)}
DEFAULTS = {flag.name: flag.default for flag in PLANNED_FLAGS if flag.default is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One setting's value and who gave it: `command line`, a variable's name or a file's path."""

    value: str
    source: str


def from_argv(argv: Sequence[str]) -> dict[str, Told]:
    """Settings by long name; the last of equal flags counts, as in the engine. argv[0] may be the program or a flag."""
    found: dict[str, Told] = {}
    words = [word.replace("_", "-") if word.startswith("--") else word for word in argv]
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if not _is_flag(word):
            continue
        flag, positive = _BY_WORD.get(word, (None, True))
        name = flag.name if flag else word.lstrip("-")
        value = "on" if positive else "off"
        if positive and at < len(words) and not _is_flag(words[at]) and not (flag and flag.off_words):
            value, at = argv[at], at + 1
        found[name] = Told(value=value, source="command line")
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)


def from_environment(environ: Mapping[str, str]) -> dict[str, Told]:
    """Settings that LLAMA_ARG_* variables give, by long name (of ours, else the variable's own lower-case word)."""
    found = {}
    for variable, value in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX) or variable == "LLAMA_API_KEY":
            flag = _BY_VARIABLE.get(variable)
            name = flag.name if flag else variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("_", "-")
            if name.startswith("no-") and (positive := _BY_WORD.get(f"--{name[3:]}")):
                name, value = positive[0].name, "off"  # noqa: PLW2901 - LLAMA_ARG_NO_… turns it off, whatever it says
            found[name] = Told(value=value, source=variable)
    return found


def variable_of(name: str) -> str | None:
    """The variable that speaks for a flag by its long name; None for a flag that is not known here."""
    return next((flag.variable for flag in (*PLANNED_FLAGS, *_HARMLESS) if flag.name == name), None)


def from_settings_file(text: str, *, path: str) -> dict[str, Told]:
    """Settings of a config.ini: the lines outside sections, of [*] and of [default] (common/preset.cpp)."""
    found, section = {}, ""
    for raw in text.splitlines():
        line = raw.split(";", 1)[0].strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif "=" in line and not line.startswith("#") and section in ("", "*", "default"):
            key, _, value = (part.strip() for part in line.partition("="))
            name = _BY_VARIABLE[key].name if key in _BY_VARIABLE else key.lstrip("-")
            if name != "version":
                flag = _BY_WORD.get(f"--{name}") or _BY_WORD.get(f"-{name}")
                found[flag[0].name if flag else name] = Told(value=value, source=path)
    return found


def stray_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Variables that change what the engine does beside its command line, in order of their names. LLAMA_ARG_HOST is
    none: the official container images set it, and the command line's host wins."""
    strays = (name for name in environ if name.startswith(INFLUENTIAL) and name not in (*_OURS, "LLAMA_ARG_HOST"))
    return tuple(sorted(strays))


def settings_files(environ: Mapping[str, str], *, home: str | None) -> tuple[str, ...]:
    """Where a process with this environment looks for settings, the weakest first (common/common.cpp)."""
    own = environ.get("XDG_CONFIG_HOME") or (f"{environ.get('HOME') or home}/.config" if home or "HOME" in environ
                                             else "")  # fmt: skip
    return ("/etc/llama.cpp/config.ini", *((f"{own}/llama.cpp/config.ini",) if own else ()))


def merged(*layers: Mapping[str, Told]) -> dict[str, Told]:
    """The settings in effect: later layers win."""
    found: dict[str, Told] = {}
    for layer in layers:
        found |= layer
    return found


def same(planned: str | None, found: str | None) -> bool:
    """Whether two values of a flag mean the same: on/true/1, 11.5,23 and 11.50,23, types in either case."""
    return _plain(planned) == _plain(found)


def _plain(value: str | None) -> object:
    if value is None:
        return None
    words = value.strip().lower()
    if words in ("on", "true", "1", "enabled"):
        return "on"
    if words in ("off", "false", "0", "disabled"):
        return "off"
    try:
        return tuple(float(part) for part in words.split(","))
    except ValueError:
        return words
