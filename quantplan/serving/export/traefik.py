"""Traefik before the engine: its own settings, and the routes with the plan's limits."""

from __future__ import annotations

from typing import Any

from quantplan.serving.export import front_door as door
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented
from quantplan.serving.export.front_door import FrontDoor, front_door
from quantplan.serving.export.yaml_text import yaml_text

_TLS_FOLDER = "/etc/traefik/tls"
_MARK = "X-Quantplan-Front"  # the same for all: what counts requests must not depend on what a client says


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """traefik.yml (how it listens) and the routes it reads. Raises CannotExport."""
    (told,) = deployments
    front = front_door(told)
    name = f"quantplan-{told.name}.yml"
    routes = f"{commented(told)}\n{yaml_text({'http': _http(told, front), **_certificates(told, front)})}"
    files = (File(name=name, text=routes), File(name="traefik.yml", text=yaml_text(_static(told, front, name))))
    return Exported(files=files, notes=(*door.notes(told, front, "Traefik"), *_notes(told, front, name)))


def _static(told: Deployment, front: FrontDoor, routes: str) -> dict[str, Any]:
    timeouts = {"readTimeout": f"{door.BODY_S}s", "writeTimeout": "0s", "idleTimeout": f"{door.IDLE_S}s"}
    life = {"requestAcceptGraceTimeout": "0s", "graceTimeOut": f"{told.target.drain_s}s"}
    address = f":{front.listen}" if front.tls else front.listen
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "INFO"},
        "entryPoints": {"quantplan": {"address": address,
                                      "transport": {"respondingTimeouts": timeouts, "lifeCycle": life}}},
        "providers": {"file": {"filename": routes, "watch": True}},
    }  # fmt: skip


def _http(told: Deployment, front: FrontDoor) -> dict[str, Any]:
    chain = _chain(told, front)
    names = [f"{told.name}-{name}" for name in chain]
    router: dict[str, Any] = {"entryPoints": ["quantplan"], "service": told.name}
    if front.tls:
        router["tls"] = {}
    of_host = f" && Host(`{front.server_name}`)" if front.tls else ""
    transport = {"dialTimeout": f"{door.CONNECT_S}s", "responseHeaderTimeout": f"{door.SILENT_S}s",
                 "idleConnTimeout": f"{door.IDLE_S}s"}  # fmt: skip
    balancer = {"servers": [{"url": front.engine}], "passHostHeader": True, "serversTransport": told.name,
                "responseForwarding": {"flushInterval": "-1ms"}}  # fmt: skip
    return {
        "routers": {
            told.name: {**router, "rule": f"PathPrefix(`/v1/`){of_host}", "priority": 10, "middlewares": names},
            f"{told.name}-free": {**router, "rule": f"(Path(`/health`) || Path(`/v1/models`)){of_host}",
                                  "priority": 20},
        },
        "middlewares": dict(zip(names, chain.values(), strict=True)),
        "services": {told.name: {"loadBalancer": balancer}},
        # the engine ends idle connections: one that is used again in that moment would be a request lost with 502
        "serversTransports": {told.name: {"maxIdleConnsPerHost": -1, "forwardingTimeouts": transport}},
    }  # fmt: skip


def _chain(told: Deployment, front: FrontDoor) -> dict[str, Any]:
    """The middlewares in their order."""
    wait = {"Retry-After": str(front.retry_after_s)}
    mark = {"customRequestHeaders": {_MARK: told.name}, "customResponseHeaders": wait}
    chain: dict[str, Any] = {"mark": {"headers": mark}}
    if front.requests_per_s is not None:
        chain["rate"] = {"rateLimit": {"average": front.requests_per_s, "period": "1s", "burst": front.burst,
                                       "sourceCriterion": {"requestHeaderName": _MARK}}}  # fmt: skip
    if front.per_key is not None:
        chain["key"] = {"inFlightReq": {"amount": front.per_key,
                                        "sourceCriterion": {"requestHeaderName": "Authorization"}}}  # fmt: skip
    chain["all"] = {"inFlightReq": {"amount": front.in_flight, "sourceCriterion": {"requestHeaderName": _MARK}}}
    return chain


def _certificates(told: Deployment, front: FrontDoor) -> dict[str, Any]:
    if not front.tls:
        return {}
    files = {"certFile": f"{_TLS_FOLDER}/{told.name}.crt", "keyFile": f"{_TLS_FOLDER}/{told.name}.key"}
    return {"tls": {"certificates": [files], "options": {"default": {"minVersion": "VersionTLS12"}}}}


def _notes(told: Deployment, front: FrontDoor, routes: str) -> tuple[str, ...]:
    found = [
        "Traefik's limit of a body (buffering) holds answers back until they are complete, so none is set: the engine "
        "reads bodies of any size",
        "Traefik's limit of requests inside answers without Retry-After, so every answer carries it",
        f"traefik.yml and {routes} are read from the folder that Traefik is started in",
        "keys are checked by the engine: Traefik passes them on",
    ]
    if front.tls:
        found.append(f"the certificate and its key are read from {_TLS_FOLDER}/{told.name}.crt and .key")
    return tuple(found)


def _needs(_: Deployment) -> tuple[Need, ...]:
    return (Need(version=(2, 4), what="serversTransports"),)


EXPORTER = Exporter(target="traefik", write=write, needs=_needs)
