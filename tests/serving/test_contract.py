"""The contract check against real servers: honest ones, and ones that are not what was planned."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving.engine import changed, planned_argv, running
from serving.tiny_plan import free_port, planned

from quantplan.artifact.plan_file import Plan, read_plan
from quantplan.artifact.store import Artifact
from quantplan.llama.types import Toolchain
from quantplan.serving.contract import Expected, Report, Status, Tier, expected_of
from quantplan.serving.source import Served
from quantplan.serving.verify import verify

pytestmark = [pytest.mark.tools, pytest.mark.build]
HONEST: tuple[dict[str, Any], ...] = (
    {},
    {"n_parallel": 1, "kv_unified": False},
    {"n_parallel": 4, "n_ctx_per_slot": 512},
    {"n_parallel": 3, "kv_unified": False, "n_ctx_per_slot": 768},
    {"n_ctx_per_slot": 2048},
    {"n_ctx_per_slot": 1000, "n_parallel": 1, "kv_unified": False},
    {"n_ctx_per_slot": 700, "n_parallel": 2},
    {"type_k": "q8_0", "type_v": "q8_0"},
    {"type_k": "q8_0", "type_v": "f16"},
    {"type_k": "q4_0", "type_v": "q4_0", "kv_unified": False},
    {"type_k": "bf16", "type_v": "bf16"},
    {"flash_attn": "off"},
    {"flash_attn": "auto"},
    {"n_batch": 256, "n_ubatch": 128},
    {"n_batch": 2048, "n_ubatch": 512},
    {"threads": 1, "threads_batch": 2},
    {"cache_ram_bytes": 256 * 1024**2},
    {"load_mode": "none"},
    {"load_mode": "dio"},
    {"load_mode": "mlock", "n_parallel": 1, "kv_unified": False},
)


def mismatches(report: Report, tier: Tier | None = None) -> list[str]:
    return [item.name for item in report.items
            if item.status is Status.MISMATCH and tier in (None, item.tier)]  # fmt: skip


@pytest.mark.parametrize("changes", HONEST, ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()) or "-")
def test_an_honest_start_has_nothing_reported(tiny: Artifact, toolchain: Toolchain, changes: dict[str, Any]) -> None:
    plan = planned(tiny.model, sha256=tiny.receipt.model_file.sha256, **changes)
    port = free_port()
    with running(planned_argv(plan, tiny.model, port, toolchain), port) as child:
        report = verify(f"http://127.0.0.1:{port}", expected_of(Served(model=tiny.model, plan=plan, artifact=tiny)))
        assert report.pid == child.pid
    assert mismatches(report) == []
    assert report.unverified == ()
    assert report.exit_code == 0


def test_an_honest_draft_model_is_served_and_seen(
    tiny: Artifact, toolchain: Toolchain, quantized: Callable[[str], Path]
) -> None:
    plan = planned(tiny.model, sha256=tiny.receipt.model_file.sha256, draft=str(quantized("Q8_0")))
    port = free_port()
    with running(planned_argv(plan, tiny.model, port, toolchain), port):
        report = verify(f"http://127.0.0.1:{port}", expected_of(Served(model=tiny.model, plan=plan, artifact=tiny)))
    assert mismatches(report) == []
    assert report.exit_code == 0


def test_a_file_replaced_under_a_running_server_changes_nothing_that_is_served(
    tiny: Artifact, toolchain: Toolchain, tmp_path: Path
) -> None:
    """The mapped file is looked at, not the one that bears its name now; read through the kernel where it lets us."""
    model = tmp_path / tiny.model.name
    shutil.copyfile(tiny.model, model)
    plan, port = read_plan(tiny.folder / "plan.json"), free_port()
    expected = expected_of(Served(model=tiny.model, plan=plan, artifact=tiny))
    with running(planned_argv(plan, model, port, toolchain), port):
        other = tmp_path / "other"
        other.write_bytes(b"GGUF")
        other.replace(model)
        report = verify(f"http://127.0.0.1:{port}", expected)
    (item,) = [item for item in report.items if item.name == "model sha256"]
    assert item.status is (Status.OK if os.geteuid() == 0 else Status.NOT_VERIFIABLE)


def test_a_file_changed_since_it_was_read_cannot_be_verified(
    tiny: Artifact, toolchain: Toolchain, tmp_path: Path
) -> None:
    model = tmp_path / tiny.model.name
    shutil.copyfile(tiny.model, model)
    plan, port = planned(tiny.model, sha256=tiny.receipt.model_file.sha256, load_mode="none"), free_port()
    expected = expected_of(Served(model=tiny.model, plan=plan, artifact=tiny))
    with running(planned_argv(plan, model, port, toolchain), port):
        time.sleep(0.05)
        model.touch()
        report = verify(f"http://127.0.0.1:{port}", expected)
    assert report.exit_code == 5
    assert report.unverified == ("model sha256",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """A server that is not as planned. `local` is an item that has to say so; `remote` one that HTTP alone finds."""

    name: str
    local: str
    remote: str | None = None
    flags: dict[str, str | None] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


DEVIATIONS = (
    Deviation(name="a variable sets the context", local="environment", remote="n_ctx_per_slot",
              flags={"--ctx-size": None, "--kv-unified-per-slot": None}, env={"LLAMA_ARG_CTX_SIZE": "512"}),
    Deviation(name="a variable that a flag overrides", local="environment", env={"LLAMA_ARG_THREADS": "7"}),
    Deviation(name="a variable of the threads library", local="environment", env={"OMP_NUM_THREADS": "1"}),
    Deviation(name="a settings file cools the sampling", local="settings files", remote="request defaults",
              env={"XDG_CONFIG_HOME": "{config}"}),
    Deviation(name="another preset of the model", local="model sha256", remote="quant", flags={"--model": "{q8_0}"}),
    Deviation(name="other weights under the same name", local="model sha256", flags={"--model": "{altered}"}),
    Deviation(name="another template", local="unplanned settings", remote="template",
              extra=("--chat-template", "chatml")),
    Deviation(name="a smaller context", local="n_ctx", remote="n_ctx_per_slot",
              flags={"--ctx-size": "1024", "--kv-unified-per-slot": "512"}),
    Deviation(name="other slots", local="n_parallel", remote="n_parallel",
              flags={"--parallel": "1", "--ctx-size": "1024"}),
    Deviation(name="another KV type", local="type_k", flags={"--cache-type-k": "q8_0"}),
    Deviation(name="an old build", local="build", remote="build"),
    Deviation(name="other threads", local="threads", flags={"--threads": "9"}),
    Deviation(name="flash attention off", local="flash_attn", flags={"--flash-attn": "off"}),
    Deviation(name="an adapter", local="unplanned settings", remote="lora", extra=("--lora", "{lora}")),
    Deviation(name="a draft model", local="draft", remote="draft",
              extra=("--model-draft", "{q8_0}", "--spec-type", "draft-simple")),
    Deviation(name="a prompt cache", local="cache_ram", flags={"--cache-ram": "512"}),
    Deviation(name="a smaller micro-batch", local="n_ubatch", flags={"--ubatch-size": "64"}),
    Deviation(name="another load mode", local="load_mode", flags={"--load-mode": "none"}),
    Deviation(name="a public address", local="bind", flags={"--host": "0.0.0.0"}),
    Deviation(name="a limit on answers", local="unplanned settings", extra=("--n-predict", "8")),
    Deviation(name="stretched positions", local="unplanned settings", extra=("--rope-freq-scale", "0.5")),
    Deviation(name="another name", local="model", remote="model", flags={"--alias": "gpt-4"}),
    Deviation(name="the key on the command line", local="key", extra=("--api-key", "secret")),
)  # fmt: skip


@pytest.fixture(scope="module")
def places(
    tiny: Artifact, quantized: Callable[[str], Path], toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What the deviations need: another preset, altered weights, an adapter, a settings file, another build."""
    folder = tmp_path_factory.mktemp("deviations")
    altered = folder / tiny.model.name
    data = bytearray(tiny.model.read_bytes())
    data[-100] ^= 1
    altered.write_bytes(bytes(data))
    (folder / "config" / "llama.cpp").mkdir(parents=True)
    (folder / "config" / "llama.cpp" / "config.ini").write_text("[*]\ntemp = 0.1\n")
    return {
        "q8_0": str(quantized("Q8_0")), "altered": str(altered), "config": str(folder / "config"),
        "lora": str(write_adapter(folder / "adapter.gguf")), "old": str(other_build(toolchain, folder / "bin")),
    }  # fmt: skip


def write_adapter(path: Path) -> Path:
    """A LoRA of rank 2 for one tensor, with small values."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.full((2, 256), 0.001, dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.full((256, 2), 0.001, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def other_build(toolchain: Toolchain, folder: Path) -> Path:
    """The toolchain's server with another commit inside: what an old build says of itself."""
    commit = toolchain.build.commit
    assert commit is not None
    shutil.copytree(Path(toolchain.programs["llama-server"][0]).parent, folder, symlinks=True)
    n_changed = 0
    for library in (path for path in folder.iterdir() if path.is_file() and not path.is_symlink()):
        data = library.read_bytes()
        if commit.encode() in data:
            library.write_bytes(data.replace(commit.encode(), b"deadbee"))
            n_changed += 1
    assert n_changed
    return folder / "llama-server"


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation.name)
def test_a_deviation_is_caught(
    tiny: Artifact, toolchain: Toolchain, places: dict[str, str], deviation: Deviation
) -> None:
    plan: Plan = read_plan(tiny.folder / "plan.json")
    expected: Expected = expected_of(Served(model=tiny.model, plan=plan, artifact=tiny))
    port = free_port()
    flags = {flag: value and value.format(**places) for flag, value in deviation.flags.items()}
    extra = [word.format(**places) for word in deviation.extra]
    argv = changed(planned_argv(plan, tiny.model, port, toolchain), flags, extra)
    if deviation.name == "an old build":
        argv[0] = places["old"]
    env = {name: value.format(**places) for name, value in deviation.env.items()}
    with running(argv, port, env=env):
        report = verify(f"http://127.0.0.1:{port}", expected)
    assert report.tier is Tier.LOCAL
    assert report.exit_code == 4
    assert deviation.local in mismatches(report)
    if deviation.remote is not None:
        assert deviation.remote in mismatches(report, Tier.REMOTE)


def test_so_many_are_caught() -> None:
    assert len(DEVIATIONS) >= 15
    assert sum(1 for deviation in DEVIATIONS if deviation.remote) >= 9
