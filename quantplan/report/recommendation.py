"""A recommendation as text: the short answer, memory by device, why, alternatives, the command."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.artifact.plan_file import Figure, Plan, PlannedDevice, Quality
from quantplan.hardware.facts import HostFacts
from quantplan.model.facts import ModelFacts
from quantplan.units import GIB, MIB

_BAR = 24
_WIDTH = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One more plan, and what it gives and takes."""

    plan: Plan
    trade: str
    decode_per_s: float  # at the depth that all are compared at


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is shown. `start` is the decode speed at the depth that candidates were compared at."""

    facts: ModelFacts
    host: HostFacts
    plan: Plan
    is_what: tuple[str, ...]
    depth: int
    start: tuple[int, float] | None
    first_token: tuple[int, float] | None
    total_per_s: float | None
    load: Figure | None
    why: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    next: str
    explained: tuple[str, ...] = ()


def recommendation_text(answer: Answer) -> str:
    """What recommend prints."""
    facts, plan = answer.facts, answer.plan
    lines = [
        f"{facts.id}: {facts.parameters / 1e9:.2f} B parameters, {facts.n_layer} layers ({facts.arch}), "
        f"trained for {facts.n_ctx_train:,} tokens",
        *(f"  {said}" for said in answer.is_what),
        _host_line(answer.host),
        "",
        f"  quant    {plan.quant}",
        f"  context  {plan.n_ctx_per_slot:,} tokens a slot, {plan.n_parallel} slot(s), "
        f"cache {plan.type_k}/{plan.type_v}",
        f"  offload  {offload_text(plan, facts.n_layer, answer.host)}",
        *_speed(answer),
        *_load(answer.load),
        f"  quality  {_quality(plan.quality, plan.quant)}",
        "",
        *(_device_line(device) for device in plan.memory),
        *_prompt_cache(plan),
        "",
        "Why",
        *_bullets(answer.why),
    ]
    if answer.alternatives:
        lines += ["", f"Alternatives (speeds at {answer.depth:,} tokens of context)", *_alternatives(answer)]
    lines += answer.explained
    return "\n".join([*lines, "", "Command", f"  {shlex.join(plan.argv)}", "", f"Next: {answer.next}"])


def _host_line(host: HostFacts) -> str:
    counted: dict[str, int] = {}
    for gpu in host.gpus:
        label = f"{gpu.product} {gpu.total_bytes / GIB:.0f} GiB"
        counted[label] = counted.get(label, 0) + 1
    gpus = ", ".join(f"{n} × {label}" if n > 1 else label for label, n in counted.items()) or "no GPU"
    limit = " (limit of a control group)" if host.ram.limit_bytes else ""
    return (
        f"{host.profile or 'this host'}: {gpus}; {host.cpu.model or 'CPU'}, {host.cpu.n_threads} thread(s); "
        f"RAM {host.ram.total_bytes / GIB:.1f} GiB{limit}, {host.ram.available_bytes / GIB:.1f} GiB available"
    )


def offload_text(plan: Plan, n_layer: int, host: HostFacts) -> str:
    """Where the layers are, in words."""
    gpus = tuple(gpu.name for gpu in host.gpus)
    return placement_text(
        plan.devices, plan.n_gpu_layers, n_layer, gpus=gpus, tensor_split=plan.tensor_split, n_cpu_moe=plan.n_cpu_moe
    )


def placement_text(
    used: Sequence[str] | None, n_gpu_layers: int, n_layer: int, *, gpus: Sequence[str], tensor_split: Sequence[float],
    n_cpu_moe: int,
) -> str:  # fmt: skip
    """Where the layers are, in words; `used` are the GPUs that the server may use, None for all, () for none."""
    n = n_layer + 1
    if not gpus:
        return "no GPU: everything in RAM"
    if used == () or n_gpu_layers == 0:
        return "the CPU alone" if used == () else f"0 of {n} layers on the GPU"
    split = f" ({' + '.join(f'{count:g}' for count in tensor_split)})" if tensor_split else ""
    layers = f"all {n}" if n_gpu_layers >= n else f"{n_gpu_layers} of {n}"
    moe = f", experts of {n_cpu_moe} layer(s) on the host" if n_cpu_moe else ""
    return f"{layers} layers on {' + '.join(used or gpus)}{split} (the head counts as one){moe}"


def _speed(answer: Answer) -> list[str]:
    decode, prefill = answer.plan.decode_tokens_per_s, answer.plan.prefill_tokens_per_s
    if decode is None and prefill is None:
        return ["  speed    not known for this host yet: a device's memory bandwidth is not known"]
    lines = []
    if decode is not None:
        start = f"; {rate(answer.start[1])} at {answer.start[0]:,}" if answer.start else ""
        total = f"; {rate(answer.total_per_s)} from all slots together" if answer.total_per_s else ""
        lines.append(f"  speed    {_range(decode)} tokens/s at {answer.plan.n_ctx_per_slot:,} tokens of context"
                     f"{start}{total}")  # fmt: skip
    if prefill is not None:
        first = f"; a prompt of {answer.first_token[0]:,} answers after {answer.first_token[1]:.2g} s" \
            if answer.first_token else ""  # fmt: skip
        lines.append(f"  {'prompt' if lines else 'speed '}   {_range(prefill)} tokens/s{first}")
    return lines


def _load(load: Figure | None) -> list[str]:
    """The seconds that a cold disk takes, where its rate was measured."""
    return [] if load is None else [f"  load     {rate(load.value)} s from a cold disk ({_span(load)})"]


def _span(figure: Figure) -> str:
    return f"{rate(figure.low)} to {rate(figure.high)}"


def _range(figure: Figure) -> str:
    return f"{rate(figure.value)} ({_span(figure)})"


def rate(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _quality(quality: Quality | None, quant: str) -> str:
    if quality is None or quality.kld_mean is None:
        return f"no figure for {quant} yet"
    spread = f" ({quality.low:.2g} to {quality.high:.2g})" if quality.low is not None and quality.high else ""
    ppl = f", perplexity × {quality.ppl_ratio:.4g}" if quality.ppl_ratio else ""
    how = quality.origin.split(":")[0]
    return f"mean KLD {quality.kld_mean:.2g}{spread} nats a token{ppl} ({how})"


def _device_line(device: PlannedDevice) -> str:
    parts = (("weights", device.model_bytes), ("cache", device.context_bytes), ("compute", device.compute_bytes),
             ("output", device.output_bytes), ("driver", device.overhead_bytes))  # fmt: skip
    told = "  ".join(f"{name} {-(-part // MIB):,}" for name, part in parts if part)
    total = f"{-(-device.total_bytes // MIB):,}"
    if device.free_bytes is None:
        return f"  {device.name:<8} {total:>8} MiB of ?          {told}"
    share = min(1.0, device.total_bytes / device.free_bytes) if device.free_bytes else 1.0
    bar = "#" * round(share * _BAR)
    used = f"{total:>8} of {device.free_bytes // MIB:>8,} MiB"
    return f"  {device.name:<8} {used} [{bar:<{_BAR}}] {100 * share:3.0f} %  {told}"


def _prompt_cache(plan: Plan) -> list[str]:
    if not plan.cache_ram_bytes:
        return ["  (no RAM is left for a prompt cache)"]
    return [f"  (while serving, the prompt cache may take up to {plan.cache_ram_bytes // MIB:,} MiB of RAM more)"]


def _bullets(said: tuple[str, ...]) -> list[str]:
    lines = []
    for one in said:
        lines += textwrap.wrap(one, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines


def _alternatives(answer: Answer) -> list[str]:
    rows = []
    for one in answer.alternatives:
        plan = one.plan
        speed = f"{rate(one.decode_per_s)} tokens/s" if one.decode_per_s else "speed unknown"
        total = sum(device.total_bytes for device in plan.memory) / GIB
        rows.append((plan.quant, f"{plan.n_ctx_per_slot:,} tokens", _where(plan, answer), speed, f"{total:.1f} GiB",
                     one.trade))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[5]}"
            for row in rows]  # fmt: skip


def _where(plan: Plan, answer: Answer) -> str:
    n = answer.facts.n_layer + 1
    if not answer.host.gpus or plan.devices == ():
        return "CPU"
    moe = f", {plan.n_cpu_moe} experts on host" if plan.n_cpu_moe else ""
    return f"{plan.n_gpu_layers}/{n} layers{moe}"
