"""vLLM: the plan's context and slots with the model's original weights, on one node or several."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from quantplan.errors import BadModelFile, CannotExport
from quantplan.model.facts import ModelFacts
from quantplan.serving.bind import is_loopback
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented
from quantplan.serving.export.shell import command
from quantplan.serving.export.vllm_memory import Layout, kv_bytes, layout, made_smaller, usable_bytes, utilization

KEY_FILE = "/etc/quantplan/{name}.key"
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}
_MASTER_PORT, _RAY_PORT = 29501, 6379  # the defaults of vLLM 0.32.0 and Ray, written out
_RANK, _MASTER = "$1", "$2"

_HEAD = """\
#!/bin/sh
set -eu
"""
_KEY = """\
# The first key of the file, not on the command line.
VLLM_API_KEY="$(sed -n '/^[^#]/{{s/[[:space:]].*//;p;q;}}' {path})"
export VLLM_API_KEY VLLM_NO_USAGE_STATS=1
: "${{VLLM_API_KEY:?there is no key in its file}}"
"""


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """vllm.sh; for several nodes vllm-node.sh, and the same over Ray. Raises CannotExport."""
    (told,) = deployments
    backend = told.gpu.backend if told.gpu else None
    if backend not in (None, *_VISIBLE):
        raise CannotExport(target="vLLM", why=f"it has no backend for {told.gpu.names[0] if told.gpu else ''}",
                           instead="llama-server has one")  # fmt: skip
    if told.target.n_nodes > 1 and told.gpu is None:
        raise CannotExport(target="vLLM", why="several nodes are for plans with cards")
    facts = _facts(told)
    over = layout(facts, n_cards=told.gpu.count if told.gpu else 1, n_nodes=told.target.n_nodes,
                  nvlink=told.target.nvlink)  # fmt: skip
    kv = kv_bytes(facts, told, over) if facts is not None else None
    quantization = made_smaller(facts, told, kv or 0, over=over) if facts is not None else None
    argv = _argv(told, over, kv, quantization)
    notes = _notes(told, over, quantization)
    if kv is None:
        notes = (*notes, "the model's header does not say what its cache takes (or it keeps a state beside it): vLLM "
                 "sizes it by --gpu-memory-utilization, and refuses a context that does not fit")  # fmt: skip
    return Exported(files=_files(told, over, argv), notes=notes)


def _facts(told: Deployment) -> ModelFacts | None:
    """What the artifact's header says of the model; None where it lacks what the engine wants to know."""
    from quantplan.model.read import read_model

    try:
        return read_model(str(told.model.path))
    except BadModelFile:
        return None


def _argv(told: Deployment, over: Layout, kv: int | None, quantization: str | None) -> tuple[str, ...]:
    plan, share = told.plan, utilization(told)
    repo, revision = plan.source.get("repo"), plan.source.get("revision")
    if not repo:
        raise CannotExport(target="vLLM", why="the plan names no repository, and vLLM loads the original weights",
                           instead="plan from the repository: quantplan recommend ORG/MODEL")  # fmt: skip
    pinned = ("--revision", str(revision), "--tokenizer-revision", str(revision)) if revision else ()
    return (
        "vllm", "serve", str(repo), *pinned,
        "--served-model-name", told.alias,
        "--runner", "pooling" if plan.embeddings else "generate",
        "--dtype", "auto",
        *(("--quantization", quantization) if quantization else ()),
        "--max-model-len", str(plan.n_ctx_per_slot),
        "--max-num-seqs", str(plan.n_parallel),
        "--tensor-parallel-size", str(over.tensor),
        "--pipeline-parallel-size", str(over.pipeline),
        *(("--gpu-memory-utilization", f"{share:g}") if share is not None else ()),
        *(("--kv-cache-memory-bytes", str(kv)) if kv is not None else ()),
        "--host", told.target.host or "127.0.0.1",
        "--port", str(told.target.port),
    )  # fmt: skip


def _files(told: Deployment, over: Layout, argv: Sequence[str]) -> tuple[File, ...]:
    marks = f"# vLLM for {told.title}: its original weights.\n{commented(told)}"
    key = _KEY.format(path=shlex.quote(told.target.api_key_file or KEY_FILE.format(name=told.name)))
    if told.target.n_nodes == 1:
        own = (*argv, "--distributed-executor-backend", "mp") if over.n_parts > 1 else argv
        return (_script("vllm.sh", marks, key, _environment(told), command(own)),)
    n = told.target.n_nodes
    usage = (
        f"# vllm-node.sh RANK ADDRESS: on each of {n} nodes with its rank from 0, and the address of node 0 for all.\n"
        ': "${2:?the address of node 0}"\n'
    )
    nodes = (*argv, "--distributed-executor-backend", "mp", "--nnodes", str(n), "--node-rank", _RANK,
             "--master-addr", _MASTER, "--master-port", str(_MASTER_PORT))  # fmt: skip
    first = command(nodes)
    others = f'if [ "$1" != 0 ]; then\n{_unquoted(first)} \\\n  --headless\nfi'
    ray = (*argv, "--distributed-executor-backend", "ray")
    return (
        _script("vllm-node.sh", marks, usage, key, _environment(told), others, _unquoted(first)),
        _script("ray-head.sh", marks, _ray_usage(n), key, _environment(told), *_ray_head(told), command(ray)),
        _script("ray-worker.sh", marks, _ray_usage(n), _environment(told),
                command(("ray", "start", "--address", f"{_RANK}:{_RAY_PORT}", "--num-gpus", _cards(told), "--block"))
                .replace(f"'{_RANK}:{_RAY_PORT}'", f'"$1:{_RAY_PORT}"')),
    )  # fmt: skip


def _script(name: str, *parts: str) -> File:
    text = "\n".join(part.rstrip("\n") for part in parts if part)
    return File(name=name, text=f"{_HEAD}{text}\n", mode=0o755)


def _unquoted(text: str) -> str:
    """The script's own arguments are read by the shell."""
    return text.replace(f"'{_RANK}'", '"$1"').replace(f"'{_MASTER}'", '"$2"')


def _cards(told: Deployment) -> str:
    return str(told.gpu.count if told.gpu else 0)


def _ray_usage(n: int) -> str:
    return (
        f"# ray-head.sh ADDRESS on one node, with its address; ray-worker.sh ADDRESS on the {n - 1} others, the same.\n"
        ': "${1:?the address of the head}"\n'
    )


def _ray_head(told: Deployment) -> tuple[str, str]:
    """Ray on this node, and a wait for the cards of all."""
    total = int(_cards(told)) * told.target.n_nodes
    start = (f'ray start --head --node-ip-address "$1" --port {_RAY_PORT} --num-gpus {_cards(told)} '
             "--include-dashboard=false")  # fmt: skip
    wait = (
        "python3 - <<'END'\nimport time\nimport ray\nray.init(address=\"auto\")\n"
        f'while ray.cluster_resources().get("GPU", 0) < {total}:\n    time.sleep(2)\nEND'
    )
    return start, wait


def _environment(told: Deployment) -> str:
    lines = []
    if told.gpu is not None and told.plan.devices is not None:
        numbers = ",".join(re.sub(r"\D", "", name) for name in told.gpu.names)
        lines.append(f"export {_VISIBLE[told.gpu.backend]}={numbers}")
    if told.gpu is None and told.plan.cpu_range:
        lines.append(f"export VLLM_CPU_OMP_THREADS_BIND={told.plan.cpu_range}")
    elif told.gpu is None:
        lines.append(f"export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS={told.plan.threads}")
    return "".join(f"{line}\n" for line in lines)


def _notes(told: Deployment, over: Layout, quantization: str | None) -> tuple[str, ...]:
    plan = told.plan
    found = [
        f"vLLM serves {plan.source['repo']} in its own precision, not the {plan.quant} that was measured and gated: it "
        "reads no GGUF without a plugin",
        "the plan's KV types, batch sizes, load mode, prompt cache and placed tensors have no word in vLLM: its cache "
        "is in 16 bit",
        "vLLM has no limit of waiting requests: put nginx, Traefik or a gateway before it",
        "vLLM limits no memory of the host: whoever starts it has to allow what the weights take while "
        "they are loaded",
    ]  # fmt: skip
    if quantization:
        found.append("the weights in 16 bit do not fit: vLLM makes FP8 of them while it loads, which nobody has gated")
    if usable_bytes(told) is None:
        found.append(
            "the plan does not know the capacity of every device: whether the original weights fit was not looked at"
        )
    if not plan.source.get("revision"):
        found.append("the plan names no revision of the repository: it may be another one tomorrow")
    if told.gpu is None:
        found.append("a plan without cards needs vLLM's CPU build")
    if told.gpu is not None and told.gpu.count > 1:
        found.append(_links(told, over))
    if told.target.n_nodes > 1:
        found.append(
            "what goes between nodes is neither encrypted nor asks for a key: give them a network of their own"
        )
        found.append(f"each of {told.target.n_nodes} nodes has {_cards(told)} card(s) as the plan's; use either "
                     "vllm-node.sh (vLLM's own launch) or ray-head.sh and ray-worker.sh")  # fmt: skip
    if not is_loopback(told.target.host or "127.0.0.1"):
        found.append("its key guards /v1 only: /health, /metrics and others answer everybody who reaches it")
    return tuple(found)


def _links(told: Deployment, over: Layout) -> str:
    n = told.gpu.count if told.gpu else 1
    if over.tensor > 1:
        return (f"the {n} cards of a node share each layer, which wants NVLink between them; told that there is "
                "none, the export has them follow each other")  # fmt: skip
    return f"the {n} cards of a node follow each other: they have no NVLink, or do not divide the model's heads"


def _needs(told: Deployment) -> tuple[Need, ...]:
    # 0.14 is the first that is known to have it (vllm-ascend #6375), 0.15 for nodes without Ray; both may be older
    several = (Need(version=(0, 15), what="a launch of several nodes"),) if told.target.n_nodes > 1 else ()
    return (*several, Need(version=(0, 14), what="--kv-cache-memory-bytes"))


EXPORTER = Exporter(target="vLLM", write=write, needs=_needs)
