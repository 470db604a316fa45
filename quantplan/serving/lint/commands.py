"""What is wrong with a command that builds, converts or serves."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from functools import cache

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.results import Finding
from quantplan.places import data_file
from quantplan.serving.lint.source import Command, Kind, Source
from quantplan.serving.lint.told import error, note, warning

CONVERTER_TYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto")  # convert_hf_to_gguf.py --help, 0c1e570
SERVERS = ("llama-server", "vllm", "uvicorn", "ollama", "gunicorn")
EVERYWHERE = ("0.0.0.0", "::", "[::]", "*")
_BACKENDS = r"GGML_(CUDA|HIP|HIPBLAS|VULKAN|METAL|SYCL|MUSA|CANN|OPENCL|BACKEND_DL|BLAS|RPC|WEBGPU)\b"
_KEYS = ("--api-key", "--api-key-file", "--api_key")
_GONE = {"--mlock": "--load-mode mlock", "--no-mmap": "--load-mode none", "--mmap": "--load-mode mmap",
         "--n-gpu-layers-all": "-ngl 99"}  # fmt: skip


@cache
def _flags() -> tuple[str, dict[str, frozenset[str]]]:
    told = json.loads(data_file("llama_flags.json").read_text(encoding="utf-8"))
    return str(told["build"]), {name: frozenset(flags) for name, flags in told["flags"].items()}


def serves(command: Command) -> bool:
    """Whether it starts something that answers requests."""
    if command.program("pip", "pip3", "apt-get", "apt", "which", "pkill", "killall", "curl", "cp", "cmake", "install"):
        return False
    if command.program("llama-server", "uvicorn", "gunicorn"):
        return True
    if command.program("vllm", "ollama") and "serve" in command.words:
        return True
    return any(word in ("vllm.entrypoints.openai.api_server", "llama_cpp.server") for word in command.words)


def converts(source: Source, _: Plan | None) -> Iterable[Finding]:
    for command in source.commands:
        asked = command.value("--outtype")
        if not asked or "$" in asked or asked.lower() in CONVERTER_TYPES:
            continue
        if any("convert_hf_to_gguf" in word for word in command.words):
            line = _line_in(source, command, r"--outtype")
            told = f"the converter refuses --outtype {asked}: it writes {', '.join(CONVERTER_TYPES)}"
            yield error(source, "converter-outtype", line, told, "convert with --outtype bf16, then llama-quantize")


def builds(source: Source, _: Plan | None) -> Iterable[Finding]:
    about_llama = "llama" in source.lower
    for command in source.commands:
        configures = command.program("cmake") and (
            "-B" in command.words or "-S" in command.words or ".." in command.words
        )
        if not (about_llama and configures) or re.search(_BACKENDS, command.text, re.IGNORECASE):
            continue
        if re.search(r"\bcpu\b|LLAMA_(CUDA|CUBLAS|METAL|VULKAN)", source.text, re.IGNORECASE):
            continue
        yield warning(source, "cpu-only-build", command.line, "this builds llama.cpp for the CPU only",
                      "on a GPU host add -DGGML_CUDA=ON (or -DGGML_VULKAN=ON, -DGGML_HIP=ON); say -DGGML_CUDA=OFF if meant")  # fmt: skip
    for setting in source.settings:
        if setting.name in ("LLAMA_CUDA", "GGML_CUDA", "LLAMA_CUBLAS"):
            told = f"the environment variable {setting.name} does nothing: pip and cmake build for the CPU only"
            yield error(source, "cuda-variable", setting.line, told, "set CMAKE_ARGS=-DGGML_CUDA=on for pip")
    if source.kind is Kind.DOCKERFILE and "cuda" in source.lower and not re.search(r"GGML_CUDA=on", source.text, re.I):
        for command in source.commands:
            if command.program("pip", "pip3") and any("llama-cpp-python" in word for word in command.words):
                yield error(source, "cpu-only-pip", command.line, "pip builds llama-cpp-python for the CPU only here",
                            'CMAKE_ARGS="-DGGML_CUDA=on" pip install llama-cpp-python==VERSION')  # fmt: skip


def binds(source: Source, _: Plan | None) -> Iterable[Finding]:
    """An address that strangers reach, without a key."""
    keyed = any(s.name in ("LLAMA_API_KEY", "LLAMA_ARG_API_KEY", "VLLM_API_KEY") for s in source.settings)
    for command in source.commands:
        if not serves(command):
            continue
        host = command.value("--host", "-H", "--bind", *(("-b",) if command.program("gunicorn") else ()))
        has_key = keyed or command.has(*_KEYS)
        public = (host is not None and host.rsplit(":", 1)[0] in EVERYWHERE) or host in EVERYWHERE
        if public and not has_key:
            line = _line_in(source, command, r"0\.0\.0\.0|::")
            yield error(source, "public-bind-without-key", line, f"it answers everybody on {host} and asks for no key",
                        "--host 127.0.0.1 behind a proxy, or --api-key-file FILE")  # fmt: skip
        elif not has_key and source.kind in (Kind.UNIT, Kind.COMPOSE, Kind.KUBERNETES):
            yield warning(source, "no-key", command.line, "whoever reaches it is served: there is no key",
                          "--api-key-file FILE (a credential of the unit, a secret of the container)")  # fmt: skip
    for setting in source.settings:
        if setting.name == "OLLAMA_HOST" and setting.value.split(":")[0] in EVERYWHERE:
            yield error(source, "public-bind-without-key", setting.line, "Ollama answers everybody and knows no key",
                        "OLLAMA_HOST=127.0.0.1 behind a proxy that checks one")  # fmt: skip


def flags(source: Source, _: Plan | None) -> Iterable[Finding]:
    """Flags that this build of llama-server does not take."""
    build, known = _flags()
    for command in source.commands:
        for name, accepted in known.items():
            if not command.program(name) or not accepted:
                continue
            for word in _own_words(command, name):
                flag = word.partition("=")[0]
                if not re.fullmatch(r"--?[A-Za-z][\w-]*", flag) or flag in accepted or flag == "--sliding-window":
                    continue
                near = _GONE.get(flag) or ", ".join(difflib.get_close_matches(flag, accepted, n=1, cutoff=0.75))
                line = _line_in(source, command, re.escape(flag))
                yield error(source, "unknown-flag", line, f"{name} {build} takes no flag {flag}",
                            f"write {near}" if near else f"{name} --help lists what it takes")  # fmt: skip


def _own_words(command: Command, name: str) -> tuple[str, ...]:
    at = next(i for i, word in enumerate(command.words) if word.rsplit("/", 1)[-1] == name)
    return command.words[at + 1 :]


def caches(source: Source, _: Plan | None) -> Iterable[Finding]:
    for command in source.commands:
        if not command.program("llama-server", "llama-cli", "llama-bench"):
            continue
        type_v = command.value("-ctv", "--cache-type-v")
        flash = command.value("-fa", "--flash-attn")
        if type_v and type_v not in ("f16", "bf16", "f32") and flash in ("off", "0", "false", "disabled"):
            line = _line_in(source, command, r"-ctv|--cache-type-v")
            yield error(source, "quantized-v", line, f"a V cache of {type_v} needs flash attention, which is off",
                        "--flash-attn on, or --cache-type-v f16")  # fmt: skip


def variables(source: Source, _: Plan | None) -> Iterable[Finding]:
    torch = re.search(r"vllm|torch|sglang", source.lower)
    llama = re.search(r"llama[-_.](server|cli|cpp|bench|arg)|llama\.cpp", source.lower)
    for setting in source.settings:
        if setting.name != "OMP_NUM_THREADS":
            continue
        if torch and not llama and source.kind is Kind.ENV:
            yield note(source, "omp-threads", setting.line, "OMP_NUM_THREADS is right for vLLM and torch on a CPU; "
                       "on llama.cpp it has no effect", "for llama.cpp use --threads and --threads-batch")  # fmt: skip
        elif llama:
            yield warning(source, "omp-threads", setting.line, "OMP_NUM_THREADS has no effect on llama.cpp",
                          "use --threads and --threads-batch")  # fmt: skip


def host_setup(source: Source, _: Plan | None) -> Iterable[Finding]:
    if source.kind not in (Kind.SHELL, Kind.SETTINGS, Kind.DOCKERFILE):
        return
    swappiness = re.search(r"swappiness\s*[=\s]\s*(\d+)", "\n".join(source.code))
    swap_file = re.search(r"mkswap|swapon", "\n".join(source.code))
    zram = "zram" in source.lower
    if swappiness and (swap_file or zram):
        low = int(swappiness[1]) < 100
        if zram and low:
            told, fix = "zram wants a swappiness of 100 to 180", "vm.swappiness=150, and no swap file beside it"
        else:
            told = "a low swappiness beside a swap file helps a desktop; a server's weights are file pages anyway"
            fix = "MemorySwapMax=0 on the unit keeps it from being swapped"
        yield warning(source, "swappiness", source.line_of("swappiness"), told, fix)
    if swap_file and (line := source.line_of(r"fallocate\b.*swap")):
        told = "a swap file made by fallocate has holes on a copy-on-write file system, which swapon refuses"
        yield warning(
            source, "fallocate-swap", line, told, "dd if=/dev/zero of=/swapfile, or btrfs filesystem mkswapfile"
        )


def requests(source: Source, _: Plan | None) -> Iterable[Finding]:
    for number, text in enumerate(source.code, start=1):
        if "chat/completions" in text and re.search(r"[\"']prompt[\"']\s*:", text):
            yield error(source, "chat-prompt", number, "the chat endpoint takes messages, not a prompt",
                        '{"messages": [{"role": "user", "content": "…"}]}, or /v1/completions')  # fmt: skip


def workers(source: Source, _: Plan | None) -> Iterable[Finding]:
    for command in source.commands:
        limit = command.value("--limit-concurrency")
        if command.program("uvicorn") and limit and limit.isdecimal() and int(limit) > 1 and source.about_inference:
            line = _line_in(source, command, "--limit-concurrency")
            told = f"{limit} requests at a time reach one global model, where one generation interrupts the other"
            yield warning(source, "concurrency-one-model", line, told, "llama-server has slots: --parallel N")


def against_plan(source: Source, plan: Plan | None) -> Iterable[Finding]:
    """What a llama-server command says otherwise than the plan, or leaves to a default."""
    if plan is None:
        return
    pool = plan.n_ctx_per_slot * plan.n_parallel
    wanted = (
        (("-c", "--ctx-size"), str(pool), "context"), (("-np", "--parallel"), str(plan.n_parallel), "slots"),
        (("-ctk", "--cache-type-k"), plan.type_k, "K cache"), (("-ctv", "--cache-type-v"), plan.type_v, "V cache"),
        (("-ngl", "--n-gpu-layers", "--gpu-layers"), str(plan.n_gpu_layers), "layers on the GPU"),
        (("-t", "--threads"), str(plan.threads), "threads"), (("-ub", "--ubatch-size"), str(plan.n_ubatch), "micro-batch"),
    )  # fmt: skip
    for command in source.commands:
        if not (command.program("llama-server") and serves(command)):
            continue
        for names, value, what in wanted:
            found = command.value(*names)
            if found == value or (found and "$" in found):
                continue
            said = (
                f"the plan has {value}, this says {found}"
                if found
                else f"the plan has {value}, this leaves it to a default"
            )
            line = _line_in(source, command, rf"(?<![\w-])({'|'.join(names)})\b") if found else command.line
            yield error(source, "against-plan", line, f"{what}: {said}", f"{names[-1]} {value}")
        slots = (
            int(command.value("-np", "--parallel") or 0)
            if (command.value("-np", "--parallel") or "").isdecimal()
            else 0
        )
        context = command.value("-c", "--ctx-size") or ""
        if slots > 1 and context.isdecimal() and int(context) < plan.n_ctx_per_slot * slots:
            told = f"{slots} slots of {plan.n_ctx_per_slot:,} tokens need {plan.n_ctx_per_slot * slots:,}, the pool has {int(context):,}"
            yield error(source, "context-over-pool", _line_in(source, command, r"-c\b|--ctx-size"), told,
                        f"--ctx-size {plan.n_ctx_per_slot * slots}")  # fmt: skip


def _line_in(source: Source, command: Command, pattern: str) -> int:
    """The line of the command on which a part of it stands."""
    for number in range(command.line, min(command.line + 40, len(source.code) + 1)):
        if re.search(pattern, source.code[number - 1]):
            return number
    return command.line


RULES = (converts, builds, binds, flags, caches, variables, host_setup, requests, workers, against_plan)
