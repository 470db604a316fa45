"""One model over several machines, the smallest that does, and costs beside a plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantplan.cli.machines import OnMachine, over_machines, table
from quantplan.cli.plan_cost import plan_cost
from quantplan.cli.recommendation import plan_for
from quantplan.errors import NoMachineMeets
from quantplan.planner.cost import MachinePrice, Prices
from quantplan.report.cost import cost_text
from quantplan.report.machines import machines_text

ROOT = Path(__file__).resolve().parents[2]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
ASKED: dict[str, Any] = {
    "objective": "balanced", "use": "general", "n_ctx": None, "n_ctx_min": None, "n_parallel": None, "quants": (),
    "kv": (), "n_ubatches": (), "devices": (), "min_tokens_per_s": None, "max_ram_bytes": None,
    "max_disk_bytes": None, "cache_ram_mib": None, "n_prompt": 1024, "n_answer": 256, "n_depth": None, "margins": (),
    "draft": None, "mmproj": None,
}  # fmt: skip


def compare(*machines: str, smallest: bool = False, prices: Prices | None = None, **asked: Any) -> dict[str, Any]:
    return over_machines(LLAMA, machines, prices or Prices(), smallest=smallest, **{**ASKED, **asked})


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantplan", "recommend", *words], capture_output=True, text=True, cwd=ROOT,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_each_machine_has_the_plan_that_it_has_alone() -> None:
    told = compare("rtx4070+32GB", "2xrtx3060+32GB", "16GB", "g5.xlarge")
    for one in told["machines"]:
        alone = plan_for(LLAMA, one.machine, **ASKED)
        setting, merits = alone.choice.setting, alone.choice.merits
        assert (one.plan.quant, one.plan.n_ctx_per_slot) == (setting.quant, setting.n_ctx)
        assert one.plan.decode_tokens_per_s == pytest.approx(merits.decode, rel=1e-12)
        assert dict(one.plan.devices) == {need.name: need.total_bytes for need in alone.choice.needs}
    assert [one.whole for one in told["machines"]] == [True, True, False, True]
    text = machines_text(told)
    assert "rtx4070+32GB" in text
    assert "/M generated" not in text


def test_the_smallest_machine_is_the_least_that_meets_the_constraints() -> None:
    cards = ("rtx3050+64GB", "rtx3060+64GB", "rtx4070+64GB", "rtx3090+64GB", "rtx4090+64GB")
    told = compare(*cards, smallest=True, min_tokens_per_s=60.0, n_ctx_min=16384, quants=("Q6_K",))
    every = {one.machine: one for one in compare(*cards, min_tokens_per_s=60.0, n_ctx_min=16384,
                                                 quants=("Q6_K",))["machines"]}  # fmt: skip
    meeting = [one for one in every.values() if one.plan is not None]
    assert told["smallest"] == min(meeting, key=lambda one: one.size).machine == "rtx3090+64GB"
    assert all(one.plan.decode_tokens_per_s >= 60 for one in meeting)
    below = [one for one in told["machines"] if one.plan is None]
    assert 0 < len(below) <= 2
    assert all("no plan reaches 60 tokens/s" in (one.why or "") for one in below)


def test_a_preset_that_is_advised_against_does_not_meet() -> None:
    told = compare("rtx5060+64GB", "rtx4090+64GB", smallest=True, n_ctx_min=16384, min_tokens_per_s=50.0)
    assert told["smallest"] == "rtx4090+64GB"
    assert [one.plan.quant for one in told["machines"] if one.machine == "rtx5060+64GB"] == ["Q2_K"]


def test_no_machine_meets() -> None:
    with pytest.raises(NoMachineMeets, match=r"none of the 2 machines does for .*; nearest is rtx4090") as caught:
        compare("rtx3060+32GB", "rtx4090+32GB", smallest=True, min_tokens_per_s=5000.0)
    assert caught.value.exit_code == 3


def test_prices_stand_beside_and_the_cheapest_is_known_only_where_all_is() -> None:
    prices = Prices(machines={"g5.xlarge": MachinePrice(hourly=1.0), "rtx4070+32gb": MachinePrice(price=1500)},
                    years=3, electricity_per_kwh=0.3)  # fmt: skip
    told = compare("rtx4070+32GB", "g5.xlarge", "rtx3060+32GB", prices=prices)
    cost = {one.machine: one.cost for one in told["machines"]}
    assert cost["g5.xlarge"].lacks == ()
    assert cost["rtx3060+32GB"].lacks == ("the price of the machine",)
    assert told["cheapest"] == "rtx4070+32GB"
    assert "Cheapest generated token: rtx4070+32GB" in machines_text(told)


def test_the_table_has_cards_and_instances_that_are_known() -> None:
    from quantplan.hardware.profiles import load_profile

    names = table("all")
    assert len(names) == len(set(names)) > 70
    assert set(table("cards")) | set(table("cloud")) == set(names)
    hosts = [load_profile(name) for name in names]
    assert all(host.gpus and host.gpus[0].bandwidth_bytes_per_s for host in hosts)


def test_the_price_of_not_fitting() -> None:
    """70B on 24 GB is half in RAM: a preset that fits wholly, and a bigger card, stand beside the plan."""
    planned = plan_for("Qwen/Qwen2.5-32B-Instruct", "rtx4070+64GB", **ASKED)
    told = plan_cost(planned, Prices(electricity_per_kwh=0.3), "rtx4070+64GB")
    what = [one["what"].split(":")[0] for one in told["options"]]
    assert what[0] == "the plan"
    assert "a bigger card" in what
    bigger = told["options"][what.index("a bigger card")]
    assert bigger["quant"] == told["options"][0]["quant"]
    assert bigger["total_decode_tokens_per_s"] > 3 * told["options"][0]["total_decode_tokens_per_s"]
    assert bigger["cost"].electricity_hour is not None
    text = cost_text(told)
    assert text.splitlines()[0] == "Cost of a million tokens, machine at work 100% of its hours"
    assert "without the price of the machine, which nobody gave" in text


def test_from_the_command_line() -> None:
    done = run(LLAMA, "--hardware", "rtx4070+32GB", "--hardware", "16GB", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "quantplan/recommend-machines/1"
    assert [row["machine"] for row in told["data"]["machines"]] == ["rtx4070+32GB", "16GB"]
    assert told["data"]["smallest"] == "16GB"
    unknown = run(LLAMA, "--hardware", "rtx4070+32GB", "--hardware", "rtx4091")
    assert unknown.returncode == 2
    assert "no GPU called 'rtx4091' is known; near names: " in unknown.stderr
    lacking = run("--hardware", "rtx4070", "--hardware", "rtx4090")
    assert lacking.returncode == 2
    assert "Missing argument 'MODEL'" in lacking.stderr


def test_the_sections_of_a_plan_come_only_when_asked_for() -> None:
    words = (LLAMA, "--hardware", "rtx4070+32GB")
    plain = run(*words).stdout
    assert "Runtime for" not in plain
    assert "Cost of" not in plain
    told = run(*words, "--runtime", "auto", "--hourly", "0.5").stdout
    assert told.startswith(plain.rstrip("\n"))
    assert "\nRuntime for 1 request(s) at a time: llama.cpp\n" in told
    assert "rent 0.5" in told
    refused = run(*words, "--runtime", "vllm")
    assert refused.returncode == 3
    assert refused.stderr.splitlines()[-1] == "Hint: --runtime llama.cpp"


def test_sizes_order_machines() -> None:
    small, large = (compare(name)["machines"][0] for name in ("rtx3060+32GB", "rtx4090+32GB"))
    assert isinstance(small, OnMachine)
    assert small.size < large.size
