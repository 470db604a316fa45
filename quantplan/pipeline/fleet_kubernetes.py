"""A build file for a cluster: plain Jobs, one a build, or an Argo Workflow; files in a ConfigMap, one shared volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantplan.pipeline.fleet_export import Place, Task, Tasks, config_map_data
from quantplan.units import MIB

VOLUME_AT, FILES_AT = "/artifacts", "/fleet"
_LABELS = {"app.kubernetes.io/name": "quantplan", "app.kubernetes.io/component": "fleet"}
_FILES = "quantplan-fleet-files"
_WAIT_S = 15


def jobs(told: Tasks, place: Place) -> tuple[Mapping[str, Any], ...]:
    """ConfigMap and claim where they are needed, then a Job a build. What needs others waits for their receipts."""
    return (*_shared(told, place), *(_job(told, task, place) for task in told.tasks))


def argo(told: Tasks, place: Place) -> tuple[Mapping[str, Any], ...]:
    """The same as one Workflow: a task a build, what needs others after them, others go on when one fails."""
    tasks = [
        {"name": task.name, "template": task.name, **({"dependencies": list(task.needs)} if task.needs else {})}
        for task in told.tasks
    ]
    templates = [
        {"name": task.name, "activeDeadlineSeconds": place.deadline_s,
         "retryStrategy": {"limit": "2", "retryPolicy": "OnError"}, "container": _container(told, task, place)}
        for task in told.tasks
    ]  # fmt: skip
    spec = {
        "entrypoint": "fleet", "parallelism": told.fleet.jobs,
        "volumes": _volumes(told, place),
        "templates": [{"name": "fleet", "dag": {"failFast": False, "tasks": tasks}}, *templates],
    }  # fmt: skip
    meta = {"generateName": "quantplan-fleet-", **_namespace(place), "labels": dict(_LABELS)}
    return (*_shared(told, place),
            {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": meta, "spec": spec})  # fmt: skip


def _shared(told: Tasks, place: Place) -> Iterator[Mapping[str, Any]]:
    if told.files:
        meta = {"name": _FILES, **_namespace(place), "labels": dict(_LABELS)}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, **config_map_data(told.files)}
    if place.storage:
        meta = {"name": place.claim, **_namespace(place), "labels": dict(_LABELS)}
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": place.storage}}}
        yield {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def _job(told: Tasks, task: Task, place: Place) -> Mapping[str, Any]:
    labels = {**_LABELS, "quantplan.fleet/build": task.name}
    first = [_wait(told, task, place)] if task.unit.needs else []
    pod = {
        "restartPolicy": "Never", "automountServiceAccountToken": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        **({"initContainers": first} if first else {}),
        "containers": [_container(told, task, place)], "volumes": _volumes(told, place),
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": f"quantplan-{task.name}", **_namespace(place), "labels": labels},
        "spec": {"backoffLimit": 2, "activeDeadlineSeconds": place.deadline_s,
                 "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {
                     "containerName": "build", "operator": "In", "values": [1, 2, 3, 4, 5]}}]},
                 "template": {"metadata": {"labels": labels}, "spec": pod}},
    }  # fmt: skip


def _container(told: Tasks, task: Task, place: Place) -> dict[str, Any]:
    return {
        "name": "build", "image": place.image, "command": ["/bin/sh", "-euc"], "args": [task.script],
        "workingDir": VOLUME_AT,
        "env": [
            *([{"name": "QUANTPLAN_CACHE", "value": f"{VOLUME_AT}/.cache"}] if place.share_cache else []),
            {"name": "QUANTPLAN_STATE", "value": f"{VOLUME_AT}/.state"},
            {"name": "HF_TOKEN",
             "valueFrom": {"secretKeyRef": {"name": place.token_secret, "key": "HF_TOKEN", "optional": True}}},
        ],
        "resources": _resources(task), "securityContext": _locked_down(), "volumeMounts": _mounts(told),
    }  # fmt: skip


def _wait(told: Tasks, task: Task, place: Place) -> dict[str, Any]:
    """Receipts on the shared volume tell that what is needed is there."""
    receipts = " && ".join(f"[ -f {VOLUME_AT}/{name}/artifact.json ]" for name in task.unit.needs)
    return {
        "name": "wait", "image": place.image, "command": ["/bin/sh", "-euc"],
        "args": [f"until {receipts}; do sleep {_WAIT_S}; done\n"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": _locked_down(), "volumeMounts": _mounts(told),
    }  # fmt: skip


def _resources(task: Task) -> dict[str, Any]:
    """Memory as planned. Mapped files count as the container's cache, which the kernel takes back."""
    if task.memory_bytes is None:
        return {}
    return {"requests": {"memory": f"{-(-task.memory_bytes // MIB)}Mi"}}


def _locked_down() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _mounts(told: Tasks) -> list[dict[str, Any]]:
    files = [{"name": "files", "mountPath": FILES_AT, "readOnly": True}] if told.files else []
    return [{"name": "artifacts", "mountPath": VOLUME_AT}, *files]


def _volumes(told: Tasks, place: Place) -> list[dict[str, Any]]:
    files = [{"name": "files", "configMap": {"name": _FILES}}] if told.files else []
    return [{"name": "artifacts", "persistentVolumeClaim": {"claimName": place.claim}}, *files]


def _namespace(place: Place) -> dict[str, str]:
    return {"namespace": place.namespace} if place.namespace else {}
