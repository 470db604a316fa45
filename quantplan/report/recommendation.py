"""A recommendation as text: the short answer first, then memory by part, then why."""

from __future__ import annotations

from quantplan.artifact.plan_file import Figure, Plan, PlannedDevice
from quantplan.hardware.facts import HostFacts
from quantplan.model.facts import ModelFacts
from quantplan.planner.search import Found
from quantplan.units import GIB, MIB, format_size

_BAR = 24
_PARTS = ("model", "context", "compute", "output", "overhead")


def recommendation_text(
    plan: Plan, found: Found, facts: ModelFacts, host: HostFacts, *, following: str, explain: bool
) -> str:
    """What recommend prints. With `explain`, alternatives, rejections and origins too."""
    lines = [
        f"{facts.id}: {facts.parameters / 1e9:.2f} B parameters, {facts.n_layer} layers ({facts.arch}), "
        f"trained for {facts.n_ctx_train:,} tokens",
        _host_line(host),
        "",
        f"  quant    {plan.quant}",
        f"  context  {plan.n_ctx_per_slot:,} tokens a slot, {plan.n_parallel} slot(s), "
        f"cache {plan.type_k}/{plan.type_v}",
        f"  offload  {_offload(plan, facts, host)}",
        f"  speed    {_speed(plan.decode_tokens_per_s)}",
        f"  quality  {_quality(plan)}",
        "",
        *_memory(plan),
        "",
        "Why",
        *(f"  - {reason}" for reason in found.choice.why),
    ]
    if explain:
        lines += _explained(plan, found, facts)
    return "\n".join([*lines, "", f"Next: {following}"])


def _host_line(host: HostFacts) -> str:
    gpus = ", ".join(f"{gpu.product} {gpu.total_bytes / GIB:.0f} GiB" for gpu in host.gpus) or "no GPU"
    limit = " (limit of a control group)" if host.ram.limit_bytes else ""
    return (
        f"this host: {gpus}; {host.cpu.model or 'CPU'}, {host.cpu.n_threads} thread(s); "
        f"RAM {host.ram.total_bytes / GIB:.1f} GiB{limit}, {host.ram.available_bytes / GIB:.1f} GiB available"
    )


def _offload(plan: Plan, facts: ModelFacts, host: HostFacts) -> str:
    if not host.gpus:
        return "no GPU here: everything in RAM"
    return f"{plan.n_gpu_layers} of {facts.n_layer + 1} layers on the GPU (the head counts as one)"


def _speed(decode: Figure | None) -> str:
    if decode is None:
        return "not known for this host yet: nobody has measured it"
    return f"{decode.value:.0f} tokens/s ({decode.low:.0f} to {decode.high:.0f})"


def _quality(plan: Plan) -> str:
    if plan.quality is None or plan.quality.kld_mean is None:
        return f"no figure for {plan.quant} yet"
    return f"mean KLD {plan.quality.kld_mean:g} nats a token ({plan.quality.origin.split(':')[0]})"


def _memory(plan: Plan) -> list[str]:
    header = f"  {'MiB':<8}" + "".join(f"{part:>10}" for part in (*_PARTS, "total", "free"))
    return [header, *(_device_line(device) for device in plan.memory)]


def _device_line(device: PlannedDevice) -> str:
    parts = (device.model_bytes, device.context_bytes, device.compute_bytes, device.output_bytes, device.overhead_bytes)
    cells = "".join(f"{-(-part // MIB):>10,}" for part in (*parts, device.total_bytes))
    if device.free_bytes is None:
        return f"  {device.name:<8}{cells}{'?':>10}"
    share = min(1.0, device.total_bytes / device.free_bytes) if device.free_bytes else 1.0
    bar = "#" * round(share * _BAR)
    return f"  {device.name:<8}{cells}{device.free_bytes // MIB:>10,}  [{bar:<{_BAR}}] {100 * share:.0f} %"


def _explained(plan: Plan, found: Found, facts: ModelFacts) -> list[str]:
    lines = ["", "Alternatives"]
    for choice in found.alternatives:
        total = sum(need.total_bytes for need in choice.needs)
        lines.append(f"  {choice.setting.quant:<8} {format_size(total):>10}  {'; '.join(choice.why)}")
    if found.rejected:
        lines += ["", "Rejected", *(f"  {one.what}: {one.why}" for one in found.rejected)]
    lines += ["", "Where numbers come from", f"  model    {facts.origin.value}"]
    lines.append(
        "  memory   calculated from the tensors, the cache's cells and the engine's compute graph (llama.cpp 0c1e570)"
    )
    lines += [f"  {name}  {figure.origin}" for name, figure in (("speed   ", plan.decode_tokens_per_s),) if figure]
    lines += [f"  quality  {plan.quality.origin}"] if plan.quality else []
    lines += [f"  margin   {m.device}: {format_size(m.bytes)} stay free for {m.why}" for m in plan.margin]
    return lines
