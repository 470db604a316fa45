"""The choice of the engine as text."""

from __future__ import annotations

import textwrap

from quantplan.planner.runtime import RuntimeChoice, Served
from quantplan.planner.vllm_memory import VllmMemory
from quantplan.report.recommendation import rate
from quantplan.units import GIB

_WIDTH = 110


def runtime_text(choice: RuntimeChoice) -> str:
    """The section of a recommendation: the engine to take, and what each would do."""
    lines = [f"Runtime for {choice.n_parallel} request(s) at a time: {choice.runtime}",
             *textwrap.wrap(choice.why, _WIDTH, initial_indent="  ", subsequent_indent="  ")]  # fmt: skip
    for option in choice.options:
        lines += _option(option)
    return "\n".join(lines)


def _option(option: Served) -> list[str]:
    speed = f", {_speed(option)} tokens/s together" if option.total_per_s else ""
    head = f"  {option.runtime}: {'' if option.can else 'no: '}{option.why}{speed}"
    lines = textwrap.wrap(head, _WIDTH, subsequent_indent="    ")
    if option.memory is not None:
        lines += _memory(option.memory)
    return [*lines, *(f"    {said}" for said in option.says)]


def _speed(option: Served) -> str:
    figure = option.total_per_s
    assert figure is not None
    if figure.low == figure.high:
        return rate(figure.value)
    return f"{rate(figure.value)} ({rate(figure.low)} to {rate(figure.high)})"


def _memory(told: VllmMemory) -> list[str]:
    return [
        f"    vLLM {told.version}, a GPU: weights {told.weights_bytes / GIB:.2f} + allowance "
        f"{told.allowance_bytes / GIB:.2f} + KV {told.kv_bytes / GIB:.2f} GiB = {told.gpu_memory_utilization:.0%}; "
        f"{told.n_blocks:,} blocks of {told.block_tokens} tokens, {told.concurrency:.1f} requests",
        f"    --tensor-parallel-size {told.tensor_parallel} --pipeline-parallel-size {told.pipeline_parallel} "
        f"--max-num-seqs {told.max_num_seqs} --gpu-memory-utilization {told.gpu_memory_utilization:g}",
    ]  # fmt: skip
