"""An image of llama-server at the artifact's commit; the model stays outside, and its hash is checked at each start."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

from quantplan.errors import CannotExport
from quantplan.llama.toolchain import COMMIT
from quantplan.serving.export.deployment import MODELS, Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented

USER = 10001
PROGRAM = "/app/llama-server"
KEY_FILE = "/run/secrets/api-key"
_SOURCE = "https://github.com/ggml-org/llama.cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What an engine of a backend is built and run on: images, Debian packages, CMake's options."""

    build: str
    run: str
    build_packages: str = "g++-14 gcc-14 make"
    run_packages: str = ""
    compilers: str = "ENV CC=gcc-14 CXX=g++-14 CUDAHOSTCXX=g++-14\n"
    options: tuple[str, ...]


# As the engine's own .devops/{cpu,cuda,vulkan}.Dockerfile have them (0c1e570).
_BASES = {
    "cpu": _Base(build="docker.io/library/ubuntu:24.04", run="docker.io/library/ubuntu:24.04",
                 options=("-DGGML_CUDA=OFF",)),
    "cuda": _Base(build="docker.io/nvidia/cuda:12.8.1-devel-ubuntu24.04",
                  run="docker.io/nvidia/cuda:12.8.1-runtime-ubuntu24.04",
                  options=("-DGGML_CUDA=ON", "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined")),
    "vulkan": _Base(build="docker.io/library/ubuntu:26.04", run="docker.io/library/ubuntu:26.04",
                    build_packages="build-essential glslc libvulkan-dev spirv-headers",
                    run_packages=" libvulkan1 mesa-vulkan-drivers", compilers="", options=("-DGGML_VULKAN=ON",)),
}  # fmt: skip


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """One Dockerfile. Raises CannotExport for backends without a base image here."""
    (told,) = deployments
    argv = told.argv((PROGRAM,), host="0.0.0.0", port=told.target.port, folder=MODELS,
                     api_key_file=told.target.api_key_file or KEY_FILE, renumbered=True)  # fmt: skip
    return Exported(files=(File(name="Dockerfile", text=f"{engine_image(told)}{_model_part(told, argv)}"),),
                    notes=(*_notes(told), *engine_notes(told)))  # fmt: skip


def engine_image(told: Deployment) -> str:
    """The stages that build and hold the engine; what is served is for whoever uses them."""
    backend = _backend(told)
    base = _BASES[backend]
    options = " \\\n      ".join(shlex.quote(option) for option in _options(told, backend))
    return f"""\
# llama-server {told.engine.label} for {backend}: {told.title}
ARG BUILD_BASE={base.build}
ARG RUN_BASE={base.run}

FROM ${{BUILD_BASE}} AS build
RUN apt-get update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \\
      ca-certificates cmake git libgomp1 {base.build_packages}
{base.compilers}WORKDIR /src
RUN {_fetch(told.engine.commit)}
RUN cmake -S . -B build \\
      {options} \\
 && cmake --build build --parallel "$(nproc)" --target llama-server \\
 && mkdir /app && cp build/bin/llama-server /app/ && find build -name '*.so*' -exec cp --no-dereference {{}} /app/ \\;

FROM ${{RUN_BASE}} AS server
RUN apt-get update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \\
      ca-certificates curl libgomp1{base.run_packages} \\
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /app/ /app/
ENV XDG_CONFIG_HOME=/nonexistent GGML_NO_BACKTRACE=1 LC_ALL=C.UTF-8
WORKDIR /app
USER {USER}:{USER}
"""


def checksums(told: Deployment, *, apart: bool = True) -> str:
    """What `sha256sum --check` reads: every file that the engine opens, where the container has it."""
    return "".join(f"{file.sha256}  {told.where(file, MODELS, apart=apart)}\n" for file in told.files)


def engine_notes(told: Deployment) -> tuple[str, ...]:
    """What a build of the engine leaves to others."""
    notes = ["the base images are named by tag: to pin them, --build-arg BUILD_BASE=…@sha256:… and RUN_BASE=…@sha256:…"]
    if _backend(told) == "cuda" and told.target.cuda_architectures is None:
        notes.append("no CUDA architecture was named: the engine is built for all that it supports, which takes longer")
    return tuple(notes)


def _backend(told: Deployment) -> str:
    backend = told.gpu.backend if told.gpu else "cpu"
    if backend not in _BASES:
        raise CannotExport(target="Docker", why=f"no base image is known here for {backend}",
                           instead="name an image of your own")  # fmt: skip
    return backend


def _options(told: Deployment, backend: str) -> tuple[str, ...]:
    """Kernels for every CPU of the architecture, chosen when it starts: who runs an image is not who built it."""
    architectures = told.target.cuda_architectures
    number = (f"-DLLAMA_BUILD_NUMBER={told.engine.number}",) if told.engine.number else ()
    return (
        "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_OPENSSL=OFF", *number, f"-DLLAMA_BUILD_COMMIT={told.engine.commit[:7]}",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN", "-DGGML_NATIVE=OFF",
        "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON", *_BASES[backend].options,
        *((f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",) if backend == "cuda" and architectures else ()),
    )  # fmt: skip


def _fetch(commit: str) -> str:
    """The source at the commit, and a stop if it is another."""
    whole = len(commit) == len(COMMIT)
    first = f"git init --quiet . \\\n && git fetch --quiet --depth 1 {_SOURCE} {commit}"
    clone = f"git clone --quiet --filter=blob:none --no-checkout {_SOURCE} ."
    return (
        f"{first if whole else clone} \\\n && git checkout --quiet {'FETCH_HEAD' if whole else commit} \\\n"
        f' && case "$(git rev-parse HEAD)" in {commit}*) ;; *) exit 1 ;; esac'
    )


def _model_part(told: Deployment, argv: tuple[str, ...]) -> str:
    labels = " \\\n".join(f"      quantplan.{name}={_label(value)}" for name, value in told.marks.items())
    sums = " \\\n      ".join(shlex.quote(line) for line in checksums(told).splitlines())
    port = told.target.port
    return f"""\

FROM server
{commented(told)}LABEL {labels.lstrip()}
USER 0:0
RUN printf '%s\\n' \\
      {sums} > /app/artifact.sha256 \\
 && printf '%s\\n' '#!/bin/sh' 'sha256sum --check --strict --quiet /app/artifact.sha256 && exec "$@"' > /app/start \\
 && chmod 0755 /app/start
USER {USER}:{USER}
EXPOSE {port}
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10s --timeout=5s --start-period={told.target.load_s}s --retries=3 \\
  CMD ["curl", "--fail", "--silent", "--max-time", "5", "http://127.0.0.1:{port}/health"]
ENTRYPOINT ["/app/start"]
CMD {json.dumps(list(argv), ensure_ascii=False)}
"""


def _label(value: str) -> str:
    """A quoted value; Docker would put variables in."""
    return json.dumps(re.sub(r"[\r\n]", " ", value), ensure_ascii=False).replace("$", "\\$")


def _notes(told: Deployment) -> tuple[str, ...]:
    mib = told.memory_max_bytes // 1024**2
    run = (
        f"docker run --read-only --cap-drop ALL --security-opt no-new-privileges --memory {mib}m --memory-swap {mib}m "
        f"--cpus {told.cpus} --publish {told.target.host or '127.0.0.1'}:{told.target.port}:{told.target.port} "
        f"--volume {shlex.quote(str(told.on_target))}:{MODELS}:ro "
        f"--volume KEYS:{told.target.api_key_file or KEY_FILE}:ro"
    )
    cards = {"cuda": f" --gpus '\"device={','.join(_indices(told))}\"'", "vulkan": " --device /dev/dri"}
    notes = [f"an image limits nothing: {run}{cards.get(told.gpu.backend, '') if told.gpu else ''} IMAGE"]
    outside = [file for file in told.files if file.path.parent != told.folder]
    notes += [f"{file.path} has to be mounted at {told.where(file, MODELS)} too" for file in outside]
    if told.locks_memory:
        notes.append("an image cannot allow locked memory: docker run --ulimit memlock=-1")
    return tuple(notes)


def _indices(told: Deployment) -> tuple[str, ...]:
    return tuple(re.sub(r"^\D+", "", name) for name in told.gpu.names) if told.gpu else ()


EXPORTER = Exporter(target="Docker", write=write, needs=lambda _: (Need(version=(17, 9), what="ARG before FROM"),))
