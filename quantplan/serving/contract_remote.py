"""The remote tier: what llama-server says of itself over HTTP, and what it does when it is asked."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from quantplan.serving.contract import Expected, Item, Tier, compared, unseen
from quantplan.serving.door import Answer, Door
from quantplan.units import pad

REMOTE = Tier.REMOTE
CELLS_PAD = 256  # src/llama-context.cpp (0c1e570): a context is padded to 256
# common/common.h, common_params_sampling (0c1e570)
SAMPLING = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "dry_multiplier": 0.0, "mirostat": 0, "ignore_eos": 0,
}  # fmt: skip
QUESTION = "Hello"
WRONG_KEY = "not-a-key-of-this-server"
_N_ANSWER = 16
# Of the plan, what no endpoint of llama-server tells.
UNTOLD = (
    "kv_unified", "type_k", "type_v", "flash_attn", "n_batch", "n_ubatch", "n_gpu_layers", "threads", "threads_batch",
    "cache_ram", "load_mode", "tensor_split", "n_cpu_moe", "override_tensor", "numa", "cpu_range", "model sha256",
    "environment", "settings files", "unplanned settings",
)  # fmt: skip
_ALWAYS = ("tensor_split", "n_cpu_moe", "override_tensor", "numa", "cpu_range")


def remote_items(expected: Expected, door: Door) -> tuple[Item, ...]:
    """Everything that HTTP tells. Raises ServerUnreachable."""
    props, models, slots = door.get("/props"), door.get("/v1/models"), door.get("/slots")
    return (
        *_slots(expected, props, slots),
        *_model(expected, props, models),
        _build(expected, props),
        _template(expected, props),
        *_companions(expected, props, slots, door.get("/lora-adapters")),
        _defaults(expected, props),
        *_answers(expected, door),
        _limit(expected, door),
        _key(expected, door),
    )


def untold_items(expected: Expected) -> tuple[Item, ...]:
    """What only the process could tell, as not verifiable here; settings that the plan does not use are left out."""
    plan = expected.plan
    named = (name for name in UNTOLD if name not in _ALWAYS or getattr(plan, name))
    return tuple(unseen(name, Tier.LOCAL, "no endpoint tells it; the process is out of sight") for name in named)


def _slots(expected: Expected, props: Answer, slots: Answer) -> list[Item]:
    plan = expected.plan
    told = props.at("default_generation_settings", "n_ctx")
    each = [slot.get("n_ctx") for slot in slots.body] if isinstance(slots.body, list) else []
    found = sorted({told, *each} - {None})
    fine = [plan.n_ctx_per_slot] if plan.kv_unified else [plan.n_ctx_per_slot, pad(plan.n_ctx_per_slot, CELLS_PAD)]
    if not found:
        return [unseen(name, REMOTE, f"/props answers {props.status}") for name in ("n_ctx_per_slot", "n_parallel")]
    n_slots = props.at("total_slots") or len(each)
    return [
        compared("n_ctx_per_slot", REMOTE, planned=plan.n_ctx_per_slot, found=found[0] if len(found) == 1 else found,
                 equal=all(one in fine for one in found)),
        compared("n_parallel", REMOTE, planned=plan.n_parallel, found=n_slots),
    ]  # fmt: skip


def _model(expected: Expected, props: Answer, models: Answer) -> list[Item]:
    """The name, and what the engine counted: the bytes of the weights, the parameters and the preset's name."""
    plan = expected.plan
    names = [model.get("id") for model in models.at("data") or []]
    aliases = {name for model in models.at("data") or [] for name in model.get("aliases", [])}
    items = [compared("model", REMOTE, planned=plan.model, found=names, equal=plan.model in {*names, *aliases})]
    preset = props.at("model_ftype") or models.at("data", 0, "meta", "ftype")
    if preset:
        items.append(compared("quant", REMOTE, planned=plan.quant, found=preset,
                              equal=_preset(str(preset)) == plan.quant.upper()))  # fmt: skip
    for name, wanted, key in (("weight bytes", expected.weight_bytes, "size"), ("parameters", expected.n_params,
                                                                                "n_params")):  # fmt: skip
        found = models.at("data", 0, "meta", key)
        if wanted is not None and found is not None:
            items.append(compared(name, REMOTE, planned=wanted, found=found, required=False))
    return items


def _preset(told: str) -> str:
    """`Q4_K - Medium` as people write it, Q4_K_M (src/llama-model-loader.cpp, llama_model_ftype_name)."""
    words = told.removeprefix("(guessed) ").strip()
    base, _, rest = words.partition(" - ")
    size = {"Small": "_S", "Medium": "_M", "Large": "_L", "Extra small": "_XS"}.get(rest, "")
    return (base + size).upper()


def _build(expected: Expected, props: Answer) -> Item:
    """By commit: a build number says nothing in a tree that was cut off from its history."""
    told = props.at("build_info")
    if expected.commit is None:
        return unseen("build", REMOTE, "no receipt says which build the artifact was measured with", required=False)
    found = re.search(r"[0-9a-f]{7,40}$", str(told or ""))
    if found is None:
        return unseen("build", REMOTE, f"the server says {told!r}", planned=expected.commit)
    short = min(len(found[0]), len(expected.commit))
    return compared("build", REMOTE, planned=expected.commit, found=told,
                    equal=found[0][:short] == expected.commit[:short])  # fmt: skip


def _template(expected: Expected, props: Answer) -> Item:
    told = props.at("chat_template")
    if expected.template is None:
        return unseen("template", REMOTE, "the model file is not at hand, or has no template", required=False)
    if told is None:
        return unseen("template", REMOTE, f"/props answers {props.status}")
    return compared("template", REMOTE, planned=_digest(expected.template), found=_digest(str(told)))


def _digest(template: str) -> str:
    """The start of a template's sha256, ends of lines at its end apart."""
    return hashlib.sha256(template.rstrip("\n").encode()).hexdigest()[:16]


def _companions(expected: Expected, props: Answer, slots: Answer, adapters: Answer) -> list[Item]:
    """A projector shows in the modalities, a draft in the slots, and adapters have an endpoint."""
    items, plan = [], expected.plan
    senses = props.at("modalities")
    if isinstance(senses, dict):
        items.append(compared("mmproj", REMOTE, planned=plan.mmproj is not None, found=any(senses.values()),
                              why="takes images or sound"))  # fmt: skip
    if isinstance(adapters.body, list):
        items.append(compared("lora", REMOTE, planned=0, found=len(adapters.body)))
    if isinstance(slots.body, list) and slots.body and "speculative" in slots.body[0]:
        items.append(compared("draft", REMOTE, planned=plan.draft is not None, found=slots.body[0]["speculative"],
                              why="speculates"))  # fmt: skip
    return items


def _defaults(expected: Expected, props: Answer) -> Item:
    """How every request is sampled that does not say otherwise: as the engine does untold, unless the model says it."""
    name, params = "request defaults", props.at("default_generation_settings", "params")
    if not isinstance(params, dict):
        return unseen(name, REMOTE, f"/props answers {props.status}")
    if expected.own_sampling is not False:
        why = "the model file brings its own" if expected.own_sampling else "the model file is not at hand"
        return unseen(name, REMOTE, why, required=False)
    found = {key: params[key] for key, value in SAMPLING.items() if key in params and not _close(params[key], value)}
    return compared(name, REMOTE, planned={key: SAMPLING[key] for key in found}, found=found)


def _close(found: object, planned: float) -> bool:
    return isinstance(found, (int, float)) and abs(found - planned) < 1e-6


def _answers(expected: Expected, door: Door) -> list[Item]:
    """A chat, a completion of the same text, and the chat streamed: what one says the others have to say too."""
    model = expected.plan.model
    messages = [{"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": _N_ANSWER, "cache_prompt": False}
    chat = door.post("/v1/chat/completions", {**asked, "messages": messages})
    rendered = door.post("/apply-template", {"messages": messages}).at("prompt")
    words = {"content": rendered or QUESTION, "add_special": True, "parse_special": True}
    n_prompt = len(door.post("/tokenize", words).at("tokens") or ())
    completion = door.post("/completion", {**asked, "prompt": rendered or QUESTION, "n_predict": _N_ANSWER})
    stream, pieces = door.stream(
        "/v1/chat/completions",
        {**asked, "messages": messages, "stream": True, "stream_options": {"include_usage": True}},
    )
    said = _said(chat.at("choices", 0, "message"))
    streamed = "".join(_said((piece.get("choices") or [{}])[0].get("delta")) for piece in pieces
                       if isinstance(piece, dict))  # fmt: skip
    return [
        _chat(chat, n_prompt if rendered else None),
        _completion(completion, said, chat),
        _stream(stream, pieces, streamed, said),
    ]


def _said(message: Any) -> str:
    """What a model says: its thoughts first, where the template sets them apart."""
    if not isinstance(message, dict):
        return ""
    return str(message.get("reasoning_content") or "") + str(message.get("content") or "")


def _chat(chat: Answer, n_prompt: int | None) -> Item:
    """Answered, ended for a reason, within its tokens, and with the prompt's own count."""
    counted = chat.at("usage", "prompt_tokens")
    wrong = _wrong(chat)
    if wrong is None and chat.at("choices", 0, "finish_reason") not in ("stop", "length", "tool_calls"):
        wrong = f"ended for {chat.at('choices', 0, 'finish_reason')!r}"
    if wrong is None and not 0 < (chat.at("usage", "completion_tokens") or 0) <= _N_ANSWER:
        wrong = f"{chat.at('usage', 'completion_tokens')} tokens were asked to be at most {_N_ANSWER}"
    if wrong is None and n_prompt is not None and counted != n_prompt:
        wrong = f"counts {counted} tokens of prompt, its tokenizer {n_prompt}"
    return compared("chat", REMOTE, planned="a right answer", found=wrong or "a right answer")


def _completion(completion: Answer, said: str, chat: Answer) -> Item:
    """The template's own text, completed: it begins as the chat's answer does (greedy, one close call may differ)."""
    wrong, text = _wrong(completion), str(completion.at("content") or "")
    if wrong is None and chat.status == 200 and not _alike(text, said):
        wrong = f"completes {text[:40]!r} where the chat says {said[:40]!r}"
    return compared("completion", REMOTE, planned="a right answer", found=wrong or "a right answer")


def _stream(stream: Answer, pieces: tuple[Any, ...], streamed: str, said: str) -> Item:
    wrong = None if stream.status == 200 else f"answers {stream.status}"
    if wrong is None and (len(pieces) < 2 or pieces[-1] != "DONE"):
        wrong = f"{len(pieces)} pieces, the last {str(pieces[-1:])[:40]}"
    if wrong is None and not _alike(streamed, said):
        wrong = f"streams {streamed[:40]!r} where the chat says {said[:40]!r}"
    return compared("streaming", REMOTE, planned="a right answer", found=wrong or "a right answer")


def _alike(one: str, other: str) -> bool:
    """The same beginning: two slots may round differently, which turns a close call late in an answer. Thoughts are
    marked in one and set apart in the other: then there is nothing to compare."""
    if "<" in one[:16] or "<" in other[:16]:
        return True
    first, second = one.strip(), other.strip()
    n = min(len(first), len(second), 4)
    return first[:n] == second[:n] and (n > 0 or first == second)


def _wrong(answer: Answer) -> str | None:
    if answer.status != 200:
        return f"answers {answer.status}: {str(answer.at('error', 'message') or answer.text)[:120]}"
    return None if isinstance(answer.body, dict) else "answers no JSON"


def _limit(expected: Expected, door: Door) -> Item:
    """One token over the context gets a clean 400 that names the planned size."""
    plan, name = expected.plan, "context limit"
    fine = [plan.n_ctx_per_slot] if plan.kv_unified else [plan.n_ctx_per_slot, pad(plan.n_ctx_per_slot, CELLS_PAD)]
    token = (door.post("/tokenize", {"content": "a"}).at("tokens") or [0])[-1]
    over = door.post("/v1/completions", {"model": plan.model, "prompt": [token] * (fine[-1] + 1), "max_tokens": 1})
    told = over.at("error", "n_ctx")
    clean = over.status == 400 and isinstance(over.at("error", "message"), str)
    found = f"{over.status}" + (f", n_ctx {told}" if told is not None else "")
    return compared(name, REMOTE, planned=f"400, n_ctx {plan.n_ctx_per_slot}", found=found,
                    equal=clean and (told is None or told in fine))  # fmt: skip


def _key(expected: Expected, door: Door) -> Item:
    """A wrong key gets 401 where there is a key; where there is none, only a loopback address may be open."""
    from urllib.parse import urlsplit

    from quantplan.serving.bind import is_loopback

    wrong = door.get("/v1/models", key=WRONG_KEY).status
    if expected.key is not None or expected.public:
        return compared("wrong key", REMOTE, planned=401, found=wrong)
    local = is_loopback(urlsplit(door.url).hostname or "")
    return compared("wrong key", REMOTE, planned="401, or no key on a loopback address", found=wrong,
                    equal=wrong == 401 or (local and wrong == 200))  # fmt: skip
