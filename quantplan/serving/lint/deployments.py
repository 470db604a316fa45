"""Units, compose files, manifests and Dockerfiles: what they leave open, and what never existed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.results import Finding
from quantplan.serving.lint.commands import serves
from quantplan.serving.lint.source import Kind, Source
from quantplan.serving.lint.told import error, note, warning

_THREADS = ("-t", "--threads")
_SANDBOX = ("NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "CapabilityBoundingSet")


# ---- systemd


def unit(source: Source, _: Plan | None) -> Iterable[Finding]:
    served = next((command for command in source.commands if serves(command)), None)
    if source.kind is not Kind.UNIT or served is None:
        return
    keys = {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in source.code if "=" in line}
    sandboxed = [key for key in _SANDBOX if key in keys]
    if len(sandboxed) < 3:
        missing = ", ".join(key for key in _SANDBOX if key not in keys)
        yield warning(source, "unit-not-hardened", source.line_of(r"^\[Service\]"), f"no sandbox: {missing} are not set",
                      "quantplan export systemd writes a hardened unit; systemd-analyze security shows the rest")  # fmt: skip
        if "ExecStartPost" not in keys:
            yield note(source, "no-contract-check", served.line, "nothing checks that what runs is what was planned",
                       "ExecStartPost=quantplan verify-serving …")  # fmt: skip
    if not {"MemoryMax", "MemoryHigh"} & keys.keys():
        yield warning(source, "no-memory-limit", source.line_of(r"^\[Service\]"), "no memory limit",
                      "MemoryMax= from the plan's host bytes and cache, with MemorySwapMax=0")  # fmt: skip
    if "LimitMEMLOCK" in keys and not re.search(r"mlock", served.text):
        yield note(source, "memlock-without-mlock", source.line_of("LimitMEMLOCK"),
                   "LimitMEMLOCK has no effect without locking", "leave it out, or --load-mode mlock")  # fmt: skip
    if line := source.line_of(r"^(After|Wants|Requires)=.*nvidia-persistenced"):
        yield note(source, "missing-service", line, "it waits for nvidia-persistenced, which many hosts don't have",
                   "leave it out, or After= alone")  # fmt: skip
    if "CPUQuota" in keys and served.program("llama-server") and not served.has(*_THREADS):
        yield _threads(source, source.line_of("CPUQuota"), f"CPUQuota={keys['CPUQuota']}")
    model = served.value("--model", "-m")
    if model and "vllm" in served.text and not model.lower().endswith(".gguf") and model.startswith("/"):
        yield note(source, "no-receipt", source.line_of(re.escape(model)), f"{model} is the folder that was downloaded, not an artifact with a receipt",
                   "serve what was built and gated, or record why not")  # fmt: skip


def _threads(source: Source, line: int | None, limit: str) -> Finding:
    return error(source, "cpu-limit-without-threads", line, f"{limit} and no --threads: threads above a quota wait for "
                 "each other (0.27 instead of 12.07 tokens/s was measured)", "--threads and --threads-batch = the limit, rounded down")  # fmt: skip


# ---- compose


def compose(source: Source, _: Plan | None) -> Iterable[Finding]:
    if source.kind is not Kind.COMPOSE or not source.about_inference:
        return
    if line := source.line_of(r"^version\s*:"):
        yield warning(source, "compose-version", line, "version: is obsolete", "leave it out")
    if line := source.line_of(r"^\s*runtime\s*:\s*[\"']?nvidia"):
        yield warning(source, "compose-runtime", line, "runtime: nvidia is obsolete",
                      "deploy.resources.reservations.devices with driver nvidia")  # fmt: skip
    for number, line_text in enumerate(source.code, start=1):
        if re.search(r"^\s*-\s*[\"']?(0\.0\.0\.0:)?\d{2,5}:\d{2,5}(/tcp)?[\"']?\s*$", line_text):
            yield error(source, "published-everywhere", number, "this publishes the port on every interface",
                        'write "127.0.0.1:8080:8080"')  # fmt: skip
    services = _services(source)
    for name, told in services.items():
        yield from _service(source, name, told)


def _services(source: Source) -> Mapping[str, Mapping[str, Any]]:
    """The services that serve or take a GPU, by name; where the file cannot be parsed, one of all its keys."""
    if source.documents:
        found = source.documents[0].get("services")
        services = found if isinstance(found, dict) else {}
        return {str(name): told for name, told in services.items() if isinstance(told, dict) and _concerns(name, told)}
    keys = dict.fromkeys(re.findall(r"^\s*([a-z_]+)\s*:", "\n".join(source.code), re.MULTILINE), "")
    return {"": keys} if _concerns("", {"text": source.text}) else {}


def _concerns(name: str, told: Mapping[str, Any]) -> bool:
    if re.search(r"prometheus|grafana|nginx|traefik|caddy|redis|postgres", f"{name} {told.get('image', '')}", re.I):
        return False
    return bool(re.search(r"llama|llm|gguf|ollama|vllm|nvidia", f"{name} {told}", re.IGNORECASE))


def _service(source: Source, name: str, told: Mapping[str, Any]) -> Iterable[Finding]:
    line = source.line_of(rf"^\s*{re.escape(name)}\s*:") if name else source.line_of(r"^\s*services\s*:")
    label = f"service {name}" if name else "the service"
    limits = (
        ((told.get("deploy") or {}).get("resources") or {}).get("limits")
        if isinstance(told.get("deploy"), dict)
        else None
    )
    limits = limits if isinstance(limits, dict) else {}
    if "healthcheck" not in told:
        yield warning(source, "no-healthcheck", line, f"{label} has no healthcheck",
                      "test /health, with start_period of the load time")  # fmt: skip
    if not ({"mem_limit", "memory"} & told.keys() or limits.get("memory")):
        yield warning(
            source, "no-memory-limit", line, f"{label} has no memory limit", "mem_limit = memswap_limit, from the plan"
        )
    if "restart" not in told and "restart_policy" not in str(told.get("deploy", "")):
        yield note(source, "no-restart-limit", line, f"{label} says nothing of restarts", 'restart: "on-failure:5"')
    image = str(told.get("image", ""))
    if image and "@sha256:" not in image and "$" not in image:
        yield note(source, "no-digest", source.line_of(re.escape(image)), f"{image} may be another image tomorrow",
                   "name it by digest: IMAGE@sha256:…")  # fmt: skip
    command = f"{told.get('entrypoint', '')} {told.get('command', '')}"
    cpus = told.get("cpus") or limits.get("cpus")
    if cpus and _llama(image, command) and not re.search(r"(?<![\w-])(-t|--threads)\b", command):
        yield _threads(source, source.line_of(r"^\s*cpus\s*:"), f"cpus: {cpus}")
    if re.search(r"nvidia|gpus", str(told.get("deploy", "")) + str(told.get("gpus", ""))) and _cpu_image(image):
        yield error(source, "gpu-without-gpu-build", source.line_of(re.escape(image)), f"{image} is built for the CPU only",
                    "the image with -cuda in its tag")  # fmt: skip


def _llama(image: str, command: str) -> bool:
    return "llama.cpp" in image or "llama-server" in command


def _cpu_image(image: str) -> bool:
    return bool(re.search(r"llama\.cpp:(server|full|light)(-b\d+)?(@|$)", image))


# ---- Kubernetes


def kubernetes(source: Source, _: Plan | None) -> Iterable[Finding]:
    if source.kind is not Kind.KUBERNETES or not source.about_inference:
        return
    for document in source.documents:
        if document.get("kind") == "Service" and (document.get("spec") or {}).get("type") in (
            "LoadBalancer",
            "NodePort",
        ):
            kind = document["spec"]["type"]
            yield warning(source, "public-service", source.line_of(rf"type\s*:\s*{kind}"), f"a {kind} is reached from outside the cluster",
                          "ClusterIP behind an ingress that checks keys and limits")  # fmt: skip
        for pod in _pods(document):
            for container in pod.get("containers") or ():
                if isinstance(container, dict) and _concerns(str(container.get("name")), container):
                    yield from _container(source, pod, container)


def _pods(document: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return ()
    if document.get("kind") == "Pod":
        return (spec,)
    template = (spec.get("jobTemplate") or {}).get("spec", {}).get("template") or spec.get("template")
    found = template.get("spec") if isinstance(template, dict) else None
    return (found,) if isinstance(found, dict) else ()


def _container(source: Source, pod: Mapping[str, Any], told: Mapping[str, Any]) -> Iterable[Finding]:
    image, line = str(told.get("image", "")), source.line_of(rf"name\s*:\s*{re.escape(str(told.get('name')))}")
    resources = told.get("resources") if isinstance(told.get("resources"), dict) else {}
    limits, requests = (resources or {}).get("limits") or {}, (resources or {}).get("requests") or {}
    command = f"{told.get('command', '')} {told.get('args', '')}"
    for where in (limits, requests):
        for key, value in where.items():
            if "/gpu" in str(key) and not str(value).isdecimal():
                yield error(source, "gpu-count", source.line_of(rf"{re.escape(str(key))}\s*[:=]"), f"{key}: {value} is no number of GPUs",
                            f'{key}: "1"')  # fmt: skip
            if re.search(r"gpu=|^gpu$|nvidia\.com/gpu\W", str(key)):
                yield error(
                    source,
                    "gpu-key",
                    source.line_of(re.escape(str(key))),
                    f"no cluster knows the resource {key}",
                    'nvidia.com/gpu: "1"',
                )
    if any("/gpu" in str(key) for key in limits) and _cpu_image(image):
        yield error(source, "gpu-without-gpu-build", source.line_of(re.escape(image)), f"{image} is built for the CPU only",
                    "the image with -cuda in its tag")  # fmt: skip
    if limits.get("cpu") and _llama(image, command) and not re.search(r"(?<![\w-])(-t|--threads)\b", command):
        yield _threads(source, source.line_of(r"^\s*cpu\s*:"), f"a CPU limit of {limits['cpu']}")
    if not limits.get("memory"):
        yield warning(
            source,
            "no-memory-limit",
            line,
            "the container has no memory limit",
            "limits.memory = requests.memory, from the plan",
        )
    context = {**(pod.get("securityContext") or {}), **(told.get("securityContext") or {})}
    if not (context.get("runAsNonRoot") or context.get("runAsUser")):
        yield warning(
            source,
            "runs-as-root",
            line,
            "the container may run as root",
            "securityContext.runAsNonRoot: true, readOnlyRootFilesystem: true, drop ALL",
        )
    if image and "@sha256:" not in image:
        yield note(source, "no-digest", source.line_of(re.escape(image)), f"{image} may be another image tomorrow",
                   "name it by digest: IMAGE@sha256:…")  # fmt: skip


# ---- Dockerfile


def dockerfile(source: Source, _: Plan | None) -> Iterable[Finding]:
    if source.kind is not Kind.DOCKERFILE or not source.about_inference:
        return
    stages = set(re.findall(r"^FROM\s.*\sAS\s+(\S+)", source.text, re.IGNORECASE | re.MULTILINE))
    for number, line in enumerate(source.code, start=1):
        found = re.match(r"FROM\s+(?:--\S+\s+)?(\S+)", line, re.IGNORECASE)
        if found and "@sha256:" not in found[1] and found[1] not in stages | {"scratch"} and "$" not in found[1]:
            yield warning(
                source, "no-digest", number, f"{found[1]} may be another image tomorrow", f"FROM {found[1]}@sha256:…"
            )
    if not any(re.match(r"USER\s+(?!root|0\b)", line, re.IGNORECASE) for line in source.code):
        yield warning(source, "runs-as-root", 1, "the container runs as root", "USER with a number above 0, before CMD")
    starts = next((command for command in source.commands if serves(command)), None)
    if starts and not re.search(r"^HEALTHCHECK\b", source.text, re.IGNORECASE | re.MULTILINE):
        yield warning(
            source,
            "no-healthcheck",
            starts.line,
            "no HEALTHCHECK",
            "HEALTHCHECK CMD curl -f http://127.0.0.1:8080/health",
        )
    for command in source.commands:
        if command.program("pip", "pip3") and "install" in command.words:
            yield from _unpinned(source, command.line, command.words)


def _unpinned(source: Source, line: int, words: tuple[str, ...]) -> Iterable[Finding]:
    if any(word in ("-r", "--requirement", "-c", "--constraint", ".", "-e", "--require-hashes") for word in words):
        return
    names = [word for word in words[words.index("install") + 1 :] if re.fullmatch(r"[A-Za-z][\w.\[\],-]*", word)]
    if names:
        yield warning(source, "unpinned", line, f"unpinned: {', '.join(names)}", f"{names[0]}==VERSION")


RULES = (unit, compose, kubernetes, dockerfile)
