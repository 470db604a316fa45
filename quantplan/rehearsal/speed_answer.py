"""The speed of an estimate: decoding, reading a prompt, the first token, loading."""

from __future__ import annotations

from dataclasses import dataclass

from quantplan.artifact.plan_file import Figure
from quantplan.errors import BadValue
from quantplan.ggml_types import ggml_types
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.measure import read_measured, with_measured
from quantplan.memory.placement import ContextParams, Placement
from quantplan.model.facts import ModelFacts, TensorFacts
from quantplan.planner.speed import SpeedHost, predict, prepare_speed, time_to_first_token, time_to_load
from quantplan.rehearsal.calibration import speed_host_for


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedAnswer:
    """Tokens a second of one request with `n_depth` tokens of context; None where unknown, and `why`."""

    decode_tokens_per_s: Figure | None
    prefill_tokens_per_s: Figure | None
    n_depth: int
    n_prompt: int
    time_to_first_token_s: Figure | None
    load_s: Figure | None
    why: str | None = None


def speed_of(
    facts: ModelFacts, tensors: tuple[TensorFacts, ...], ctx: ContextParams, placement: Placement, host: HostFacts, *,
    n_depth: int | None = None, n_prompt: int | None = None, devices: SpeedHost | None = None,
) -> SpeedAnswer:  # fmt: skip
    """At the whole context of a slot unless told otherwise; the first token of a prompt that fills that depth."""
    if min(n_depth or 0, n_prompt or 0) < 0:
        raise BadValue(what="depth or prompt", value=min(n_depth or 0, n_prompt or 0), why="is below 0")
    known = devices or speed_host_for(host)
    prepared = prepare_speed(facts, tensors)
    depth = ctx.n_cells if n_depth is None else n_depth
    prompt = max(depth, 1) if n_prompt is None else n_prompt
    speed = predict(prepared, ctx, placement, known, n_depth=depth)
    here = with_measured(host, read_measured(host)) if host.profile is None else host
    disk = here.disk.read_bytes_per_s if here.disk is not None else None
    return SpeedAnswer(
        decode_tokens_per_s=speed.decode, prefill_tokens_per_s=speed.prefill, n_depth=depth, n_prompt=prompt,
        time_to_first_token_s=time_to_first_token(prepared, ctx, placement, known, n_prompt=prompt),
        load_s=time_to_load(_file_bytes(tensors), read_bytes_per_s=disk), why=speed.why,
    )  # fmt: skip


def _file_bytes(tensors: tuple[TensorFacts, ...]) -> int:
    types = ggml_types()
    return sum(t.n_elements // types[t.type_name].block_size * types[t.type_name].type_size for t in tensors)
