"""The parts of a page that stay as they are: the plan, why, alternatives, where numbers come from, what to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from quantplan.planner.grid import Axes, Grid
from quantplan.report.page_data import PARTS
from quantplan.report.recommendation import placement_text, rate
from quantplan.units import GIB, MIB

_Answer = Mapping[str, Any]


def head_of_page(answer: _Answer, warnings: Sequence[str]) -> str:
    """Which model, which host, what to know first."""
    model = answer["model"]
    about = (
        f"{model['parameters'] / 1e9:.2f} B parameters, {model['n_layer']} layers ({model['arch']}), "
        f"trained for {model['n_ctx_train']:,} tokens"
    )
    told = "".join(f"<li>Warning: {escape(one)}</li>" for one in warnings)
    said = "".join(f"<p>{escape(one)}</p>" for one in answer["nature"]["says"])
    return f"""<header>
<div><p class="eyebrow">quantplan</p><h1>{escape(model["id"])}</h1>
<p>{escape(about)}<br><span class="muted">{escape(host_line(answer["hardware"]))}</span></p>{said}</div>
<div class="theme needs-script"><label for="theme">Theme</label> <select id="theme">
<option value="">as the system</option><option value="light">light</option><option value="dark">dark</option>
</select></div>
{f'<ul class="warnings">{told}</ul>' if told else ""}</header>"""


def host_line(host: Mapping[str, Any]) -> str:
    """The machine in a line, as the command prints it."""
    counted: dict[str, int] = {}
    for gpu in host["gpus"]:
        label = f"{gpu['product']} {gpu['total_bytes'] / GIB:.0f} GiB"
        counted[label] = counted.get(label, 0) + 1
    gpus = ", ".join(f"{n} × {label}" if n > 1 else label for label, n in counted.items()) or "no GPU"
    cpu, ram = host["cpu"], host["ram"]
    limit = " (limit of a control group)" if ram["limit_bytes"] else ""
    return (
        f"{host['profile'] or 'this host'}: {gpus}; {cpu['model'] or 'CPU'}, {cpu['n_threads']} thread(s); "
        f"RAM {ram['total_bytes'] / GIB:.1f} GiB{limit}, {ram['available_bytes'] / GIB:.1f} GiB available"
    )


def explorer(grid: Grid) -> str:
    """The sliders, and places for what the script draws."""
    return f"""<section id="explore" aria-labelledby="explore-title">
<form id="controls" class="card needs-script" autocomplete="off" aria-labelledby="explore-title">
<h2 id="explore-title">What if</h2>
{_sliders(grid)}
<ul class="key" aria-label="Marks under the sliders">
<li class="whole"><i></i>{_fits(grid)}</li>
{_moved(grid)}<li class="none"><i></i>does not fit</li></ul>
<button type="button" id="reset">Back to the plan</button>
</form>
<div id="result">
<noscript><p class="card">The sliders and charts need scripts; the plan below does not.</p></noscript>
<div class="card needs-script">
<div id="state" class="state" role="status" aria-live="polite" aria-atomic="true"><p class="muted" id="is-plan"></p>
<p id="position"></p><p id="verdict"></p><p id="place"></p><p id="moves" class="muted"></p></div>
<dl id="tiles" class="facts"></dl><p id="objection"></p><p id="origins"></p></div>
<div id="charts" class="card needs-script">
<figure><figcaption><h3>Memory by device</h3></figcaption>
<div id="memory" class="drawing"></div></figure>
<div id="memory-table" class="scroll" role="region" tabindex="0" aria-label="Memory by device and part"></div>
<figure id="layers-figure"><figcaption><h3>Where the layers are</h3></figcaption>
<div id="layers" class="drawing"></div><div id="layers-legend" class="legend"></div></figure></div>
<div class="card needs-script">
<figure><figcaption><h3>Context against memory</h3><p id="contexts-limit"></p></figcaption>
<div id="contexts" class="drawing"></div>{_as_table("contexts-table", "Memory at each context")}</figure></div>
<div class="card needs-script"><figure><figcaption><h3>Size against quality and speed</h3>
<p>Every preset at this context, with this cache and these slots. Filled: no other is better in size, damage and speed
at once. Lines are the ranges.</p></figcaption>
<div id="front" class="drawing"></div>{_as_table("front-table", "Presets side by side")}</figure></div>
<div class="card needs-script"><h3>This position on the command line</h3><pre id="command" tabindex="0"
aria-label="Command of this position"></pre></div>
</div>
</section>"""


def _fits(grid: Grid) -> str:
    return "fits, all layers on the GPU" if len(grid.capacities) > 1 else "fits"


def _moved(grid: Grid) -> str:
    return '<li class="moved"><i></i>fits, some layers in RAM</li>\n' if len(grid.capacities) > 1 else ""


def _as_table(element: str, label: str) -> str:
    return (
        f'<details><summary>As a table</summary><div id="{element}" class="scroll" role="region" tabindex="0" '
        f'aria-label="{label}"></div></details>'
    )


def _sliders(grid: Grid) -> str:
    axes = grid.axes
    counts = _counts(axes)
    named = (("context", "Context", 3), ("slots", "Slots", 2), ("cache", "KV cache", 1), ("preset", "Preset", 0))
    return "\n".join(_slider(name, label, counts[at], grid.plan_at[at]) for name, label, at in named)


def _counts(axes: Axes) -> tuple[int, int, int, int]:
    return len(axes.quants), len(axes.kv_types), len(axes.n_parallels), len(axes.contexts)


def _slider(name: str, label: str, count: int, at: int) -> str:
    off = " disabled" if count == 1 else ""
    return (
        f'<div class="slider"><div class="named"><label for="{name}">{label}</label>'
        f'<output id="{name}-value" for="{name}"></output></div>'
        f'<input type="range" id="{name}" min="0" max="{count - 1}" step="1" value="{at}"{off}>'
        f'<div class="marks" id="{name}-marks" aria-hidden="true"></div></div>'
    )


def sections(answer: _Answer) -> str:
    """The plan and its reasons."""
    why = "".join(f"<li>{escape(one)}</li>" for one in answer["why"])
    rejected = [(one["what"], one["why"]) for one in answer["rejected"]]
    told = [(one["what"], one["value"], one["how"]) for one in answer["explained"]]
    argv = escape(shlex.join(answer["plan"]["argv"]))
    return f"""<section aria-labelledby="plan-title"><h2 id="plan-title">The plan</h2>{_plan(answer)}</section>
<section aria-labelledby="why-title"><h2 id="why-title">Why</h2><ul>{why}</ul>
{_folded("What was rejected", ("candidate", "why"), rejected) if rejected else ""}</section>
{_alternatives(answer)}
<section aria-labelledby="numbers-title"><h2 id="numbers-title">Where numbers come from</h2>
{_prose(("what", "value", "how it came about"), told)}</section>
<section aria-labelledby="next-title"><h2 id="next-title">Next</h2>
<pre id="next" tabindex="0" aria-label="Next command">{escape(answer["next"])}</pre>
<h3>Served as planned</h3><pre id="argv" tabindex="0" aria-label="Server command">{argv}</pre></section>"""


def _plan(answer: _Answer) -> str:
    plan, speed = answer["plan"], answer["plan"]["speed"]
    quality, load = plan["quality"], answer["load_s"]
    rows = [
        ("quant", "Preset", plan["quant"], ""),
        ("n_ctx", "Context", f"{plan['n_ctx_per_slot']:,} tokens a slot",
         f"{plan['n_parallel']} slot(s), cache {plan['type_k']}/{plan['type_v']}"),
        ("offload", "Layers", _where(answer, plan), ""),
        ("plan-decode", "Decode, context full", *_figure(speed["decode_tokens_per_s"])),
        ("plan-prefill", "Prompt, context full", *_figure(speed["prefill_tokens_per_s"])),
        ("plan-quality", "Expected damage", *_quality(quality, plan["quant"])),
        ("plan-memory", "Memory", _memory(plan), "MiB used of what is free"),
        ("plan-cache", "Prompt cache", f"{plan['cache_ram_bytes'] // MIB:,} MiB", "of RAM at most, while serving"),
    ]  # fmt: skip
    if load:
        rows.append(("plan-load", "Load", f"{rate(load['value'])} s from a cold disk",
                     f"{rate(load['low'])} to {rate(load['high'])}; {load['origin']}"))  # fmt: skip
    cells = "".join(_fact(*row) for row in rows if row[2])
    return f'<dl class="facts">{cells}</dl>'


def _fact(name: str, label: str, value: str, more: str) -> str:
    told = f"<strong>{escape(value)}</strong><span>{escape(more)}</span>"
    return f'<div id="{name}"><dt>{escape(label)}</dt><dd>{told}</dd></div>'


def _where(answer: _Answer, plan: Mapping[str, Any]) -> str:
    gpus = [gpu["name"] for gpu in answer["hardware"]["gpus"]]
    return placement_text(plan.get("devices"), plan["n_gpu_layers"], answer["model"]["n_layer"], gpus=gpus,
                          tensor_split=plan["tensor_split"], n_cpu_moe=plan["n_cpu_moe"])  # fmt: skip


def _figure(figure: Mapping[str, Any] | None) -> tuple[str, str]:
    if figure is None:
        return "", ""
    return f"{rate(figure['value'])} tokens/s", f"{_range(figure)}; {figure['origin']}"


def _range(figure: Mapping[str, Any]) -> str:
    return f"{rate(figure['low'])} to {rate(figure['high'])}"


def _quality(quality: Mapping[str, Any] | None, quant: str) -> tuple[str, str]:
    if quality is None or quality["kld_mean"] is None:
        return f"no figure for {quant} yet", ""
    spread = (
        f"{quality['low']:.2g} to {quality['high']:.2g}; " if quality["low"] is not None and quality["high"] else ""
    )
    return f"{quality['kld_mean']:.2g} nats a token", f"{spread}mean KLD; {quality['origin']}"


def _memory(plan: Mapping[str, Any]) -> str:
    told = []
    for device in plan["memory"]["devices"]:
        used = _total(device)
        free = "?" if device["free_bytes"] is None else f"{device['free_bytes'] // MIB:,}"
        told.append(f"{device['name']} {-(-used // MIB):,} of {free}")
    return ", ".join(told)


def _total(device: Mapping[str, Any]) -> int:
    return sum(device[f"{part}_bytes"] for part in PARTS)


def _alternatives(answer: _Answer) -> str:
    if not answer["alternatives"]:
        return ""
    rows = []
    for plan, trade in zip(answer["alternatives"], answer["trades"], strict=True):
        decode, quality = plan["speed"]["decode_tokens_per_s"], plan["quality"]
        total = sum(map(_total, plan["memory"]["devices"]))
        rows.append((
            plan["quant"], f"{plan['n_ctx_per_slot']:,} tokens", f"{plan['type_k']}/{plan['type_v']}",
            _where(answer, plan), f"{rate(decode['value'])} ({_range(decode)})" if decode else "not known",
            f"{quality['kld_mean']:.2g}" if quality and quality["kld_mean"] is not None else "no figure yet",
            f"{total / GIB:.1f} GiB", trade,
        ))  # fmt: skip
    heads = ("preset", "context", "cache", "layers", "decode, tokens/s", "mean KLD", "memory", "against the plan")
    return (
        '<section aria-labelledby="others-title"><h2 id="others-title">Alternatives</h2>'
        f'<p class="muted">Speeds with the whole context in use.</p>{_prose(heads, rows)}</section>'
    )


def _folded(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<details><summary>{escape(title)}</summary>{_prose(heads, rows)}</details>"


def _prose(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    label = escape(", ".join(heads))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="prose">'
        f'<caption class="hidden">{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
