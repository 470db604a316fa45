"""A Compose file: the artifact is checked first, then the server starts as planned, and only this host reaches it."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from quantplan.errors import CannotExport
from quantplan.serving.export.deployment import MODELS, Deployment
from quantplan.serving.export.dockerfile import KEY_FILE, PROGRAM, USER, checksums, engine_image, engine_notes
from quantplan.serving.export.exported import Exported, Exporter, File, Need
from quantplan.serving.export.yaml_text import yaml_text

_SUMS = "/artifact.sha256"


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """compose.yaml. Without an image of one's own the engine is built from the Dockerfile inside it."""
    (told,) = deployments
    document = {
        "name": told.name,
        "services": {"artifact-check": _check(told), "llama-server": _server(told)},
        "configs": {"artifact-sha256": {"content": checksums(told)}},
        "secrets": {"api-key": {"file": told.target.api_key_file or "./api-key"}},
        "x-quantplan": told.marks,
    }
    document = _literal(document)
    build = document["services"]["artifact-check"].get("build")
    if build is not None:
        document["services"]["llama-server"]["build"] = build
    head = f"# {told.title}: docker compose up --wait\n"
    text = head + yaml_text(document, shared=build, name="engine")
    return Exported(files=(File(name="compose.yaml", text=text),), notes=_notes(told))


def _literal(value: Any) -> Any:
    """Compose puts variables in where it sees $."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _literal(one) for key, one in value.items()}
    return [_literal(one) for one in value] if isinstance(value, (list, tuple)) else value


def _image(told: Deployment) -> dict[str, Any]:
    if told.target.image:
        return {"image": told.target.image}
    return {"build": {"context": ".", "dockerfile_inline": engine_image(told), "target": "server"}}


def _confined(told: Deployment) -> dict[str, Any]:
    """What both services are denied, and the models that they read."""
    return {
        "user": f"{USER}:{USER}", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
        "volumes": [_mount(str(source), target) for source, target in _mounts(told).items()],
    }  # fmt: skip


def _mounts(told: Deployment) -> dict[PurePath, str]:
    """Where models lie on the target, and where the container has them."""
    outside = [file for file in told.files if file.path.parent != told.folder]
    return {told.on_target: str(MODELS)} | {told.where(file): str(told.where(file, MODELS)) for file in outside}


def _mount(source: str, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": target, "read_only": True,
            "bind": {"create_host_path": False}}  # fmt: skip


def _check(told: Deployment) -> dict[str, Any]:
    """Ends well when every file has its hash; the server waits for that."""
    return {
        **_image(told), "entrypoint": ["sha256sum", "--check", "--strict", _SUMS], **_confined(told),
        "configs": [{"source": "artifact-sha256", "target": _SUMS}], "network_mode": "none", "restart": "no",
        "healthcheck": {"disable": True}, "mem_limit": "256m", "memswap_limit": "256m", "pids_limit": 16,
    }  # fmt: skip


def _server(told: Deployment) -> dict[str, Any]:
    target, port = told.target, told.target.port
    argv = told.argv((PROGRAM,), host="0.0.0.0", port=port, folder=MODELS, api_key_file=KEY_FILE, renumbered=True)
    host = target.host or "127.0.0.1"
    return {
        **_image(told),
        "depends_on": {"artifact-check": {"condition": "service_completed_successfully"}},
        "entrypoint": [PROGRAM],
        "command": list(argv[1:]),
        "environment": {"XDG_CONFIG_HOME": "/nonexistent", "GGML_NO_BACKTRACE": "1", "LC_ALL": "C.UTF-8"},
        "ports": [f"{f'[{host}]' if ':' in host else host}:{port}:{port}"],
        "secrets": [{"source": "api-key", "target": KEY_FILE}],
        **_confined(told),
        "tmpfs": ["/tmp:size=16m,mode=1777,noexec,nosuid,nodev"],
        "init": True,
        **_limits(told),
        **_cards(told),
        "healthcheck": {
            "test": ["CMD", "curl", "--fail", "--silent", "--max-time", "5", f"http://127.0.0.1:{port}/health"],
            "interval": "10s", "timeout": "6s", "retries": 3, "start_period": f"{target.load_s}s",
            "start_interval": "2s",
        },
        "restart": "on-failure:5",
        "stop_signal": "SIGINT",
        "stop_grace_period": f"{target.drain_s + 10}s",
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
        "labels": {f"quantplan.{name}": value for name, value in told.marks.items()},
    }  # fmt: skip


def _limits(told: Deployment) -> dict[str, Any]:
    memory = f"{told.memory_max_bytes}b"
    limits: dict[str, Any] = {
        "cpus": float(told.cpus), "mem_limit": memory, "memswap_limit": memory, "pids_limit": told.cpus * 4 + 256,
        "ulimits": {"core": 0, "nofile": 65536, **({"memlock": -1} if told.locks_memory else {})},
    }  # fmt: skip
    return limits | ({"cpuset": told.plan.cpu_range} if told.plan.cpu_range else {})


def _cards(told: Deployment) -> dict[str, Any]:
    """Exactly the plan's cards, by the numbers that the driver gives them."""
    if told.gpu is None:
        return {}
    if told.gpu.backend == "cuda":
        numbers = [re.sub(r"^\D+", "", name) for name in told.gpu.names]
        device = {"driver": "nvidia", "device_ids": numbers, "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
    if told.gpu.backend == "rocm":
        return {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video", "render"]}
    if told.gpu.backend in ("vulkan", "sycl"):
        return {"devices": ["/dev/dri"], "group_add": ["video", "render"]}
    raise CannotExport(target="Compose", why=f"containers are not given {told.gpu.names[0]}, a card of macOS",
                       instead="serve it with quantplan there")  # fmt: skip


def _notes(told: Deployment) -> tuple[str, ...]:
    key = told.target.api_key_file or "./api-key"
    notes = [f"Compose mounts a secret as its file is: before the start, sudo install -o {USER} -m 0400 KEYS {key}"]
    if told.target.image is None:
        notes += engine_notes(told)
    if told.gpu is not None and told.gpu.backend == "cuda" and told.gpu.count > 1:
        notes.append("cards are named by the numbers of nvidia-smi: cards of several kinds need "
                     "CUDA_DEVICE_ORDER=PCI_BUS_ID when the plan is made")  # fmt: skip
    unreadable = [file.path.name for file in told.files if not file.world_readable]
    if unreadable:
        notes.append(f"{', '.join(unreadable)} may not be read by user {USER}: chmod o+r, and o+x on its folder")
    notes.append("the contract check runs outside: quantplan verify-serving URL --plan PLAN --require remote")
    return tuple(notes)


def _needs(told: Deployment) -> tuple[Need, ...]:
    inline = (Need(version=(2, 17), what="dockerfile_inline"),) if told.target.image is None else ()
    return (Need(version=(2, 23, 1), what="content of configs"), Need(version=(2, 20, 2), what="start_interval"),
            *inline)  # fmt: skip


EXPORTER = Exporter(target="Docker Compose", write=write, needs=_needs)
