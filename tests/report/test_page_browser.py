"""The page in a real browser: what it asks for, what it says, how fast, by keyboard, and how it looks."""

from __future__ import annotations

import itertools
import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from report.page_fixture import LLAMA, Page, make_page, planned_for

from quantplan.artifact.plan_file import Plan
from quantplan.errors import Contradiction, NothingFits
from quantplan.planner.request import Capacity
from quantplan.report.recommendation import offload_text, rate
from quantplan.units import MIB

PROBE = (Path(__file__).parent / "page_probe.js").read_text(encoding="utf-8")
FRAME_MS = 1000 / 60
AXES = ("preset", "cache", "slots", "context")
READ = """(() => {
  const text = id => document.getElementById(id).textContent;
  const cells = row => [...row.children].map(cell => cell.textContent);
  const rows = [...document.querySelectorAll("#memory-table tr")].map(cells);
  const tiles = Object.fromEntries([...document.querySelectorAll("[data-tile]")].map(tile =>
    [tile.dataset.tile, [tile.querySelector("strong").textContent, tile.querySelector("dd > span").textContent]]));
  return {rows, tiles, verdict: text("verdict"), place: text("place"), command: text("command"), moves: text("moves")};
})()"""


def move(chrome: Browser, at: tuple[int, ...]) -> None:
    """Puts all four sliders somewhere, as a hand would: the value, then the event."""
    for axis, index in zip(AXES, at, strict=True):
        chrome.run(f"(() => {{ const e = document.getElementById('{axis}'); e.value = {index};"
                   " e.dispatchEvent(new Event('input', {bubbles: true})); })()")  # fmt: skip
    chrome.frames()


def up(n_bytes: int) -> str:
    return f"{-(-n_bytes // MIB):,}"


def expected(plan: Plan, capacities: tuple[Capacity, ...]) -> tuple[list[list[str]], dict[str, Any]]:
    """The memory table and tiles that a plan of the command line makes."""
    parts = (("weights", "model"), ("KV cache", "context"), ("compute", "compute"), ("output", "output"),
             ("driver", "overhead"))  # fmt: skip
    by_name = {one.name: one for one in capacities}
    has = [by_name[device.name] for device in plan.memory]
    rows = [["MiB", *(device.name for device in plan.memory)]]
    for shown, name in parts:
        values = [getattr(device, f"{name}_bytes") for device in plan.memory]
        rows += [[shown, *map(up, values)]] if any(values) else []
    rows.append(["in all", *(up(device.total_bytes) for device in plan.memory)])
    rows.append(["may be used", *(f"{one.usable_bytes // MIB:,}" for one in has)])
    rows.append(["reserve", *(up(one.margin_bytes) for one in has)])
    if any(one.capacity_bytes > one.free_bytes for one in has):
        rows.append(["in use by others", *(up(one.capacity_bytes - one.free_bytes) for one in has)])
    rows.append(["capacity", *(f"{one.capacity_bytes // MIB:,}" for one in has)])
    tiles = {}
    for name, figure in (("decode", plan.decode_tokens_per_s), ("prefill", plan.prefill_tokens_per_s)):
        assert figure is not None
        tiles[name] = [f"{rate(figure.value)} tokens/s", f"{rate(figure.low)} to {rate(figure.high)}"]
    quality = plan.quality
    assert quality is not None
    assert quality.kld_mean is not None
    tiles["quality"] = f"{quality.kld_mean:.2g} nats"
    tiles["prompt-cache"] = f"{plan.cache_ram_bytes // MIB:,} MiB"
    return rows, tiles


def check(told: dict[str, Any], page: Page, plan: Plan) -> None:
    rows, tiles = expected(plan, page.planned.capacities)
    assert told["rows"] == rows
    for name, value in tiles.items():
        assert told["tiles"][name] == value or told["tiles"][name][0] == value, name
    where = offload_text(plan, page.planned.facts.n_layer, page.planned.host)
    assert told["place"] == f"Layers: {where}."


# ---- what it asks for and what it says


def test_it_asks_for_nothing_and_complains_of_nothing(chrome: Browser, on_a_card: Page) -> None:
    chrome.requests.clear()
    chrome.said.clear()
    chrome.look(width=1440)
    chrome.open(on_a_card.address)
    for at in ((0, 0, 0, 0), (5, 2, 3, 6), (2, 1, 1, 4)):
        move(chrome, at)
    chrome.run("theme.value = 'dark'; theme.dispatchEvent(new Event('change'))")
    chrome.frames()
    assert chrome.requests == [on_a_card.address]
    assert chrome.said == []
    assert chrome.run("performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("where", ["on_a_card", "on_a_cpu"])
def test_the_plan_s_numbers_are_the_document_s(chrome: Browser, where: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(where)
    chrome.look(width=1440)
    chrome.open(page.address)
    told = chrome.run(READ)
    check(told, page, page.planned.plan)
    sections = chrome.run("document.querySelector('main').textContent")
    for one in page.subject.answer["why"]:
        assert one in sections
    for one in page.subject.answer["explained"]:
        assert one["value"] in sections
        assert one["how"] in sections
    for plan in page.planned.alternatives:
        assert plan.decode_tokens_per_s is not None
        assert rate(plan.decode_tokens_per_s.value) in sections
    assert chrome.run("document.getElementById('next').textContent") == page.subject.answer["next"]
    assert chrome.run("document.getElementById('argv').textContent") == shlex.join(page.planned.plan.argv)


@pytest.mark.parametrize("where", ["on_a_card", "on_a_cpu"])
def test_every_position_says_what_its_command_says(chrome: Browser, where: str, request: pytest.FixtureRequest) -> None:
    """The command shown is taken apart and planned anew, by what `recommend` itself calls."""
    page: Page = request.getfixturevalue(where)
    axes = page.subject.grid.axes
    every = list(itertools.product(*map(range, (len(axes.quants), len(axes.kv_types), len(axes.n_parallels),
                                                len(axes.contexts)))))  # fmt: skip
    sample = [*random.Random(11).sample(every, 14), every[0], every[len(axes.contexts) - 1], every[-1]]
    chrome.look(width=1440)
    chrome.open(page.address)
    refused = 0
    for at in sample:
        move(chrome, at)
        told = chrome.run(READ)
        words = shlex.split(told["command"])
        assert words[:5] == ["quantplan", "recommend", page.planned.facts.id, "--hardware", page.planned.host.profile]
        try:
            plan = planned_for(words[2], words[4], *words[5:]).plan
        except (NothingFits, Contradiction):
            refused += 1
            assert told["verdict"].startswith("Does not fit"), at
            assert told["tiles"]["prefill"][0] == "–"
            continue
        assert told["verdict"].startswith("Fits."), at
        check(told, page, plan)
    assert 0 < refused < len(sample)


def test_sizes_are_those_of_inspect(chrome: Browser, on_a_card: Page) -> None:
    from quantplan.model.read import read_model
    from quantplan.report.inspection import sizes

    known = sizes(read_model(LLAMA), None)
    chrome.open(on_a_card.address)
    chrome.run("document.getElementById('front-table').closest('details').open = true")
    chrome.frames()
    rows = "[...document.querySelectorAll('#front-table tbody tr')]"
    shown = chrome.run(f"{rows}.map(row => [row.children[0].textContent, row.children[1].textContent])")
    assert [name for name, _ in shown] == list(on_a_card.subject.grid.axes.quants)
    for name, size in shown:
        assert size == up(known[name]["tensor_bytes"])


def test_where_it_stops_fitting_is_marked_and_which_layers_move(chrome: Browser, on_a_card: Page) -> None:
    chrome.look(width=1440)
    chrome.open(on_a_card.address)
    grid = on_a_card.subject.grid
    marks = "[...document.querySelectorAll('#context-marks .mark')].map(m => m.classList[1])"
    move(chrome, grid.plan_at)
    states = chrome.run(marks)
    assert states[0] == "whole"
    assert "moved" in states
    assert states == sorted(states, key=["whole", "moved", "none"].index)
    assert f"Every layer stays on the GPU up to {grid.whole_n_ctx:,} tokens" in chrome.run(
        "document.getElementById('contexts-limit').textContent")  # fmt: skip
    first = states.index("moved")
    move(chrome, (*grid.plan_at[:3], first))
    told = chrome.run(READ)
    n_host = int(told["moves"].split()[3])
    assert told["moves"].startswith(f"Against the plan, {n_host} of 33 layers (0–{n_host - 1}) lie on Host instead")
    assert chrome.run("document.querySelectorAll('#layers rect.host').length") == n_host
    move(chrome, (0, 0, len(grid.axes.n_parallels) - 1, len(grid.axes.contexts) - 1))
    assert chrome.run("document.getElementById('state').className") == "state none"
    assert chrome.run("document.querySelectorAll('#memory [fill=\"url(#over)\"]').length") == 1


def test_the_longest_context_is_the_longest(on_a_card: Page, on_a_cpu: Page) -> None:
    """One step more has layers elsewhere, or is refused."""
    whole = on_a_card.subject.grid.whole_n_ctx
    assert whole
    at = on_a_card.planned.choice.setting
    words = ("--quant", at.quant, "--kv", at.type_k, "--ubatch", str(at.n_ubatch))
    assert planned_for(LLAMA, "rtx3060+24GB", *words, "--ctx", str(whole)).plan.n_gpu_layers == 33
    assert planned_for(LLAMA, "rtx3060+24GB", *words, "--ctx", str(whole + 256)).plan.n_gpu_layers < 33
    assert on_a_cpu.subject.grid.whole_n_ctx is None


# ---- how it answers


MOVE = """(async (turns, moves) => {
  const took = [];
  for (let i = 0; i < turns; i++) {
    const input = document.getElementById(["context", "slots", "cache", "preset"][i % 4]);
    const start = performance.now();
    if (moves) {
      input.value = String((Number(input.value) + 1) % (Number(input.max) + 1));
      input.dispatchEvent(new Event("input", {bubbles: true}));
    }
    await new Promise(done => requestAnimationFrame(() => {
      const after = new MessageChannel();
      after.port1.onmessage = done;
      after.port2.postMessage(0);
    }));
    took.push(performance.now() - start);
  }
  return took.slice(2).sort((a, b) => a - b);
})"""


def test_sliders_answer_within_50_ms(chrome: Browser, on_a_card: Page, screenshots: Path) -> None:
    """From the event to the frame that shows it, painted. A frame without a change is timed in the same rounds: what it
    takes is the machine's own (16.7 ms on an idle one), and what the change adds must leave room for one such frame."""
    chrome.look(width=1440)
    chrome.open(on_a_card.address)
    chrome.call("Performance.enable", timeDomain="threadTicks")
    rounds = []
    for _ in range(3):
        idle = chrome.run(f"{MOVE}(12, false)")
        before = _busy(chrome)
        moved = chrome.run(f"{MOVE}(22, true)")
        rounds.append({"idle_ms": idle[len(idle) // 2], "moved_ms": moved[len(moved) // 2], "worst_ms": moved[-1],
                       "cpu_ms": (_busy(chrome) - before) * 1000 / 22})  # fmt: skip
    chrome.call("Performance.disable")
    screenshots.mkdir(parents=True, exist_ok=True)
    (screenshots / "sliders.json").write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")
    best = min(rounds, key=lambda one: one["moved_ms"])
    assert best["moved_ms"] - best["idle_ms"] < 50 - FRAME_MS or best["cpu_ms"] < 50 - FRAME_MS, rounds


def _busy(chrome: Browser) -> float:
    """Seconds of processor time that the page's main thread has had."""
    told = {one["name"]: one["value"] for one in chrome.call("Performance.getMetrics")["metrics"]}
    return float(told["TaskDuration"])


def test_by_keyboard(chrome: Browser, on_a_card: Page) -> None:
    chrome.look(width=1440)
    chrome.open(on_a_card.address)
    focused = "document.activeElement.id || document.activeElement.className"
    order = []
    for _ in range(6):
        chrome.press("Tab")
        order.append(chrome.run(focused))
    assert order == ["skip", "theme", "context", "slots", "cache", "preset"]
    outline = (
        "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    )
    assert chrome.run(outline) == "solid3px"
    for axis in AXES:
        chrome.run(f"document.getElementById('{axis}').focus()")
        before = chrome.run(
            f"[{axis}.value, {axis}.getAttribute('aria-valuetext'), document.getElementById('position').textContent]"
        )
        chrome.press("End" if axis == "context" else "ArrowRight")
        after = chrome.run(
            f"[{axis}.value, {axis}.getAttribute('aria-valuetext'), document.getElementById('position').textContent]"
        )
        assert all(old != new for old, new in zip(before, after, strict=True)), axis
    chrome.run("preset.focus()")
    chrome.press("Tab")
    assert chrome.run(focused) == "reset"
    chrome.press("Enter")
    assert chrome.run("document.getElementById('is-plan').textContent") == "This is the plan."
    assert chrome.run("document.getElementById('state').getAttribute('aria-live')") == "polite"


def test_everything_has_a_name(chrome: Browser, on_a_card: Page) -> None:
    """As the browser tells assistive technology."""
    chrome.open(on_a_card.address)
    move(chrome, on_a_card.subject.grid.plan_at)
    chrome.call("Accessibility.enable")
    nodes = chrome.call("Accessibility.getFullAXTree")["nodes"]
    chrome.call("Accessibility.disable")
    roles = ("slider", "combobox", "button", "image", "img", "table", "region", "link", "form")
    found: dict[str, list[str]] = {role: [] for role in roles}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in found:
            found[role].append(node.get("name", {}).get("value", ""))
    assert found["slider"] == ["Context", "Slots", "KV cache", "Preset"]
    assert found["combobox"] == ["Theme"]
    assert [role for role, names in found.items() if not all(names)] == []
    assert len(found["image"] + found["img"]) >= 5
    texts = [p["value"]["value"] for node in nodes if node.get("role", {}).get("value") == "slider"
             for p in node["properties"] if p["name"] == "valuetext"]  # fmt: skip
    assert texts[0] == "16,384 tokens a slot: fits, all layers on the GPU"
    assert chrome.run("document.querySelectorAll('h1').length") == 1
    heads = [int(h[1]) for h in chrome.run("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")]
    assert all(b <= a + 1 for a, b in itertools.pairwise(heads))


# ---- how it looks


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("where", ["on_a_card", "on_a_cpu"])
def test_it_is_readable(
    chrome: Browser, where: str, width: int, theme: str, screenshots: Path, request: pytest.FixtureRequest
) -> None:
    page: Page = request.getfixturevalue(where)
    grid = page.subject.grid
    chrome.look(width=width, theme=theme)
    chrome.open(page.address)
    last = (0, 0, len(grid.axes.n_parallels) - 1, len(grid.axes.contexts) - 1)
    middle = (len(grid.axes.quants) // 2, 1, 1, len(grid.axes.contexts) - 2)
    for name, at in (("plan", grid.plan_at), ("full", last), ("between", middle)):
        move(chrome, at)
        chrome.run(
            "document.querySelectorAll('details').forEach(one => { one.open = " + str(name == "full").lower() + "; })"
        )
        chrome.frames()
        chrome.screenshot(screenshots / f"{where[3:]}-{name}-{width}-{theme}.png")
        assert {kind: said for kind, said in chrome.run(PROBE).items() if said} == {}, (name, width, theme)


def test_the_theme_can_be_chosen(chrome: Browser, on_a_cpu: Page) -> None:
    chrome.look(width=1440, theme="light")
    chrome.open(on_a_cpu.address)
    card = "getComputedStyle(document.querySelector('.card')).backgroundColor"
    light = chrome.run(card)
    choose = "theme.value = '{}'; theme.dispatchEvent(new Event('change'))"
    chrome.run(choose.format("dark"))
    dark = chrome.run(card)
    chrome.look(width=1440, theme="dark")
    assert light != dark == chrome.run(card)
    chrome.run(choose.format("light"))
    assert chrome.run(card) == light
    assert {kind: said for kind, said in chrome.run(PROBE).items() if said} == {}


def test_on_paper_and_without_motion(chrome: Browser, on_a_cpu: Page, screenshots: Path) -> None:
    chrome.look(width=800, theme="dark", motion="reduce")
    chrome.open(on_a_cpu.address)
    assert chrome.run("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    chrome.call("Emulation.setEmulatedMedia", media="print")
    chrome.run("dispatchEvent(new Event('beforeprint'))")
    chrome.frames()
    assert chrome.run("[...document.querySelectorAll('details')].every(one => one.open)") is True
    assert chrome.run("getComputedStyle(document.getElementById('context')).display") == "none"
    chrome.screenshot(screenshots / "cpu-print.png")
    chrome.run("dispatchEvent(new Event('afterprint'))")
    assert chrome.run("[...document.querySelectorAll('details')].some(one => one.open)") is False
    chrome.call("Emulation.setEmulatedMedia", media="")


# ---- what a name may hold


def test_a_hostile_name_is_a_name(chrome: Browser, tmp_path: Path) -> None:
    name = (
        "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;\u2028'\""
    )
    page = make_page(tmp_path / "hostile.html", "Qwen/Qwen3-0.6B", "cpu+8GB", "--ctx", "4096", name=name)
    chrome.requests.clear()
    chrome.said.clear()
    chrome.look(width=360)
    chrome.open(page.address)
    assert chrome.run("document.title") == f"{name}: plan".replace("\u2028", "\u2028")
    assert chrome.run("document.querySelector('h1').textContent") == name
    assert chrome.run("document.querySelectorAll('script').length") == 2
    assert chrome.run("document.querySelectorAll('img').length") == 0
    assert shlex.split(chrome.run("document.getElementById('command').textContent"))[2] == name
    assert (chrome.requests, chrome.said) == ([page.address], [])


def test_the_policy_holds_what_the_escaping_would_let_through(chrome: Browser, on_a_cpu: Page, tmp_path: Path) -> None:
    """Were a name ever written as it is, the policy still lets nothing run or load."""
    text = on_a_cpu.file.read_text(encoding="utf-8")
    bad = '<script>document.title="owned"</script><img src="https://example.invalid/x" onerror="document.title=1">'
    (tmp_path / "bad.html").write_text(text.replace("<main>", f"{bad}<main>"), encoding="utf-8")
    chrome.blocked.clear()
    chrome.open((tmp_path / "bad.html").as_uri())
    assert chrome.run("document.title") == "Qwen/Qwen3-8B: plan"
    assert chrome.blocked == ["https://example.invalid/x"]
    assert any("Content Security Policy" in one for one in chrome.said)
