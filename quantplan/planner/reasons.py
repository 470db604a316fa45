"""Why a plan is as it is, and what each alternative gives and takes: sentences from the numbers that decided."""

from __future__ import annotations

from quantplan.memory.estimate import HOST
from quantplan.planner.candidates import Choice
from quantplan.planner.instruments import Instruments, contexts, least_context
from quantplan.planner.nature import Kind, Nature
from quantplan.planner.request import N_UBATCHES, READING_PER_S, Objective, PlanRequest
from quantplan.planner.score import HARM_NATS, WEIGHTS, balance, first_token_seconds, request_seconds

_AIMS = {
    Objective.BALANCED: "balanced: little damage at a good speed, each bringing less the more there is of it",
    Objective.QUALITY: f"quality: the least damage among plans that keep up with reading ({READING_PER_S:g} tokens/s)",
    Objective.SPEED: "speed: the most tokens a second of the presets that are not advised against",
    Objective.CONTEXT: f"context: the longest that keeps up with reading ({READING_PER_S:g} tokens/s)",
    Objective.THROUGHPUT: f"throughput: the most tokens a second of all slots, each at least {READING_PER_S:g}",
    Objective.LATENCY: "latency: the shortest time to the first token",
}


def reasons(
    choice: Choice, others: tuple[Choice, ...], request: PlanRequest, tools: Instruments, nature: Nature
) -> tuple[str, ...]:
    """Why this choice, the weightiest first."""
    said = [_AIMS[request.objective], *_preset(choice, others, request, tools), _offload(choice, tools)]
    said += _context(choice, request, tools)
    setting = choice.setting
    if setting.type_k not in ("f16", "f32", "bf16") and nature.kind is not Kind.RECURRENT:
        said.append(f"cache in {setting.type_k}/{setting.type_v}: half of f16 or less, so that more fits on the fast "
                    "devices; a quantized V needs flash attention")  # fmt: skip
    if setting.n_ubatch != N_UBATCHES[0] and not nature.embeds:
        copied = setting.n_cpu_moe > 0 or setting.n_gpu_layers <= tools.n_layer
        why = "weights on the host are copied to the GPU once a micro-batch" if copied else "fewer, larger steps"
        said.append(f"micro-batch {setting.n_ubatch:,}: {why}, so long prompts go faster")
    if nature.kind is Kind.HYBRID and setting.n_parallel == 1:
        said.append("1 slot: the server's own default of 4 would take four times the recurrent state")
    if tools.gpus and setting.devices != tools.gpus:
        left = [name for name in tools.gpus if name not in setting.devices]
        said.append(f"{', '.join(left)} stays unused: it would not make this plan better")
    return tuple(said)


def _preset(choice: Choice, others: tuple[Choice, ...], request: PlanRequest, tools: Instruments) -> list[str]:
    quant = choice.setting.quant
    objection = tools.objection(quant)
    if objection is not None:
        asked = request.any_preset and len(request.quants) == 1
        return [f"{'as asked, but' if asked else 'nothing better fits:'} {objection}"]
    if tools.own is not None:
        return [f"{quant}: the file's own; a finished file is not quantized again"]
    if len(request.quants) == 1:
        return [f"{quant}: no other preset was to choose from"]
    said = []
    better = [other for other in others if other.merits.damage < choice.merits.damage
              and other.setting.n_ctx == choice.setting.n_ctx]  # fmt: skip
    if better:
        said.append(_instead(max(better, key=lambda other: other.key), choice))
    smaller = [other for other in others if other.merits.damage > choice.merits.damage
               and tools.objection(other.setting.quant) is None]  # fmt: skip
    if smaller:
        said.append(_instead(max(smaller, key=lambda other: other.key), choice))
    return said or [f"{quant}: the least damage of all presets that were to choose from"]


def _instead(other: Choice, choice: Choice) -> str:
    """Why not the other preset."""
    a, b = choice.merits, other.merits
    return (
        f"{other.setting.quant} instead: {_times(b.decode, a.decode)} ({b.decode:.3g} tokens/s), expected damage "
        f"{b.damage:.2g} instead of {a.damage:.2g} nats"
    )


def _times(new: float, old: float) -> str:
    if old <= 0 or abs(new / old - 1) < 0.015:
        return "as fast"
    percent = round(100 * (new / old - 1))
    return f"{percent} % faster" if percent > 0 else f"{-percent} % slower"


def _offload(choice: Choice, tools: Instruments) -> str:
    setting, n = choice.setting, tools.n_layer + 1
    if not tools.gpus:
        return "no GPU here: everything in RAM"
    if not setting.devices:
        return "on the CPU alone"
    if setting.n_cpu_moe:
        share = f"{tools.expert_share:.0%}" if tools.expert_share < 1 else "a part"
        layers = "" if setting.n_gpu_layers >= n else f"; {n - setting.n_gpu_layers} layers are wholly on the host"
        return (f"experts of the first {setting.n_cpu_moe} layers on the host: a token reads {share} of them; attention"
                f" and caches, which every token reads whole, stay on the GPU{layers}")  # fmt: skip
    if setting.n_gpu_layers >= n:
        return f"every layer on {' and '.join(setting.devices)}" + _cut(choice)
    if setting.n_gpu_layers == 0:
        return "every layer on the host; the GPU helps with long prompts only"
    return (f"{setting.n_gpu_layers} of {n} layers fit on {' and '.join(setting.devices)}, the others are read from RAM"
            f" for every token{_cut(choice)}")  # fmt: skip


def _cut(choice: Choice) -> str:
    split = choice.setting.tensor_split
    return f", {' + '.join(str(count) for count in split)} layers" if split else ""


def _context(choice: Choice, request: PlanRequest, tools: Instruments) -> list[str]:
    n_ctx = choice.setting.n_ctx
    if request.n_ctx is not None:
        said = f"{n_ctx:,} tokens of context, as asked"
        trained = tools.n_ctx_train
        if trained and n_ctx > trained:
            return [f"{said}: more than the {trained:,} it was trained for, answers degrade beyond"]
        return [said]
    if request.objective is Objective.CONTEXT and n_ctx != tools.n_ctx_train:
        longer = next((one for one in contexts(request, tools.n_ctx_train) if one > n_ctx), None)
        return [f"{n_ctx:,} tokens of context: {longer:,} would be slower than reading, or not fit"] if longer else []
    most = contexts(request, tools.n_ctx_train)[-1]
    if n_ctx == tools.n_ctx_train:
        return [f"{n_ctx:,} tokens of context: all it was trained for"]
    if n_ctx == most:
        return [f"{n_ctx:,} tokens of context cost neither preset nor speed; more on request"]
    least = least_context(request, tools.n_ctx_train)
    grown = "more than the usual, at no cost" if n_ctx > least else "the usual"
    return [f"{n_ctx:,} tokens of context: {grown}; the double would cost preset, cache type or offload"]


def trade(other: Choice, choice: Choice) -> str:
    """What an alternative gives and takes against the plan, in few words."""
    a, b = choice.merits, other.merits
    said = []
    if b.damage != a.damage:
        said.append("less damage" if b.damage < a.damage else "more damage")
    if _times(b.decode, a.decode) != "as fast":
        said.append(_times(b.decode, a.decode))
    if other.setting.n_ctx != choice.setting.n_ctx:
        said.append(f"{other.setting.n_ctx / choice.setting.n_ctx:.3g} × the context")
    if other.setting.type_k != choice.setting.type_k:
        said.append(f"cache in {other.setting.type_k}")
    used = {need.name: need.total_bytes for need in choice.needs}
    host = next(need.total_bytes for need in other.needs if need.name == HOST) - used[HOST]
    if abs(host) > 1024**3:
        said.append(f"{abs(host) / 1024**3:.0f} GiB {'more' if host > 0 else 'less'} of RAM")
    return ", ".join(said)


def arithmetic(choice: Choice, request: PlanRequest) -> dict[str, float]:
    """The numbers behind the key of `balanced`, and the times of the workload."""
    merits, workload = choice.merits, request.workload
    return {
        "worth": balance(merits, request),
        "damage_nats": merits.damage,
        "harm_nats": HARM_NATS,
        "weight": WEIGHTS[request.use],
        "cache_worth": merits.cache,
        "decode_tokens_per_s": merits.decode,
        "total_decode_tokens_per_s": merits.total,
        "prefill_tokens_per_s": merits.prefill,
        "request_s": request_seconds(merits, workload),
        "first_token_s": first_token_seconds(merits, workload),
    }
