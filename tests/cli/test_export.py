"""`quantplan export` from the command line: output, files, refusals."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import jsonschema
import pytest
import yaml
from command_line import refused, run
from serving.export.cases import CASES, made

from quantplan.artifact.plan_file import read_plan, write_plan
from quantplan.artifact.results import Result, Verdict, newest_result, write_result
from quantplan.places import data_file
from quantplan.serving.export.formats import FORMATS

PROGRAM = ("--program", "/opt/llama/llama-server")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path, CASES[0])


def words(name: str) -> tuple[str, ...]:
    return PROGRAM if "program" in FORMATS[name].options else ()


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_written_to_a_folder(name: str, folder: Path, tmp_path: Path) -> None:
    done = run("export", name, folder, "--output", tmp_path / "out", *words(name), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(map(Path, done.stdout.splitlines())) == written
    assert written
    told = json.loads(run("export", name, folder, "--json", *words(name), cwd=tmp_path).stdout)
    jsonschema.validate(told, json.loads(data_file("schemas", "export-1.schema.json").read_text()))
    assert {file["name"]: file["text"] for file in told["data"]["files"]} == {
        str(path.relative_to(tmp_path / "out")): path.read_text(encoding="utf-8") for path in written
    }  # fmt: skip
    notes = [line.removeprefix("Note: ") for line in done.stderr.splitlines() if line.startswith("Note: ")]
    assert notes == told["data"]["notes"]


def test_a_single_file_is_printed(folder: Path, tmp_path: Path) -> None:
    done = run("export", "compose", folder, cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["services"]["llama-server"]["cpus"] == 3.0
    assert done.stderr.startswith("checking m-Q4_K_M.gguf against its receipt\nNote: ")


def test_the_gguf_and_the_plan_name_the_artifact_too(folder: Path, tmp_path: Path) -> None:
    outputs = {run("export", "env", *given, cwd=tmp_path).stdout for given in (
        (folder,), (folder / "m-Q4_K_M.gguf",), (folder / "artifact.json",), ("--plan", folder / "plan.json", folder),
    )}  # fmt: skip
    assert len(outputs) == 1
    assert "LLAMA_ARG_CTX_SIZE=2048" in outputs.pop()


def test_another_plan_counts(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    write_plan(tmp_path / "other.json", replace(read_plan(folder / "plan.json"), n_parallel=5))
    done = run("export", "env", folder, "--plan", tmp_path / "other.json", cwd=tmp_path)
    assert "LLAMA_ARG_N_PARALLEL=5" in done.stdout


def fail(folder: Path) -> None:
    known = newest_result(folder, "gate")
    assert known is not None
    write_result(folder, "gate", Result(artifact_sha256=known.artifact_sha256, policy="p", verdict=Verdict.FAIL,
                                        metrics=(), tool={}, host={}))  # fmt: skip


def test_without_a_pass_nothing_is_exported(folder: Path, tmp_path: Path) -> None:
    fail(folder)
    for name in FORMATS:
        done = run("export", name, folder, "--output", tmp_path / "out", *words(name), cwd=tmp_path)
        refused(done, 4, "its newest gate result is fail, not pass", "--allow-unvalidated")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_allowed_all_the_same_the_files_say_so(name: str, folder: Path, tmp_path: Path) -> None:
    fail(folder)
    done = run("export", name, folder, "--allow-unvalidated", "--output", tmp_path / "out", *words(name), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stderr
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any("its newest gate result is fail, not pass" in text for text in texts)


def test_a_changed_file_is_refused_also_with_the_override(folder: Path, tmp_path: Path) -> None:
    model = folder / "m-Q4_K_M.gguf"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    refused(run("export", "env", folder, "--allow-unvalidated", cwd=tmp_path), 4, "its receipt says")


def test_a_model_without_a_receipt_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    bare.write_bytes((folder / "m-Q4_K_M.gguf").read_bytes())
    done = run("export", "env", bare, "--plan", folder / "plan.json", cwd=tmp_path)
    refused(done, 4, "has no receipt", "--allow-unvalidated")
    allowed = run("export", "env", bare, "--plan", folder / "plan.json", "--allow-unvalidated", cwd=tmp_path)
    assert f"LLAMA_ARG_MODEL={bare}" in allowed.stdout
    assert "# quantplan/verdict: has no receipt" in allowed.stdout


def test_a_plan_of_another_artifact_is_refused(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    plan = read_plan(folder / "plan.json")
    write_plan(tmp_path / "quant.json", replace(plan, quant="Q8_0"))
    refused(run("export", "env", folder, "--plan", tmp_path / "quant.json", cwd=tmp_path), 4, "the plan is for Q8_0")
    write_plan(tmp_path / "sha.json", replace(plan, source={**plan.source, "sha256": "0" * 64}))
    refused(run("export", "env", folder, "--plan", tmp_path / "sha.json", cwd=tmp_path), 4, "the plan is for 0000")


def test_a_plan_without_memory_has_no_limits(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    write_plan(tmp_path / "p.json", replace(read_plan(folder / "plan.json"), memory=()))
    refused(run("export", "env", folder, "--plan", tmp_path / "p.json", cwd=tmp_path), 2, "no limit can be set")


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (("nomad",), 2, "No such command 'nomad'"),
        (("systemd",), 2, "artifact is missing"),
        (("systemd", "ART", "--target-version", "219", *PROGRAM), 1, "systemd 219 is too old"),
        (("compose", "ART", "--target-version", "2.5"), 1, "Docker Compose 2.5 is too old"),
        (("kubernetes", "ART", "--target-version", "1.18"), 1, "Kubernetes 1.18 is too old"),
        (("env", "ART", "--target-version", "b9000"), 1, "llama.cpp b9000 is too old"),
        (("env", "ART", "--target-version", "new"), 2, "is no version number"),
        (("kubernetes", "ART", "--image", "llama:latest"), 2, "without its digest"),
        (("env", "ART", "--name", "../x"), 2, "is no name for a service"),
        (("env", "ART", "--host", "0.0.0.0"), 2, "reachable from other machines"),
        (("env", "ART", "ART"), 2, "takes one artifact, 2 were given"),
        (("env", "nothing"), 1, "no such artifact"),
        (("env", "ART", "--output", "a-file"), 2, "is a file"),
        (("systemd", "ART", "--llama", "nowhere"), 1, "lacks llama-quantize"),
    ],
)
def test_refusals(given: tuple[str, ...], status: int, says: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    put = [str(folder) if word == "ART" else word for word in given]
    refused(run("export", *put, cwd=tmp_path), status, says)


def test_an_artifact_without_a_plan_asks_for_one(folder: Path, tmp_path: Path) -> None:
    plan = (folder / "plan.json").rename(tmp_path / "kept.json")
    refused(run("export", "env", folder, cwd=tmp_path), 2, "plan.json' is not there: name one for this artifact")
    assert run("export", "env", folder, "--plan", plan, cwd=tmp_path).returncode == 0


def test_cards_and_tools_for_the_cpu_do_not_go_together(tmp_path: Path, llama_bin: Path) -> None:
    on_card = made(tmp_path, next(case for case in CASES if case.name == "partial offload"))
    done = run("export", "systemd", on_card, cwd=tmp_path, PATH=f"{llama_bin}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert "ExecStart=/usr/local/bin/llama-server \\" in done.stdout
    assert "is built for the CPU only; /usr/local/bin/llama-server is named instead" in done.stderr
    named = run("export", "systemd", on_card, "--llama", llama_bin, cwd=tmp_path)
    refused(named, 1, "is built for the CPU only")


def test_files_that_are_replaced_are_whole_or_the_old_ones(folder: Path, tmp_path: Path) -> None:
    from quantplan.errors import BadValue
    from quantplan.serving.export.exported import File
    from quantplan.serving.export.write import write_files

    out = tmp_path / "out"
    write_files(out, (File(name="a", text="old"), File(name="deep/b.sh", text="old", mode=0o755)))
    assert stat.S_IMODE((out / "deep/b.sh").stat().st_mode) == 0o755
    (out / "c").mkdir()
    with pytest.raises(BadValue, match="is a folder"):
        write_files(out, (File(name="a", text="new"), File(name="c", text="new")))
    assert (out / "a").read_text() == "old"
    assert sorted(path.name for path in out.rglob("*")) == ["a", "b.sh", "c", "deep"]


def test_several_files_are_not_printed_as_one() -> None:
    from quantplan.cli.export import _printed
    from quantplan.errors import SeveralFiles
    from quantplan.serving.export.exported import Exported, File

    made_of_two = Exported(files=(File(name="a", text="1\n"), File(name="b", text="2\n")))
    with pytest.raises(SeveralFiles, match="is 2 files: a, b"):
        _printed("x", made_of_two, as_json=False)
