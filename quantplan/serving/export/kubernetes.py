"""A manifest: Deployment, Service, NetworkPolicy, claim, checksums and disruption budget; the keys are a Secret's."""

from __future__ import annotations

import hashlib
from typing import Any

from quantplan.errors import CannotExport
from quantplan.serving.export.deployment import MODELS, PLACEHOLDER_IMAGE, Deployment
from quantplan.serving.export.dockerfile import PROGRAM, USER, checksums
from quantplan.serving.export.exported import Exported, Exporter, File, Need
from quantplan.serving.export.yaml_text import yaml_text
from quantplan.units import GIB, MIB

_SUMS = "/artifact"
_KEYS = "/keys"
_PROBE_S = 5
# The names that the vendors' device plugins give their cards.
_CARDS = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu", "sycl": "gpu.intel.com/i915"}


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """One manifest of several documents. Raises CannotExport."""
    (told,) = deployments
    documents = (_config(told), _claim(told), _deployment(told), _service(told), _network(told), _budget(told))
    head = f"# {told.title}: kubectl apply --filename {told.name}.yaml\n"
    return Exported(files=(File(name=f"{told.name}.yaml", text=head + yaml_text(*documents)),), notes=_notes(told))


def _meta(told: Deployment, name: str | None = None) -> dict[str, Any]:
    return {"name": name or told.name, "labels": _labels(told)}


def _labels(told: Deployment) -> dict[str, str]:
    return {"app.kubernetes.io/name": "llama-server", "app.kubernetes.io/instance": told.name}


def _config(told: Deployment) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(told, _config_name(told)), "immutable": True,
            "data": {"artifact.sha256": checksums(told, apart=False)}}  # fmt: skip


def _config_name(told: Deployment) -> str:
    """Another artifact, another name: an immutable object is never changed."""
    return f"{told.name}-{hashlib.sha256(checksums(told, apart=False).encode()).hexdigest()[:8]}"


def _claim(told: Deployment) -> dict[str, Any]:
    """Room for the files and a tenth more for the file system."""
    size = -(-sum(file.bytes for file in told.files) * 11 // 10 // GIB) or 1
    return {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": _meta(told),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{size}Gi"}}},
    }  # fmt: skip


def _deployment(told: Deployment) -> dict[str, Any]:
    annotations = {f"quantplan/{name}": value for name, value in told.marks.items()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**_meta(told), "annotations": annotations},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": told.target.load_s + 300,
            "selector": {"matchLabels": _labels(told)},
            "template": {
                "metadata": {"labels": _labels(told), "annotations": annotations},
                "spec": _pod(told),
            },
        },
    }


def _pod(told: Deployment) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": told.target.drain_s + 10,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_check(told)],
        "containers": [_server(told)],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": told.name, "readOnly": True}},
            {"name": "artifact", "configMap": {"name": _config_name(told)}},
            {"name": "keys", "secret": {"secretName": f"{told.name}-api-key", "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}},
        ],
    }  # fmt: skip


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _equal(limits: dict[str, str]) -> dict[str, Any]:
    """Requests as limits: the pod is of the class that is evicted last, and its CPUs may be its own."""
    return {"requests": dict(limits), "limits": dict(limits)}


def _image(told: Deployment) -> str:
    return told.target.image or PLACEHOLDER_IMAGE


def _check(told: Deployment) -> dict[str, Any]:
    return {
        "name": "artifact-check", "image": _image(told),
        "command": ["sha256sum", "--check", "--strict", f"{_SUMS}/artifact.sha256"],
        "resources": _equal({"cpu": "1", "memory": "256Mi"}),
        "securityContext": _confined(),
        "volumeMounts": [_mount("models", str(MODELS)), _mount("artifact", _SUMS)],
    }  # fmt: skip


def _mount(name: str, path: str, *, writable: bool = False) -> dict[str, Any]:
    return {"name": name, "mountPath": path} | ({} if writable else {"readOnly": True})


def _server(told: Deployment) -> dict[str, Any]:
    port = told.target.port
    argv = told.argv((PROGRAM,), host="0.0.0.0", port=port, folder=MODELS, apart=False, api_key_file=f"{_KEYS}/api-key",
                     renumbered=True, cpu_range=False)  # fmt: skip
    limits = {"cpu": str(told.cpus), "memory": f"{told.memory_max_bytes // MIB}Mi", **_cards(told)}
    return {
        "name": "llama-server",
        "image": _image(told),
        "command": list(argv[:1]),
        "args": [_literal(word) for word in argv[1:]],
        "env": [{"name": "XDG_CONFIG_HOME", "value": "/nonexistent"}, {"name": "GGML_NO_BACKTRACE", "value": "1"},
                {"name": "LC_ALL", "value": "C.UTF-8"}],
        "ports": [{"name": "http", "containerPort": port}],
        "resources": _equal(limits),
        "securityContext": _confined(),
        "startupProbe": {**_health(), "periodSeconds": _PROBE_S,
                         "failureThreshold": -(-told.target.load_s // _PROBE_S)},
        "readinessProbe": {**_health(), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        # /health answers 503 while the model sleeps or loads anew: only a socket that is gone is a reason to kill
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 20, "timeoutSeconds": 5,
                          "failureThreshold": 3},
        # what runs gets no more requests before it is told to end
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "volumeMounts": [_mount("models", str(MODELS)), _mount("keys", _KEYS), _mount("tmp", "/tmp", writable=True)],
    }  # fmt: skip


def _literal(word: str) -> str:
    """Kubernetes puts variables in where it sees $(NAME)."""
    return word.replace("$(", "$$(")


def _health() -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": "http"}}


def _cards(told: Deployment) -> dict[str, str]:
    if told.gpu is None:
        return {}
    resource = _CARDS.get(told.gpu.backend)
    if resource is None:
        raise CannotExport(target="Kubernetes", why=f"no device plugin gives {told.gpu.names[0]} to a pod",
                           instead="plan for CUDA or ROCm")  # fmt: skip
    return {resource: str(told.gpu.count)}


def _service(told: Deployment) -> dict[str, Any]:
    ports = [{"name": "http", "port": told.target.port, "targetPort": "http"}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(told),
            "spec": {"type": "ClusterIP", "selector": _labels(told), "ports": ports}}  # fmt: skip


def _network(told: Deployment) -> dict[str, Any]:
    """In from pods of this namespace that bear the label, out to nobody."""
    who = {"podSelector": {"matchLabels": {f"{told.name}/client": "true"}}}
    ports = [{"protocol": "TCP", "port": told.target.port}]
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _meta(told),
        "spec": {"podSelector": {"matchLabels": _labels(told)}, "policyTypes": ["Ingress", "Egress"],
                 "ingress": [{"from": [who], "ports": ports}], "egress": []},
    }  # fmt: skip


def _budget(told: Deployment) -> dict[str, Any]:
    """One pod may go, so that a node can be emptied."""
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": _meta(told),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels(told)}}}  # fmt: skip


def _notes(told: Deployment) -> tuple[str, ...]:
    notes = [] if told.target.image else [
        "the image is a placeholder that no registry has: build one (the dockerfile format) and name it by its digest"
    ]  # fmt: skip
    paths = [str(told.where(file, MODELS, apart=False)) for file in told.files]
    notes += [
        f"the keys are the Secret {told.name}-api-key: kubectl create secret generic {told.name}-api-key "
        "--from-file=api-key=KEYS",
        f"the claim {told.name} has to hold {', '.join(paths)}; a pod does not start where a file has another hash",
        f"only pods of the namespace with the label {told.name}/client=true reach it",
    ]
    if told.plan.cpu_range:
        notes.append(f"a pod cannot ask for CPUs {told.plan.cpu_range}: it gets {told.cpus} of the node, of its own "
                     "where the kubelet's CPU manager is static")  # fmt: skip
    if told.locks_memory:
        notes.append("a pod cannot raise the limit of locked memory: the node's container runtime has to allow it, "
                     "else the engine warns and goes on without the lock")  # fmt: skip
    if told.gpu is not None:
        need = max(told.gpu.memory_bytes) // MIB
        notes.append(f"the cluster chooses the card: give it nodes whose cards have {need} MiB free "
                     "(nvidia.com/gpu.memory of GPU feature discovery tells)")  # fmt: skip
    return tuple(notes)


def _needs(_: Deployment) -> tuple[Need, ...]:
    return (
        Need(version=(1, 21), what="policy/v1 and immutable ConfigMaps"),
        Need(version=(1, 20), what="startupProbe"),
    )


EXPORTER = Exporter(target="Kubernetes", write=write, needs=_needs)
