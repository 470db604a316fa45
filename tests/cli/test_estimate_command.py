"""`quantplan estimate` from the outside: whole output, contract, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import quantplan
from quantplan.cli.main import main
from quantplan.errors import ExitCode
from quantplan.llama.types import Toolchain

CARD = ("--hardware", "RTX4090")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["estimate", *args])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_json_has_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "Qwen/Qwen3-8B", "--quant", "Q4_K_M", "--ctx", "8192", "--parallel", "1", *CARD, "--json"
    )
    data = json.loads(out)["data"]
    assert code == ExitCode.OK
    assert [device["name"] for device in data["devices"]] == ["CUDA0", "Host"]
    gpu = data["devices"][0]
    assert {"name", "model_bytes", "context_bytes", "compute_bytes", "output_bytes", "overhead_bytes", "capacity_bytes",
            "free_bytes"} <= set(gpu)  # fmt: skip
    assert gpu["context_bytes"] == 1152 * 1024**2
    assert (data["fits"], data["origin"], data["engine_build"]) == (True, "calculated", None)


def test_json_has_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("Qwen/Qwen3-8B", "--quant", "Q4_K_M", "--ctx", "8192", "--parallel", "1", *CARD, "--json")
    full = json.loads(run(capsys, *asked)[1])["data"]["speed"]
    empty = json.loads(run(capsys, *asked, "--depth", "0")[1])["data"]["speed"]
    for name in ("decode_tokens_per_s", "prefill_tokens_per_s"):
        assert set(full[name]) == {"value", "low", "high", "origin"}
        assert full[name]["low"] < full[name]["value"] < full[name]["high"]
        assert full[name]["value"] < empty[name]["value"]
    assert (full["n_depth"], empty["n_depth"]) == (8192, 0)
    assert full["load_s"] is None  # nobody measured that machine's disk
    assert full["time_to_first_token_s"]["value"] > 0.1
    first = json.loads(run(capsys, *asked, "--prompt", "100")[1])["data"]["speed"]["time_to_first_token_s"]
    assert first["value"] < full["time_to_first_token_s"]["value"]


def test_a_card_of_unknown_bandwidth_has_no_speed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    machine = tmp_path / "mine.toml"
    machine.write_text('[[gpu]]\nname = "Mystery 1"\nvendor = "nvidia"\nmemory = "24GB"\n', encoding="utf-8")
    code, out, _ = run(
        capsys, "Qwen/Qwen3-8B", "--quant", "Q4_K_M", "--ctx", "8192", "--hardware", str(machine), "--json"
    )
    speed = json.loads(out)["data"]["speed"]
    assert code == ExitCode.OK
    assert (speed["decode_tokens_per_s"], speed["prefill_tokens_per_s"]) == (None, None)
    assert speed["why"] == "the memory bandwidth of CUDA0 is not known"


def test_text_has_the_speed_with_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "Qwen/Qwen3-8B", "--quant", "Q4_K_M", "--ctx", "8192", *CARD)
    assert re.search(r"^Speed at 8,192 tokens: decode [\d.]+ \([\d.]+ to [\d.]+\) and prefill ", out, re.MULTILINE)
    assert "CUDA0 bandwidth table" in out


def test_what_does_not_fit_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "Qwen/Qwen3-32B", "--quant", "Q4_K_M", "--ctx", "32768", *CARD)
    assert code == ExitCode.DOES_NOT_FIT
    assert "Does not fit: 3," in out
    assert "fits with context" in out
    assert "fits with layers on the GPU" in out
    assert "fits with cache type q8_0" in out


def test_a_remedy_works(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "Qwen/Qwen3-32B", "--quant", "Q4_K_M", "--ctx", "32768", *CARD, "--json")
    remedies = {row["what"]: row["value"] for row in json.loads(out)["data"]["remedies"]}
    for option, value in (("--ctx", remedies["n_ctx"]), ("--n-gpu-layers", remedies["n_gpu_layers"])):
        args = ["Qwen/Qwen3-32B", "--quant", "Q4_K_M", *CARD, option, value]
        args += [] if option == "--ctx" else ["--ctx", "32768"]
        assert run(capsys, *args)[0] == ExitCode.OK


def test_what_was_assumed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "Qwen/Qwen3-0.6B", *CARD)
    assert "weights in bf16" in out
    assert "the trained context of 40,960 tokens" in out
    assert "automatic slots: 4 that share one cache" in out
    assert "every layer on the GPU" in out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--ctx", "-1"), "-1"),
        (("--ctx", "0"), "0"),
        (("--type-k", "q6_k"), "Q6_K"),
        (("--type-v", "q8_0", "--flash-attn", "off"), "q8_0"),
        (("--n-gpu-layers", "40"), "40"),
        (("--n-gpu-layers", "-7"), "-7"),
        (("--n-cpu-moe", "77"), "77"),
        (("--tensor-split", "1,1"), "1,1"),
        (("--tensor-split", "a,b"), "a,b"),
        (("--override-tensor", "exps=CUDA9"), "CUDA9"),
        (("--override-tensor", "exps"), "exps"),
        (("--parallel", "0"), "0"),
        (("--ubatch", "0"), "0"),
        (("--ctx", "99999999999999"), "99999999999999"),
    ],
)
def test_what_cannot_be_is_a_usage_error_that_names_it(
    args: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "Qwen/Qwen3-0.6B", *CARD, *args)
    assert (code, out) == (ExitCode.USAGE, "")
    assert named in err


def test_all_layers_has_its_idioms(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {run(capsys, "Qwen/Qwen3-0.6B", *CARD, "--ctx", "4096", "--n-gpu-layers", n)[1].split("Assumed")[0]
               for n in ("99", "999", "all", "29")}  # fmt: skip
    assert len(answers) == 1


def test_python_gives_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    answer = quantplan.estimate("Qwen/Qwen3-0.6B", hardware="RTX4090", n_ctx=4096)  # type: ignore[operator]
    _, out, _ = run(capsys, "Qwen/Qwen3-0.6B", *CARD, "--ctx", "4096", "--json")
    devices = json.loads(out)["data"]["devices"]
    assert [d.total_bytes for d in answer.memory.devices] == [d["total_bytes"] for d in devices]


@pytest.mark.tools
def test_the_engine_cannot_speak_for_another_machine(toolchain: Toolchain, capsys: pytest.CaptureFixture[str]) -> None:
    if toolchain.backend != "cpu":
        pytest.skip("the tools here see GPUs of their own")
    code, _, err = run(capsys, "Qwen/Qwen3-0.6B", *CARD, "--ctx", "4096", "--engine")
    assert code == ExitCode.USAGE
    assert "CUDA0" in err


@pytest.mark.tools
def test_the_engine_and_the_arithmetic_side_by_side(toolchain: Toolchain, capsys: pytest.CaptureFixture[str]) -> None:
    if toolchain.backend != "cpu":
        pytest.skip("the tools here see GPUs of their own")
    options = ("--quant", "Q4_K_M", "--ctx", "4096", "--parallel", "1", "--as", "fit-params", "--n-gpu-layers", "0")
    code, out, _ = run(capsys, "Qwen/Qwen3-0.6B", *options, "--compare", "--json")
    data = json.loads(out)["data"]
    assert (code, data["origin"], data["as"]) == (ExitCode.OK, "measured", "fit-params")
    assert data["engine_build"]
    for told, own in zip(data["devices"], data["calculated"], strict=True):
        for part in ("model_bytes", "context_bytes", "compute_bytes"):
            assert told[part] // 1024**2 == own[part] // 1024**2, part
