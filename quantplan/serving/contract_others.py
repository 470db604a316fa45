"""The contract with engines other than llama-server: what llama-cpp-python's server, vLLM and Ollama let one see."""

from __future__ import annotations

from collections.abc import Mapping

from quantplan.ggml_types import ggml_types
from quantplan.hardware.processes import argv_of, environment_of, listeners, mapped_files
from quantplan.llama.binding import LIBRARY_VARIABLE
from quantplan.llama.server_flags import stray_variables
from quantplan.serving.contract import Expected, Item, Tier, compared, unseen
from quantplan.serving.contract_remote import QUESTION, WRONG_KEY
from quantplan.serving.door import Answer, Door
from quantplan.serving.runtimes import PYTHON_VARIABLES, Runtime

_LONG_WORD = "hello "
# What each runtime has a word for, of the plan's own words: (plan's name, flag or variable).
LLAMA_CPP_PYTHON_FLAGS = (
    ("n_ctx_per_slot", "n_ctx"), ("n_batch", "n_batch"), ("n_ubatch", "n_ubatch"), ("threads", "n_threads"),
    ("threads_batch", "n_threads_batch"), ("n_gpu_layers", "n_gpu_layers"), ("type_k", "type_k"), ("type_v", "type_v"),
    ("flash_attn", "flash_attn"), ("load_mode", "use_mmap"),
)  # fmt: skip
VLLM_FLAGS = (("n_ctx_per_slot", "max-model-len"), ("n_parallel", "max-num-seqs"))
OLLAMA_VARIABLES = (
    ("n_ctx_per_slot", "OLLAMA_CONTEXT_LENGTH"), ("n_parallel", "OLLAMA_NUM_PARALLEL"),
    ("type_k", "OLLAMA_KV_CACHE_TYPE"), ("flash_attn", "OLLAMA_FLASH_ATTENTION"),
)  # fmt: skip
_NO_WORD = {
    Runtime.LLAMA_CPP_PYTHON: ("kv_unified", "cache_ram"),
    Runtime.VLLM: ("type_k", "type_v", "flash_attn", "n_batch", "n_ubatch", "n_gpu_layers", "threads", "cache_ram",
                   "load_mode", "model sha256"),
    Runtime.OLLAMA: ("type_v", "n_batch", "n_ubatch", "cache_ram", "load_mode"),
}  # fmt: skip


def which_runtime(door: Door) -> Runtime | None:
    """Who answers there, by what only they answer; None for somebody else. Raises ServerUnreachable."""
    models = door.get("/v1/models")
    owners = {model.get("owned_by") for model in models.at("data") or [] if isinstance(model, dict)}
    if "llamacpp" in owners or door.get("/props").at("build_info"):
        return Runtime.LLAMA_SERVER
    if "vllm" in owners:
        return Runtime.VLLM
    if "me" in owners:
        return Runtime.LLAMA_CPP_PYTHON
    if isinstance(door.get("/api/version").at("version"), str):
        return Runtime.OLLAMA
    if models.status == 401 and door.get("/health").at("status") == "ok":
        return Runtime.LLAMA_SERVER
    return None


def other_items(
    runtime: Runtime | None, expected: Expected, door: Door, *, pid: int | None, port: int, why_remote: str | None
) -> tuple[Item, ...]:
    """What can be said of another engine. An unknown one is asked only what every OpenAI server answers."""
    local = _local(runtime, expected, pid, port) if pid is not None else _out_of_sight(runtime, why_remote)
    return (*local, *_context(runtime, expected, door), *_common(expected, door), *_no_word(runtime))


def _common(expected: Expected, door: Door) -> list[Item]:
    """The model's name, a chat, a stream of it, and a wrong key."""
    plan, remote = expected.plan, Tier.REMOTE
    names = [model.get("id") for model in door.get("/v1/models").at("data") or []]
    asked = {"model": plan.model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0,
             "max_tokens": 16}  # fmt: skip
    chat = door.post("/v1/chat/completions", asked)
    stream, pieces = door.stream("/v1/chat/completions", {**asked, "stream": True})
    completion = door.post("/v1/completions", {"model": plan.model, "prompt": QUESTION, "max_tokens": 4})
    wrong = door.get("/v1/models", key=WRONG_KEY).status
    answered = isinstance(chat.at("choices", 0, "message", "content"), str) and chat.status == 200
    items = [
        compared("model", remote, planned=plan.model, found=names,
                 equal=any(name in (plan.model, f"{plan.model}:latest") for name in names)),
        compared("chat", remote, planned=200, found=chat.status, equal=answered),
        compared("completion", remote, planned=200, found=completion.status),
        compared("streaming", remote, planned="[DONE]", found=str(pieces[-1:])[:40],
                 equal=stream.status == 200 and bool(pieces) and pieces[-1] == "DONE"),
    ]  # fmt: skip
    if expected.key is not None or expected.public:
        items.append(compared("wrong key", remote, planned=401, found=wrong))
    return items


def _context(runtime: Runtime | None, expected: Expected, door: Door) -> list[Item]:
    plan, remote = expected.plan, Tier.REMOTE
    if runtime is Runtime.VLLM:
        told = door.get("/v1/models").at("data", 0, "max_model_len")
        items = [compared("n_ctx_per_slot", remote, planned=plan.n_ctx_per_slot, found=told)]
    elif runtime is Runtime.OLLAMA:
        told = door.get("/api/ps").at("models", 0, "context_length")
        if told is None:
            return [unseen("n_ctx_per_slot", remote, "no model is loaded")]
        return [compared("n_ctx_per_slot", remote, planned=plan.n_ctx_per_slot, found=told)]
    else:
        items = []
    over = door.post("/v1/completions", {"model": plan.model, "prompt": _LONG_WORD * (plan.n_ctx_per_slot + 1),
                                         "max_tokens": 1})  # fmt: skip
    items.append(compared("context limit", remote, planned="400", found=_refusal(over), equal=over.status == 400))
    if runtime is Runtime.LLAMA_CPP_PYTHON:
        said = _maximum(str(over.at("error", "message") or ""))
        items.append(compared("n_ctx_per_slot", remote, planned=plan.n_ctx_per_slot, found=said))
    return items


def _refusal(answer: Answer) -> str:
    return f"{answer.status} {str(answer.at('error', 'message') or '')[:80]}".strip()


def _maximum(message: str) -> int | None:
    """`This model's maximum context length is 1024 tokens, …` (llama_cpp/server/errors.py)."""
    import re

    found = re.search(r"maximum context length is (\d+)", message)
    return int(found[1]) if found else None


def _local(runtime: Runtime | None, expected: Expected, pid: int, port: int) -> list[Item]:
    if runtime is Runtime.LLAMA_CPP_PYTHON:
        items = _python_settings(expected, _words(argv_of(pid) or ()))
        items += [_one_slot(expected), *_mapped(expected, pid), _python_environment(environment_of(pid) or {})]
    elif runtime is Runtime.VLLM:
        told = _words(argv_of(pid) or ())
        items = [compared(name, Tier.LOCAL, planned=str(getattr(expected.plan, name)), found=told.get(word))
                 for name, word in VLLM_FLAGS]  # fmt: skip
    elif runtime is Runtime.OLLAMA:
        environ = environment_of(pid) or {}
        items = [_ollama_setting(expected, name, environ.get(variable)) for name, variable in OLLAMA_VARIABLES]
    else:
        return [unseen("settings", Tier.LOCAL, "this engine is not known")]
    return [*items, _bind(expected, pid, port)]


def _words(argv: tuple[str, ...]) -> dict[str, str]:
    """`--name value` and `--name=value` pairs."""
    found = {}
    for at, word in enumerate(argv):
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            found[name] = value if has_value else (argv[at + 1] if at + 1 < len(argv) else "")
    return found


def _python_settings(expected: Expected, told: Mapping[str, str]) -> list[Item]:
    plan, numbers = expected.plan, {name: str(kind.value) for name, kind in ggml_types().items()}
    wanted: dict[str, str] = {
        name: str(getattr(plan, name)) for name, _ in LLAMA_CPP_PYTHON_FLAGS if hasattr(plan, name)
    }
    wanted["type_k"], wanted["type_v"] = numbers[plan.type_k.upper()], numbers[plan.type_v.upper()]
    wanted["flash_attn"] = str(plan.flash_attn != "off").lower()
    wanted["load_mode"] = str("mmap" in plan.load_mode or plan.load_mode == "auto").lower()
    return [compared(name, Tier.LOCAL, planned=wanted[name], found=told.get(word))
            for name, word in LLAMA_CPP_PYTHON_FLAGS]  # fmt: skip


def _python_environment(environ: Mapping[str, str]) -> Item:
    """No variable that stands in for a flag, or changes kernels and threads."""
    strays = [name for name in stray_variables(environ) if name != LIBRARY_VARIABLE]
    found = sorted({*strays, *(name for name, value in environ.items() if value and name in PYTHON_VARIABLES)})
    return compared("environment", Tier.LOCAL, planned=[], found=found)


def _one_slot(expected: Expected) -> Item:
    return compared("n_parallel", Tier.LOCAL, planned=expected.plan.n_parallel, found=1,
                    why="llama-cpp-python's server answers one request at a time")  # fmt: skip


def _mapped(expected: Expected, pid: int) -> list[Item]:
    from quantplan.artifact.receipt import sha256_of

    name = "model sha256"
    mapped = mapped_files(pid, suffix=".gguf") or ()
    if not mapped or not expected.hashes:
        return [unseen(name, Tier.LOCAL, "no model file is mapped, or no hash is known")]
    digests = set()
    for one in mapped:
        try:
            digests.add(sha256_of(one.where))
        except OSError:
            return [unseen(name, Tier.LOCAL, f"{one.path} may not be read through the process")]
    found = sorted(digest[:16] for digest in digests)
    planned = sorted(digest[:16] for digest in expected.hashes)
    return [compared(name, Tier.LOCAL, planned=planned, found=found, equal=digests <= expected.hashes)]


def _ollama_setting(expected: Expected, name: str, found: str | None) -> Item:
    planned = str(getattr(expected.plan, name))
    if name == "flash_attn":
        planned = "0" if planned == "off" else "1"
    return compared(name, Tier.LOCAL, planned=planned, found=found)


def _bind(expected: Expected, pid: int, port: int) -> Item:
    found = [one for one in listeners(port) if one.pid == pid]
    if not found:
        return unseen("bind", Tier.LOCAL, "its listening socket was not found")
    private = all(one.is_loopback for one in found)
    return compared("bind", Tier.LOCAL, planned="any address, with a key" if expected.public else "loopback",
                    found=sorted({one.address for one in found}), equal=private or expected.public)  # fmt: skip


def _out_of_sight(runtime: Runtime | None, why: str | None) -> list[Item]:
    known = {
        Runtime.LLAMA_CPP_PYTHON: [name for name, _ in LLAMA_CPP_PYTHON_FLAGS if name != "n_ctx_per_slot"],
        Runtime.VLLM: ["n_parallel"],
        Runtime.OLLAMA: [name for name, _ in OLLAMA_VARIABLES if name != "n_ctx_per_slot"],
    }
    names = known[runtime] if runtime else ["settings"]
    return [unseen(name, Tier.LOCAL, why or "the process is out of sight") for name in names]


def _no_word(runtime: Runtime | None) -> list[Item]:
    """Settings of the plan that the engine cannot be told, so nothing can be verified about them."""
    names = _NO_WORD[runtime] if runtime else ()
    return [unseen(name, Tier.LOCAL, f"{runtime.value if runtime else 'it'} has no word for it", required=False)
            for name in names]  # fmt: skip
