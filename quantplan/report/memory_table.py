"""An estimate as text: memory by device and part in MiB, the verdict, what to change, and the speed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantplan.artifact.plan_file import Figure
from quantplan.memory.estimate import DeviceMemory, MemoryEstimate
from quantplan.rehearsal.ask import Answer
from quantplan.rehearsal.speed_answer import SpeedAnswer
from quantplan.units import MIB

_PARTS = ("model", "context", "compute", "output", "overhead", "extra")
_WORDS = {"n_ctx": "context", "n_gpu_layers": "layers on the GPU", "cache type": "cache type"}


def memory_text(answer: Answer, *, compare: bool = False) -> str:
    """The table, the verdict and what was assumed."""
    shown = answer.measured or answer.memory
    ctx = answer.ctx
    whose = "llama-server" if shown.reserve == "server" else "llama-fit-params"
    lines = [
        f"{answer.facts.id} in {answer.quant}, {answer.facts.n_layer} layers ({answer.facts.arch}): "
        f"{ctx.n_cells:,} tokens a slot, {ctx.n_slots} slot(s){' sharing one cache' if ctx.unified else ''}, "
        f"cache {ctx.type_k.lower()}/{ctx.type_v.lower()}, reserved as {whose} does, {_origin(shown)}",
        "",
        *_table(shown, answer),
    ]
    if compare and answer.measured is not None:
        lines += ["", "calculated minus measured, MiB", *_differences(answer.memory, answer.measured)]
    lines += ["", _verdict(answer)]
    lines += [f"  fits with {_WORDS[remedy.what]} {_number(remedy.value)}" for remedy in answer.remedies]
    if answer.speed is not None:
        lines += ["", *_speed(answer.speed)]
    if answer.assumed:
        lines += ["", f"Assumed, as llama-server would: {'; '.join(answer.assumed)}"]
    return "\n".join(lines)


def _origin(memory: MemoryEstimate) -> str:
    build = f" by llama.cpp {memory.engine_build}" if memory.engine_build else ""
    return f"{memory.origin.value}{build}" + ("" if memory.compute_known else " (compute: lower bound)")


def _table(memory: MemoryEstimate, answer: Answer) -> list[str]:
    rooms = {room.name: room for room in answer.rooms}
    used = [part for part in _PARTS if any(getattr(d, f"{part}_bytes") for d in memory.devices)]
    rows = [["MiB", *used, "total", "free", "of"]]
    for device in memory.devices:
        room = rooms.get(device.name)
        free, size = (room.free_bytes, room.capacity_bytes) if room else (None, None)
        rows.append([device.name, *(_mib(getattr(device, f"{part}_bytes")) for part in used), _mib(device.total_bytes),
                     _mib(free), _mib(size)])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    told = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [*told, *_host_details(memory.devices[-1])]


def _host_details(host: DeviceMemory) -> list[str]:
    said = []
    if host.repacked_bytes:
        said.append(f"{_mib(host.repacked_bytes)} of the model are repacked copies")
    if host.mapped_bytes:
        said.append(f"{_mib(host.mapped_bytes)} of the file stay mapped")
    if host.prompt_cache_bytes:
        said.append(f"the prompt cache may add up to {_mib(host.prompt_cache_bytes)}")
    return [f"  ({'; '.join(said)})"] if said else []


def _differences(calculated: MemoryEstimate, measured: MemoryEstimate) -> list[str]:
    lines = []
    for device in measured.devices:
        own = calculated.device(device.name)
        weights = ("mapped", "repacked") if device.mapped_bytes else ("model",)
        parts = ", ".join(
            f"{part} {(getattr(own, f'{part}_bytes') - getattr(device, f'{part}_bytes')) / MIB:+.2f}"
            for part in (*weights, "context", "compute", "output")
        )
        lines.append(f"  {device.name}: {parts}")
    return lines


def _verdict(answer: Answer) -> str:
    if answer.fits:
        spare: Sequence[str] = [f"{_mib(-answer.short_bytes(room.name))} MiB to spare on {room.name}"
                                for room in answer.rooms if room.free_bytes is not None]  # fmt: skip
        return f"Fits: {', '.join(spare)}." if spare else "Nothing is known of this host's free memory."
    short = [f"{_mib(answer.short_bytes(room.name))} MiB too little on {room.name}" for room in answer.rooms
             if answer.short_bytes(room.name) > 0]  # fmt: skip
    return f"Does not fit: {', '.join(short)}." + ("" if answer.remedies else " No single change makes it fit.")


def _speed(speed: SpeedAnswer) -> list[str]:
    """Tokens a second with their range, and what they rest on."""
    decode, prefill, first = speed.decode_tokens_per_s, speed.prefill_tokens_per_s, speed.time_to_first_token_s
    if decode is None or prefill is None:
        return [f"Speed is not known: {speed.why}."]
    told = f"Speed at {speed.n_depth:,} tokens: decode {_range(decode)} and prefill {_range(prefill)} tokens/s"
    if first is not None:
        told += f"; the first token of {speed.n_prompt:,} after {_range(first)} s"
    if speed.load_s is not None:
        told += f"; loading takes {_range(speed.load_s)} s"
    origins = dict.fromkeys((decode.origin, prefill.origin))
    return [told, *(f"  ({origin})" for origin in origins)]


def _range(figure: Figure) -> str:
    return f"{_three(figure.value)} ({_three(figure.low)} to {_three(figure.high)})"


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{round(value, digits - (0 if value < 1000 else len(str(int(value))) - 3)):,.{digits}f}"


def _number(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def _mib(n_bytes: int | None) -> str:
    return "?" if n_bytes is None else f"{-(-n_bytes // MIB):,}"
