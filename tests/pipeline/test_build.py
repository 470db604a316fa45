"""Builds with the real tools: what is done again and what is not, what they leave, and that the bytes are the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import toy_models

from quantplan.artifact.receipt import read_receipt, sha256_of
from quantplan.cli.build_request import Options, make
from quantplan.errors import BadArtifact, ToolFailed
from quantplan.llama.process import run_tool
from quantplan.model.gguf_header import read_gguf_header
from quantplan.pipeline.build import Built, build, explain
from quantplan.pipeline.evaluate import TextTooShort
from quantplan.pipeline.record import Record
from quantplan.pipeline.workspace import build_status
from quantplan.places import data_file

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = data_file("bundled", "eval")
pytestmark = [pytest.mark.tools, pytest.mark.build]


def script(name: str) -> ModuleType:
    """A program of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Tools:
    """Runs the tools, and remembers which steps ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, argv: Sequence[str], *, step: str, **options: Any) -> Any:
        self.ran.append(step)
        return run_tool(argv, step=step, **options)


def options(output: Path, **changes: Any) -> Options:
    values: dict[str, Any] = {
        "quants": ("Q4_K_M",), "output": output, "texts": (f"a={SHIPPED / 'chat.txt'}",), "chunks": 2, **changes,
    }  # fmt: skip
    return Options(**values)


def run(output: Path, model: str = "quantplan-tiny", **changes: Any) -> tuple[Built, list[str], list[str]]:
    """(first artifact, the steps that ran a tool, what was said)."""
    said: list[str] = []
    tools = Tools()
    request = make(model, options(output, **changes))
    built = build(request, tell=lambda name, what: said.append(f"{name}: {what}"), run=tools)
    return built[0], tools.ran, said


STEPS = ["convert", "quantize Q8_0", "quantize Q4_K_M",
         "evaluate BF16 on a", "evaluate Q8_0 on a", "evaluate Q4_K_M on a"]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, toolchain: object) -> Path:
    """The output folder of a finished build; not to be changed."""
    output = tmp_path_factory.mktemp("built") / "artifacts"
    artifact, ran, _ = run(output)
    assert ran == STEPS
    assert artifact.fresh
    return output


@pytest.fixture
def again(built: Path, tmp_path: Path) -> Path:
    """A copy of it: moved to another folder, with other inodes."""
    shutil.copytree(built, tmp_path / "artifacts", symlinks=True)
    return tmp_path / "artifacts"


def test_a_moved_build_is_still_done(again: Path) -> None:
    artifact, ran, said = run(again)
    assert ran == []
    assert not artifact.fresh
    assert "convert: skipped (unchanged since " in said[0]


def test_the_folder_holds_what_the_disk_plan_said(built: Path) -> None:
    work = built / ".work" / "quantplan-tiny"
    names = {path.name for path in work.iterdir()}
    assert names == {
        "run.json",
        "status.json",
        "logs",
        *(f"quantplan-tiny-{q}.gguf" for q in ("BF16", "Q8_0", "Q4_K_M")),
    }
    request = make("quantplan-tiny", options(built))
    assert request.sizes is not None
    assert request.sizes.converted_bytes == (work / "quantplan-tiny-BF16.gguf").stat().st_size
    for quant in ("Q8_0", "Q4_K_M"):
        assert request.sizes.quants[quant] == (work / f"quantplan-tiny-{quant}.gguf").stat().st_size


@pytest.mark.parametrize(
    ("lost", "ran"),
    [
        (["quantplan-tiny-BF16.gguf"], []),
        (["quantplan-tiny-Q4_K_M.gguf"], []),
        (["quantplan-tiny-BF16.gguf", "artifact"], []),
        (["quantplan-tiny-Q4_K_M.gguf", "artifact"], ["quantize Q4_K_M"]),
        (["quantplan-tiny-BF16.gguf", "quantplan-tiny-Q4_K_M.gguf", "artifact"], ["convert", "quantize Q4_K_M"]),
        (["run.json"], STEPS),
    ],
)
def test_only_what_somebody_needs_is_made_again(again: Path, lost: list[str], ran: list[str]) -> None:
    before = sha256_of(again / "quantplan-tiny-Q4_K_M" / "quantplan-tiny-Q4_K_M.gguf")
    for name in lost:
        if name == "artifact":
            shutil.rmtree(again / "quantplan-tiny-Q4_K_M")
        else:
            (again / ".work" / "quantplan-tiny" / name).unlink()
    artifact, done, _ = run(again)
    assert done == ran
    assert artifact.file.sha256 == before


def test_a_changed_intermediate_is_found_and_made_again(again: Path) -> None:
    """The artifact shares the file by a hard link no longer (it was copied), so only the intermediate is damaged."""
    file = again / ".work" / "quantplan-tiny" / "quantplan-tiny-Q4_K_M.gguf"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    decisions, _ = explain(make("quantplan-tiny", options(again)), tell=lambda name, what: None)
    reasons = {one.action.name: (one.runs, one.reason) for one in decisions}
    assert reasons["quantize Q4_K_M"] == (True, "its output was changed on the disk")
    assert reasons["convert"][0] is False
    _, ran, _ = run(again)
    assert ran == ["quantize Q4_K_M"]


def test_a_changed_artifact_is_set_aside_and_laid_out_again(again: Path) -> None:
    model = again / "quantplan-tiny-Q4_K_M" / "quantplan-tiny-Q4_K_M.gguf"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.unlink()
    model.write_bytes(content)
    artifact, ran, _ = run(again)
    assert ran == []
    assert artifact.fresh
    assert sha256_of(model) == read_receipt(model.parent).model_file.sha256
    assert (again / "quantplan-tiny-Q4_K_M.old-1" / "artifact.json").is_file()


def test_another_text_is_evaluated_and_nothing_else(again: Path) -> None:
    two = (f"a={SHIPPED / 'chat.txt'}", f"b={SHIPPED / 'code.txt'}")
    folder = again / "quantplan-tiny-Q4_K_M"
    before = (folder / "artifact.json").read_bytes()
    artifact, ran, _ = run(again, texts=two)
    assert ran == [f"evaluate {name} on b" for name in ("BF16", "Q8_0", "Q4_K_M")]
    assert artifact.fresh
    assert (folder / "artifact.json").read_bytes() == before  # written once; the new verdict is a result beside it
    assert len(list((folder / "results").iterdir())) == 2
    assert run(again, texts=two)[1] == []


def test_clean_leaves_proof_enough(again: Path) -> None:
    run(again, clean=True)
    work = again / ".work" / "quantplan-tiny"
    assert [path.name for path in work.iterdir() if path.suffix in (".gguf", ".logits")] == []
    artifact, ran, _ = run(again)
    assert ran == []
    assert not artifact.fresh


def test_two_builds_share_one_folder(again: Path) -> None:
    """The second waits, and finds the first one's work done."""
    (again / ".work" / "quantplan-tiny" / "quantplan-tiny-Q4_K_M.gguf").unlink()
    shutil.rmtree(again / "quantplan-tiny-Q4_K_M")
    both = [make("quantplan-tiny", options(again)) for _ in range(2)]
    tools, said = Tools(), []  # type: ignore[var-annotated]
    threads = [
        threading.Thread(target=build, args=(one,), kwargs={"tell": lambda *w: said.append(w), "run": tools})
        for one in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tools.ran == ["quantize Q4_K_M"]


def test_status_of_a_finished_and_a_broken_off_build(again: Path) -> None:
    (one,) = build_status(again)
    assert one["pid"] is None
    assert {step["state"] for step in one["steps"]} == {"done"}
    (again / ".work" / "quantplan-tiny" / "run.json").unlink()

    def fails(argv: Sequence[str], *, step: str, **rest: Any) -> Any:
        if step == "quantize Q8_0":
            raise ToolFailed(step=step, argv=argv, returncode=-9, last_lines=())
        return run_tool(argv, step=step, **rest)

    with pytest.raises(ToolFailed, match="quantize Q8_0: llama-quantize ended with status -9"):
        build(make("quantplan-tiny", options(again)), tell=lambda name, what: None, run=fails)
    (one,) = build_status(again)
    states = {step["name"]: step["state"] for step in one["steps"]}
    assert states["convert"] == "done"
    assert states["quantize Q8_0"] == "stopped"
    assert states["publish Q4_K_M"] == "waiting"


def test_splits_matrix_and_overrides_in_tight_mode(again: Path, tmp_path: Path) -> None:
    """Everything at once, on the conversion that is there."""
    calibration = tmp_path / "c.txt"
    calibration.write_text((SHIPPED / "sums.txt").read_text()[:60_000])
    more: dict[str, Any] = {
        "quants": ("IQ3_XXS",), "calibration": calibration, "calibration_chunks": 4, "split_max_size": "1MB",
        "tensor_types": ("attn_v=q5_k",), "output_tensor_type": "q8_0", "disk": "tight",
    }  # fmt: skip
    artifact, ran, _ = run(again, **more)
    assert "convert" not in ran
    folder = artifact.folder
    receipt = read_receipt(folder)
    jsonschema.validate(
        json.loads((folder / "artifact.json").read_text()),
        json.loads(data_file("schemas", "artifact-1.schema.json").read_text()),
    )
    assert [one.name for one in receipt.files] == [f"quantplan-tiny-IQ3_XXS-0000{i}-of-00002.gguf" for i in (1, 2)]
    header = read_gguf_header(folder / receipt.model_file.name)
    types = {tensor.name: tensor.type_name for tensor in header.tensors}
    assert types["blk.0.attn_v.weight"] == "Q5_K"
    assert types["output.weight"] == "Q8_0"
    assert header.metadata["quantize.imatrix.file"] == "imatrix.gguf"
    assert header.metadata["quantize.imatrix.dataset"] == f"calibration-{sha256_of(calibration)[:8]}.txt"
    assert receipt.calibration is not None
    assert receipt.calibration.sha256 == sha256_of(calibration)
    assert receipt.imatrix is not None
    assert receipt.imatrix["n_chunks"] == 4
    assert receipt.overrides is not None
    assert receipt.fallbacks == ()
    left = {path.name for path in (again / ".work" / "quantplan-tiny").iterdir()}
    assert left == {"run.json", "status.json", "logs", "quantplan-tiny-IQ3_XXS.split", "quantplan-tiny-Q4_K_M.gguf"}
    card = (folder / "README.md").read_text()
    assert "importance matrix: 4 chunks" in card
    assert run(again, **more)[1] == []


def test_a_given_matrix_gives_the_same_bytes_wherever_it_lies(again: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "c.txt"
    calibration.write_text((SHIPPED / "sums.txt").read_text()[:60_000])
    made, _, _ = run(again, calibration=calibration, calibration_chunks=4)
    matrix = tmp_path / "elsewhere.gguf"
    shutil.copy(again / ".work" / "quantplan-tiny" / "imatrix.gguf", matrix)
    (again / ".work" / "quantplan-tiny" / "imatrix.gguf").unlink()
    given, ran, _ = run(again, imatrix=matrix)
    assert "imatrix" not in ran
    assert given.file.sha256 == made.file.sha256


def test_experts_without_data_are_named(tmp_path: Path) -> None:
    model = toy_models.mixture(tmp_path / "Toy-4x1M", n_expert=32)
    text = tmp_path / "c.txt"
    text.write_text("1 + 1 = 2\n" * 1500)
    artifact, _, said = run(tmp_path / "out", str(model), calibration=text, calibration_chunks=2)
    receipt = read_receipt(artifact.folder)
    assert receipt.imatrix is not None
    without = receipt.imatrix["without_data"]
    assert without
    assert all(name.startswith("blk.") and "_exps.weight[" in name for name in without)
    assert any("has no data for blk.0.ffn_" in note for note in artifact.notes)
    assert any(line.startswith("imatrix: the importance matrix has no data for ") for line in said)


def test_a_model_that_sees_gets_its_projector(tmp_path: Path) -> None:
    model = toy_models.vision(tmp_path / "Toy-VL-3M")
    artifact, ran, _ = run(tmp_path / "out", str(model))
    assert ran[:2] == ["convert", "convert mmproj"]
    receipt = read_receipt(artifact.folder)
    assert [one.name for one in receipt.files] == ["Toy-VL-3M-Q4_K_M.gguf", "mmproj-Toy-VL-3M-BF16.gguf"]
    assert receipt.mmproj_file is not None
    header = read_gguf_header(artifact.folder / receipt.mmproj_file.name)
    assert header.metadata["clip.has_vision_encoder"] is True
    told = (artifact.folder / receipt.mmproj_file.name).read_bytes()
    assert str(tmp_path).encode() not in told


def test_rows_that_fill_no_blocks_are_named_before_and_after(tmp_path: Path) -> None:
    odd = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = toy_models.llama(tmp_path / "odd", **odd)
    request = make(str(model), options(tmp_path / "out"))
    assert any("rows that do not fill its blocks" in warning for warning in request.warnings)
    artifact, _, _ = run(tmp_path / "out", str(model))
    receipt = read_receipt(artifact.folder)
    assert receipt.fallbacks is not None
    assert "blk.0.attn_q.weight" in receipt.fallbacks
    assert "tensors in another type than the preset's" in (artifact.folder / "README.md").read_text()
    assert any("15 tensors got another type than the preset's" in note for note in artifact.notes)


def test_f16_of_a_bf16_source_is_warned_of(again: Path) -> None:
    request = make("quantplan-tiny", options(again, outtype="f16"))
    assert any("f16 cuts off its largest and smallest values" in warning for warning in request.warnings)
    assert make("quantplan-tiny", options(again, outtype="auto")).outtype == "bf16"


def test_ctrl_c_stops_the_tool_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "quantplan", "build", "quantplan-tiny", "--text", str(SHIPPED / "chat.txt")]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    process = subprocess.Popen(
        words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    signal.signal(signal.SIGINT, handler)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("convert: running"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(timeout=60) == 130
    process.stderr.close()
    assert said.endswith("Interrupted.\n")
    left = [path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    assert sorted({*left} - {"run.json"}) == [".quantplan-tiny.lock", "convert.log", "status.json"]  # and the record


def test_killed_builds_go_on_where_they_were(tmp_path: Path) -> None:
    """The short version of scripts/kill_build.py."""
    kill_build = script("kill_build")
    expected, took = kill_build.prepare(tmp_path)
    seconds = dict(took)
    moments = [("convert", 0.5), ("quantize Q4_K_M", 0.3), ("evaluate Q8_0 on a", 0.5)]
    for i, (step, share) in enumerate(moments):
        assert kill_build.once(tmp_path / f"{i}", step, share * seconds[step], expected) in ("", "-")


def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    """scripts/full_disk.py: on a tmpfs of limited size where one may be mounted, else with limited files."""
    words = [sys.executable, str(ROOT / "scripts" / "full_disk.py")]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("told, and nothing was left behind") == 7
    assert "the artifact is the same as without a full disk" in done.stdout


def test_peak_disk_is_what_was_promised(tmp_path: Path) -> None:
    """The short version of scripts/build_bars.py disk."""
    bars = script("build_bars")
    assert bars.disk(tmp_path, synthetic=False, modes=("tight", "remote"))


def test_a_receipt_is_never_changed(built: Path) -> None:
    from quantplan.artifact.receipt import write_receipt

    folder = built / "quantplan-tiny-Q4_K_M"
    with pytest.raises(BadArtifact, match="is never changed"):
        write_receipt(folder, read_receipt(folder))


def test_what_is_kept_holds_no_local_path(built: Path) -> None:
    folder = built / "quantplan-tiny-Q4_K_M"
    for path in (folder / "artifact.json", folder / "README.md", folder / "quantplan-tiny-Q4_K_M.gguf"):
        content = path.read_bytes()
        for secret in (built, data_file("bundled"), Path.home()):
            assert str(secret).encode() not in content, f"{path.name} holds {secret}"
    assert Record(built / ".work" / "quantplan-tiny" / "run.json").known("quantplan-tiny-Q4_K_M.gguf")


def test_a_calibration_text_that_is_too_short(again: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("hello\n")
    with pytest.raises(TextTooShort, match=r"short.txt: \d+ tokens, at least 1024 are needed"):
        run(again, calibration=text)
    assert not list((again / ".work" / "quantplan-tiny").glob("imatrix*"))


def test_a_killed_tool_is_named_with_its_signal(again: Path) -> None:
    """As the kernel does when memory runs out: the tool dies, quantplan does not."""
    (again / ".work" / "quantplan-tiny" / "run.json").unlink()

    def killed(argv: Sequence[str], *, step: str, **rest: Any) -> Any:
        return run_tool((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), step=step, **rest)

    with pytest.raises(ToolFailed, match=r"convert: python.* ended with status -9"):
        build(make("quantplan-tiny", options(again)), tell=lambda name, what: None, run=killed)
    assert not list((again / ".work" / "quantplan-tiny").glob("*.partial"))
