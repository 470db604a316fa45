"""nginx before the engine: as many requests inside as the plan has slots and queue, answers passed on as they come."""

from __future__ import annotations

import json

from quantplan.serving.export import front_door as door
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented
from quantplan.serving.export.front_door import FrontDoor, front_door

_TLS_FOLDER = "/etc/nginx/tls"
# nginx waits for a client between two reads of its body, and between two writes of the answer, not for the whole
_SERVER = """\
    server_tokens off;
    client_header_timeout {header_s}s;
    client_body_timeout {body_s}s;
    send_timeout {stalled_s}s;
    keepalive_timeout {idle_s}s;
    client_max_body_size {body_bytes};
    client_body_buffer_size {body_bytes};  # prompts are not written to the disk

    limit_conn_status 429;
    limit_req_status 429;

    proxy_http_version 1.1;
    proxy_set_header Connection close;
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_connect_timeout {connect_s}s;
    proxy_send_timeout {stalled_s}s;
    proxy_read_timeout {silent_s}s;
    proxy_buffering off;
    proxy_cache off;
    proxy_max_temp_file_size 0;
    proxy_next_upstream off;  # a request is sent once
    proxy_ignore_client_abort off;  # a client that leaves ends its generation
    gzip off;
"""


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """The server for conf.d, and a whole nginx.conf to try it with. Raises CannotExport."""
    (told,) = deployments
    front = front_door(told)
    name = f"quantplan-{told.name}.conf"
    files = (File(name=name, text=_conf(told, front)), File(name="nginx.conf", text=_main(told, name)))
    return Exported(files=files, notes=(*door.notes(told, front, "nginx"), *_notes(told, front, name)))


def _conf(told: Deployment, front: FrontDoor) -> str:
    zone = told.name.replace("-", "_")
    return (
        f"# {told.plan.n_parallel} slots, {told.n_queue} waiting: {front.in_flight} requests inside at most.\n"
        f"{commented(told)}\n{_zones(front, zone)}\nserver {{\n{_listen(told, front)}{_timeouts(front)}\n"
        f"{_locations(front, zone)}}}\n"
    )


def _zones(front: FrontDoor, zone: str) -> str:
    lines = [f"limit_conn_zone $server_name zone={zone}_all:1m;"]
    if front.per_key is not None:
        lines += [
            f'map "$http_authorization$http_x_api_key" ${zone}_key {{',
            '    "" $binary_remote_addr;',
            '    default "$http_authorization$http_x_api_key";', "}",
            f"limit_conn_zone ${zone}_key zone={zone}_key:10m;",
        ]  # fmt: skip
    if front.requests_per_s is not None:
        lines.append(f"limit_req_zone $server_name zone={zone}_rate:1m rate={front.requests_per_s}r/s;")
    return "".join(f"{line}\n" for line in lines)


def _listen(told: Deployment, front: FrontDoor) -> str:
    if not front.tls:
        return f"    listen {front.listen};\n    server_name localhost;\n\n"
    return (
        f"    listen {front.listen} ssl;\n    listen [::]:{front.listen} ssl;\n    server_name {front.server_name};\n"
        f"    ssl_certificate {_TLS_FOLDER}/{told.name}.crt;\n    ssl_certificate_key {_TLS_FOLDER}/{told.name}.key;\n"
        "    ssl_protocols TLSv1.2 TLSv1.3;\n\n"
    )


def _timeouts(front: FrontDoor) -> str:
    return _SERVER.format(
        header_s=door.HEADER_S, body_s=door.BODY_S, stalled_s=door.STALLED_S, idle_s=door.IDLE_S,
        silent_s=door.SILENT_S, connect_s=door.CONNECT_S, body_bytes=front.body_bytes,
    )  # fmt: skip


def _locations(front: FrontDoor, zone: str) -> str:
    limits = [f"limit_conn {zone}_all {front.in_flight};"]
    if front.per_key is not None:
        limits.append(f"limit_conn {zone}_key {front.per_key};")
    if front.requests_per_s is not None:
        limits.append(f"limit_req zone={zone}_rate burst={front.burst} nodelay;")
    generate = [*limits, f"proxy_pass {front.engine};"]
    wait = f"add_header Retry-After {front.retry_after_s} always;"
    return (
        "    error_page 429 = @busy;\n    error_page 413 = @too_large;\n    error_page 502 504 = @away;\n\n"
        + _location("/v1/", *generate)
        + _location("= /v1/models", f"proxy_pass {front.engine};")  # asks for no slot
        + _location("= /health", f"proxy_pass {front.engine};")
        + _location("/", *_answer(404, "there is nothing here", "not_found"))
        + _location("@busy", "internal;", wait, *_answer(429, "all places are taken, come back later", "overloaded"))
        + _location("@too_large", "internal;", *_answer(413, "the request is too large", "request_too_large"))
        + _location("@away", "internal;", *_answer(502, "the engine did not answer", "engine_away"))
    )


def _answer(status: int, message: str, code: str) -> tuple[str, str]:
    """An error in OpenAI's form."""
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    told = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return "default_type application/json;", f"return {status} '{told}';"


def _location(where: str, *directives: str) -> str:
    return "".join([f"    location {where} {{\n", *(f"        {one}\n" for one in directives), "    }\n"])


def _main(told: Deployment, include: str) -> str:
    """It runs as whoever starts it, in the folder it is given: `nginx -p DIR -c DIR/nginx.conf`."""
    temporary = "".join(f"    {kind}_temp_path temp-{kind};\n"
                        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))  # fmt: skip
    return (
        f"# For a trial: nginx -t -p DIR -c DIR/nginx.conf. Elsewhere {include} belongs into conf.d.\n"
        f"{commented(told)}\npid nginx.pid;\nerror_log stderr warn;\nworker_processes 1;\n"
        "events {\n    worker_connections 1024;\n}\n\nhttp {\n    access_log off;\n"
        f"{temporary}    include {include};\n}}\n"
    )


def _notes(told: Deployment, front: FrontDoor, name: str) -> tuple[str, ...]:
    found = [f"{name} belongs into nginx's conf.d; nginx.conf beside it is for a trial in its own folder"]
    if front.tls:
        found.append(f"the certificate and its key are read from {_TLS_FOLDER}/{told.name}.crt and .key")
    found.append("keys are checked by the engine: nginx passes them on")
    return tuple(found)


def _needs(_: Deployment) -> tuple[Need, ...]:
    return (Need(version=(1, 3, 15), what="limit_conn_status"),)


EXPORTER = Exporter(target="nginx", write=write, needs=_needs)
