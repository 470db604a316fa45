"""vLLM's commands: by the flags that its own parser was recorded with, and by that parser where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving.export.cases import CASES, deployment
from serving.export.deployed import on_cards, put
from serving.export.read_vllm import serve_words

from quantplan.artifact.plan_file import Margin
from quantplan.errors import CannotExport, TargetTooOld
from quantplan.model.facts import FactsOrigin, LayerFacts, ModelFacts
from quantplan.serving.export.deployment import Deployment, GpuNeed
from quantplan.serving.export.formats import export
from quantplan.serving.export.vllm_memory import Layout, kv_bytes, layout, made_smaller, weights_bytes
from quantplan.serving.lint.check import lint_paths
from quantplan.units import GIB

ROOT = Path(__file__).resolve().parents[3]
FLAGS = json.loads((ROOT / "tests" / "data" / "vllm_flags.json").read_text(encoding="utf-8"))["flags"]
LLAMA_8B = ModelFacts(
    id="m", arch="llama", n_layer=32, n_ctx_train=131072, n_embd=4096, n_vocab=128256, parameters=8_030_261_248,
    layers=(LayerFacts(n_head=32, n_head_kv=8, n_embd_head_k=128, n_embd_head_v=128),) * 32, tensors=(),
    origin=next(iter(FactsOrigin)),
)  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> Deployment:
    return deployment(tmp_path, CASES[0])


def with_cards(told: Deployment, n: int, *, capacity_bytes: int = 24 * GIB, **target: Any) -> Deployment:
    """The deployment on `n` cards of which a GiB each is left free."""
    names = tuple(f"CUDA{index}" for index in range(n))
    margin = tuple(Margin(device=name, bytes=GIB, why="test") for name in names)
    plan = replace(told.plan, memory=on_cards(told.plan, n, capacity_bytes=capacity_bytes), margin=margin,
                   n_gpu_layers=33)  # fmt: skip
    gpu = GpuNeed(backend="cuda", names=names, memory_bytes=(1,) * n)
    return replace(told, plan=plan, gpu=gpu, target=replace(told.target, **target))


def checked(words: list[str]) -> dict[str, str]:
    """The flags with their values, each one that vLLM has, of its type and of its choices."""
    found: dict[str, str] = {}
    rest = list(words[1:])
    assert not words[0].startswith("-")
    while rest:
        flag = rest.pop(0)
        assert flag in FLAGS, flag
        if FLAGS[flag]["type"] is None:
            found[flag] = ""
            continue
        value = rest.pop(0)
        assert FLAGS[flag]["choices"] is None or value in FLAGS[flag]["choices"], (flag, value)
        if FLAGS[flag]["type"] in ("int", "float"):
            float(value)
        assert flag not in found
        found[flag] = value
    return found


def one(told: Deployment) -> dict[str, str]:
    (script,) = export("vllm", (told,)).files
    (words,) = serve_words(script.text)
    return checked(words)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_context_slots_and_cards_are_the_plan_s(case: Any, tmp_path: Path) -> None:
    told = deployment(tmp_path, case)
    found, plan = one(told), told.plan
    assert found["--max-model-len"] == str(plan.n_ctx_per_slot)
    assert found["--max-num-seqs"] == str(plan.n_parallel)
    assert found["--served-model-name"] == plan.model
    assert found["--revision"] == plan.source["revision"]
    assert found["--host"] == "127.0.0.1"
    assert found["--runner"] == ("pooling" if plan.embeddings else "generate")
    n_cards = told.gpu.count if told.gpu else 1
    assert int(found["--tensor-parallel-size"]) * int(found["--pipeline-parallel-size"]) == n_cards
    assert "--api-key" not in found
    text = export("vllm", (told,)).files[0].text
    assert ("export CUDA_VISIBLE_DEVICES=1\n" in text) == (case.name == "the second card")
    assert ("OMP_NUM_THREADS=3" in text) == (told.gpu is None and plan.cpu_range is None)


def test_the_cache_holds_every_slot_s_context(told: Deployment) -> None:
    """Llama-3-8B takes 128 KiB a token in 16 bit; 8 slots of 8192 tokens are 8 GiB and one block of 16 tokens."""
    plan = replace(told.plan, n_parallel=8, n_ctx_per_slot=8192)
    block = 16 * 128 * 1024
    assert kv_bytes(LLAMA_8B, replace(told, plan=plan), Layout(tensor=1, pipeline=1)) == 8 * GIB + block
    assert kv_bytes(LLAMA_8B, replace(told, plan=plan), Layout(tensor=4, pipeline=1)) == (8 * GIB + block) // 4
    assert kv_bytes(LLAMA_8B, replace(told, plan=plan), Layout(tensor=2, pipeline=2)) == (8 * GIB + block) // 4
    assert kv_bytes(LLAMA_8B, replace(told, plan=plan), Layout(tensor=16, pipeline=1)) == (8 * GIB + block) // 8
    recurrent = replace(LLAMA_8B, layers=(replace(LLAMA_8B.layers[0], n_embd_s=1024), *LLAMA_8B.layers[1:]))
    assert kv_bytes(recurrent, told, Layout(tensor=1, pipeline=1)) is None


@pytest.mark.parametrize(
    ("n_cards", "n_nodes", "nvlink", "tensor", "pipeline"),
    [(1, 1, None, 1, 1), (2, 1, None, 2, 1), (2, 1, True, 2, 1), (2, 1, False, 1, 2), (8, 2, None, 8, 2),
     (3, 1, None, 1, 3), (4, 3, False, 1, 12), (16, 1, True, 16, 1)],
)  # fmt: skip
def test_cards_share_layers_and_nodes_follow_each_other(
    n_cards: int, n_nodes: int, nvlink: bool | None, tensor: int, pipeline: int
) -> None:
    found = layout(LLAMA_8B, n_cards=n_cards, n_nodes=n_nodes, nvlink=nvlink)
    assert found == Layout(tensor=tensor, pipeline=pipeline)


def test_what_fits_in_16_bit_in_fp8_and_not_at_all(told: Deployment) -> None:
    """Llama-3-8B is 15.0 GiB in 16 bit; the two slots of 1024 tokens take a quarter of one."""
    assert weights_bytes(LLAMA_8B) == 16_060_522_496

    def asked(capacity_gib: int, n_cards: int = 1) -> str | None:
        over = Layout(tensor=n_cards, pipeline=1)
        cards = with_cards(told, n_cards, capacity_bytes=capacity_gib * GIB)
        return made_smaller(LLAMA_8B, cards, kv_bytes(LLAMA_8B, cards, over) or 0, over=over)

    assert [asked(24), asked(17), asked(16), asked(10)] == [None, None, "fp8", "fp8"]
    assert asked(10, n_cards=2) is None
    with pytest.raises(CannotExport, match=r"take 15\.2 GiB in 16 bit, there are 7\.0"):
        asked(8)
    assert one(with_cards(told, 1, capacity_bytes=24 * GIB))["--gpu-memory-utilization"] == "0.95"


def several(told: Deployment) -> tuple[Deployment, dict[str, str]]:
    two = with_cards(told, 2, n_nodes=3)
    return two, {file.name: file.text for file in export("vllm", (two,)).files}


def test_several_nodes_by_vllm_s_own_launch(told: Deployment) -> None:
    _, files = several(told)
    (others, first) = [checked(words) for words in serve_words(files["vllm-node.sh"], arg1="2", arg2="10.0.0.1")]
    assert others.pop("--headless") == ""
    assert others == first
    assert (first["--nnodes"], first["--node-rank"], first["--master-addr"]) == ("3", "2", "10.0.0.1")
    assert first["--distributed-executor-backend"] == "mp"
    world = int(first["--tensor-parallel-size"]) * int(first["--pipeline-parallel-size"])
    assert world == 2 * 3 and world % 3 == 0


def test_several_nodes_over_ray(told: Deployment) -> None:
    _, files = several(told)
    (words,) = serve_words(files["ray-head.sh"])
    assert checked(words)["--distributed-executor-backend"] == "ray"
    assert 'ray start --head --node-ip-address "$1" --port 6379 --num-gpus 2' in files["ray-head.sh"]
    assert 'get("GPU", 0) < 6:' in files["ray-head.sh"]
    assert files["ray-worker.sh"].replace("\\\n", "").count("--block") == 1
    assert '"$1:6379"' in files["ray-worker.sh"]


def test_scripts_are_shell_and_start_what_they_say(told: Deployment, tmp_path: Path) -> None:
    """With a vllm and a ray that only say how they were called."""
    key = tmp_path / "keys"
    key.write_text("# ours\nfirst-key name=alice\nsecond-key\n")
    two = with_cards(told, 2, n_nodes=3, api_key_file=str(key))
    folder = put(tmp_path / "out", export("vllm", (two,)))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("vllm", "ray", "python3"):
        (programs / name).write_text('#!/bin/sh\necho "$(basename "$0") $* key=${VLLM_API_KEY-}"\n')
        (programs / name).chmod(0o755)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{programs}:/usr/bin:/bin"}
        return subprocess.run([folder / words[0], *words[1:]], env=env, capture_output=True, text=True, timeout=30,
                              check=False)  # fmt: skip

    first, second = run("vllm-node.sh", "0", "10.0.0.1").stdout, run("vllm-node.sh", "1", "10.0.0.1").stdout
    assert "key=first-key" in first and "--node-rank 0 --master-addr 10.0.0.1" in first
    assert "--headless" not in first and "--headless" in second and "--node-rank 1" in second
    assert "first-key" not in first.replace("key=first-key", "")
    assert run("vllm-node.sh", "0").returncode != 0
    head = run("ray-head.sh", "10.0.0.1").stdout.splitlines()
    assert [line.split()[0] for line in head] == ["ray", "python3", "vllm"]
    assert run("ray-worker.sh", "10.0.0.1").stdout.startswith("ray start --address 10.0.0.1:6379 --num-gpus 2 --block")
    key.write_text("\n")
    assert "there is no key" in run("vllm-node.sh", "0", "10.0.0.1").stderr


def test_what_it_cannot_run(told: Deployment, tmp_path: Path) -> None:
    without = replace(told, plan=replace(told.plan, source={"repo": None}))
    with pytest.raises(CannotExport, match="names no repository"):
        export("vllm", (without,))
    vulkan = replace(told, gpu=GpuNeed(backend="vulkan", names=("Vulkan0",), memory_bytes=(1,)))
    with pytest.raises(CannotExport, match="no backend for Vulkan0"):
        export("vllm", (vulkan,))
    with pytest.raises(CannotExport, match="several nodes are for plans with cards"):
        export("vllm", (replace(told, target=replace(told.target, n_nodes=2)),))
    with pytest.raises(TargetTooOld, match=r"vLLM 0\.10\.2 is too old: --kv-cache-memory-bytes needs 0\.14"):
        export("vllm", (told,), version="0.10.2")
    with pytest.raises(TargetTooOld, match="a launch of several nodes needs"):
        export("vllm", (with_cards(told, 2, n_nodes=2),), version="0.14.1")
    two, _ = several(told)
    folder = put(tmp_path / "out", export("vllm", (two,)))
    assert lint_paths([folder], plan=two.plan).findings == ()


@pytest.mark.vllm
def test_vllm_s_own_parser_takes_them(told: Deployment, tmp_path: Path) -> None:
    """QUANTPLAN_VLLM_PYTHON is the interpreter of a vLLM that is installed elsewhere (its CPU build will do)."""
    python = os.environ.get("QUANTPLAN_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)
    if python is None:
        pytest.skip("vLLM is not installed")
    _, files = several(told)
    commands = [words for text in (*files.values(), export("vllm", (told,)).files[0].text)
                for words in serve_words(text, arg1="1", arg2="10.0.0.1")]  # fmt: skip
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run([python, ROOT / "scripts" / "record_vllm_flags.py", "--check", tmp_path / "commands.json"],
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    assert {one["max_model_len"] for one in found} == {told.plan.n_ctx_per_slot}
    assert {one["max_num_seqs"] for one in found} == {told.plan.n_parallel}
    assert [one["nnodes"] for one in found] == [3, 3, 1, 1]
    assert [one["headless"] for one in found] == [True, False, False, False]
