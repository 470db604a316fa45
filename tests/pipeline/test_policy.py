"""Policies: presets that hold their schema, and every way to get one wrong said by key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quantplan.errors import BadPolicy
from quantplan.pipeline.policy import PRESETS, load_policy, parse_policy
from quantplan.places import data_file

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def policy(**tables: Any) -> dict[str, Any]:
    return {"schema": "quantplan/policy/1", "name": "own", "quality": {"kld_mean": {"at_most": 0.01}}, **tables}


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_hold_the_schema(name: str) -> None:
    schema = json.loads(data_file("schemas", "policy-1.schema.json").read_text())
    jsonschema.validate(tomllib.loads(data_file("policies", f"{name}.toml").read_text(encoding="utf-8")), schema)
    found = load_policy(name)
    assert found.name == name
    assert found.label == f"quantplan/{name}/1"
    assert found.error_rate == 0.01
    assert found.budget_chunks == 200


def test_stricter_is_stricter_on_every_metric() -> None:
    strict, standard, lenient = (load_policy(name) for name in ("strict", "standard", "lenient"))
    for metric, limit in standard.quality.items():
        assert strict.quality[metric].absolute < limit.absolute < lenient.quality[metric].absolute
    assert load_policy("code").limits("code")["kld_mean"].absolute < standard.limits("code")["kld_mean"].absolute
    assert load_policy("code").limits("prose") == standard.limits("prose")
    assert load_policy("reasoning").limits("sums")["kld_mean"].absolute < 0.01


@pytest.mark.parametrize(
    ("told", "key", "near"),
    [
        (policy(qualitty={}), "qualitty", ("quality",)),
        (policy(quality={"kld_maen": {"at_most": 1}}), "quality.kld_maen", ("kld_mean",)),
        (policy(quality={"kld_mean": {"atmost": 1}}), "quality.kld_mean.atmost", ("at_most",)),
        (policy(performance={"decod": {}}), "performance.decod", ("decode",)),
        (policy(security={"scan_atmost": "note"}), "security.scan_atmost", ("scan_at_most",)),
        (policy(quality={"kld_mean": {"at_most": 1}, "corpora": {"code": {"kld_men": {}}}}),
         "quality.corpora.code.kld_men", ("kld_mean",)),
    ],
)  # fmt: skip
def test_unknown_keys_name_the_nearest(told: dict[str, Any], key: str, near: tuple[str, ...]) -> None:
    with pytest.raises(BadPolicy) as caught:
        parse_policy(told, where="own.toml")
    assert caught.value.key == key
    assert caught.value.near == near


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ({"kld_mean": {"at_most": 0}}, "no measurement can meet"),
        ({"ppl_ratio": {"at_most": 0.9}}, "no measurement can meet"),
        ({"same_top": {"at_least": 1.0}}, "no measurement can meet"),
        ({"same_top": {"at_most": 0.9}}, "wrong side"),
        ({"kld_mean": {"of_q8_0": 4}}, "at_most: is missing"),
        ({"kld_mean": {"at_most": 0.01, "of_q8_0": 0.5}}, "Q8_0 itself could not meet it"),
        ({"kld_mean": {"at_most": math.nan}}, "not a number"),
        ({"kld_mean": {"at_most": "much"}}, "not a number"),
        ({"kld_max": {"at_most": 5, "of_q8_0": 3}}, "may only be absolute"),
        ({"kld_mean": {"at_most": 0.01}, "budget_chunks": 5}, "not a number from 20"),
        ({"kld_mean": {"at_most": 0.01}, "error_rate": 0}, "not a number from"),
        ({}, "sets no limit"),
    ],
)
def test_limits_that_cannot_be_met(quality: dict[str, Any], words: str) -> None:
    with pytest.raises(BadPolicy, match=words):
        parse_policy(policy(quality=quality), where="own.toml")


@pytest.mark.parametrize("told", [{}, {"schema": "quantplan/policy/2"}, policy(extends="nobody"), policy(name=3)])
def test_other_versions_and_bases_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(BadPolicy):
        parse_policy(told, where="own.toml")


def test_a_file_lays_its_tables_over_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(
        'schema = "quantplan/policy/1"\nextends = "standard"\nname = "ours"\n'
        "[quality.kld_mean]\nat_most = 0.02\n"
        "[performance.decode]\nat_least_ratio = 0.9\n"
        '[performance.host_memory]\nat_most_ratio = 1.05\nagainst = "plan"\n'
        '[provenance]\nreceipt = "complete"\nsignature = "required"\n[size]\nof_reference_at_most = 0.4\n'
    )
    found = load_policy(str(file))
    assert found.quality["kld_mean"].absolute == 0.02
    assert found.quality["kld_mean"].of_q8_0 == load_policy("standard").quality["kld_mean"].of_q8_0
    assert found.quality["kld_99"] == load_policy("standard").quality["kld_99"]
    assert found.performance["decode"].limit == 0.9
    assert found.performance["host_memory"].against == "plan"
    assert found.receipt
    assert found.signature
    assert found.size == {"of_reference_at_most": 0.4}


def test_no_such_policy_names_a_near_one(tmp_path: Path) -> None:
    with pytest.raises(BadPolicy) as caught:
        load_policy("standrad")
    assert caught.value.near == ("standard",)
    broken = tmp_path / "broken.toml"
    broken.write_text("quality = [")
    with pytest.raises(BadPolicy, match="cannot be read"):
        load_policy(str(broken))
    broken.write_bytes(b"name = '\xff'")
    with pytest.raises(BadPolicy, match="cannot be read"):
        load_policy(str(broken))
