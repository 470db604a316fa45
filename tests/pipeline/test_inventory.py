"""What is kept, what may go, and what stays because an artifact needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_fixture import artifact

from quantplan import errors
from quantplan.artifact.registry import remember
from quantplan.pipeline.inventory import Kind, find_item, inventory, remove_item

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one of everything, an output folder with one finished and one unfinished build."""
    monkeypatch.setenv("QUANTPLAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QUANTPLAN_STATE", str(tmp_path / "state"))
    for name in ("downloads/org--a/c0ffee/w.gguf", "downloads/org--b/c0ffee/w.gguf", "references/r-BF16.gguf",
                 "toolchains/0.3.36-cpu-x/manifest.json", "toolchains/0.1.0-cpu-x/manifest.json",
                 "toolchains/0.2.0-cpu-x/bin/half", "weightless/1-x.gguf", "hub/a/b/c"):  # fmt: skip
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 9000)
    out = tmp_path / "artifacts"
    artifact(out / "done-Q4_K_M")
    for name in ("done", "half"):
        (out / ".work" / name).mkdir(parents=True)
        (out / ".work" / name / "BF16.gguf").write_bytes(b"x" * 9000)
    (out / ".work" / "half" / "reference-t.logits").write_bytes(b"x" * 9000)
    (out / ".x.partial").mkdir()
    return tmp_path


def gone(items: tuple) -> set[str]:  # type: ignore[type-arg]
    return {one.label for one in items if one.stale and not one.needed_by}


def test_everything_is_listed_with_what_may_go(place: Path) -> None:
    out = place / "artifacts"
    items = inventory([out])
    assert gone(items) == {
        f"work:{out}/.work/done", f"work:{out}/.x.partial", "download:org--a/c0ffee", "download:org--b/c0ffee",
        "reference:r-BF16.gguf", "toolchain:0.1.0-cpu-x", "toolchain:0.2.0-cpu-x", "cache:weightless",
    }  # fmt: skip
    half = find_item(items, f"work:{out}/.work/half")
    assert half.logits_bytes > 0
    assert half.stale is None


def test_what_an_artifact_links_to_stays(place: Path) -> None:
    """Also when the artifact lies where nobody looks: it was remembered."""
    elsewhere = artifact(place / "elsewhere" / "m-Q4_K_M")
    kept = place / "cache" / "downloads" / "org--a" / "c0ffee" / "w.gguf"
    (elsewhere / "linked.gguf").symlink_to(kept)
    remember(elsewhere)
    items = inventory([place / "artifacts"])
    assert "download:org--a/c0ffee" not in gone(items)
    item = find_item(items, "download:org--a/c0ffee")
    assert item.needed_by == (str(elsewhere),)
    with pytest.raises(errors.StillNeeded, match=r"download:org--a/c0ffee is needed by .*m-Q4_K_M: it was not deleted"):
        remove_item(item)
    assert kept.exists()


def test_a_linked_file_frees_nothing(place: Path) -> None:
    kept = place / "cache" / "downloads" / "org--a" / "c0ffee" / "w.gguf"
    os.link(kept, place / "artifacts" / "done-Q4_K_M" / "w.gguf")
    item = find_item(inventory([place / "artifacts"]), "download:org--a/c0ffee")
    assert item.n_bytes > item.frees_bytes


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "quantplan", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, cwd=place,
                          stdin=subprocess.DEVNULL)  # fmt: skip


def test_gc_is_dry_until_it_is_told(place: Path) -> None:
    before = sorted(place.rglob("*"))
    done = run(place, "gc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("would delete 8 item(s), ")
    assert done.stdout.endswith("Next: quantplan gc --yes\n")
    assert sorted(place.rglob("*")) == before
    told = json.loads(run(place, "gc", "--yes", "--json").stdout)["data"]
    assert (len(told["items"]), told["deleted"]) == (8, True)
    assert (place / "artifacts" / "done-Q4_K_M" / "artifact.json").is_file()
    assert (place / "artifacts" / ".work" / "half").is_dir()
    assert not (place / "cache" / "downloads" / "org--a" / "c0ffee").exists()
    assert run(place, "gc").stdout == "Nothing to delete.\n"


def test_rm_asks(place: Path) -> None:
    done = run(place, "rm", "artifacts/done-Q4_K_M")
    assert done.returncode == 2
    assert "nothing was deleted, since nobody said yes" in done.stderr
    assert "Hint: answer yes where you are asked, or give --yes" in done.stderr
    done = run(place, "rm", "artifacts/done-Q4_K_M", "--yes")
    assert (done.returncode, done.stdout[:17]) == (0, "deleted artifact:")
    assert not (place / "artifacts" / "done-Q4_K_M").exists()
    done = run(place, "rm", "nosuch", "--yes")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "Error: nothing called 'nosuch' is kept here")


def test_a_build_at_work_keeps_its_folder(place: Path) -> None:
    from quantplan.pipeline.lock import locked

    out = place / "artifacts"
    with locked(out / ".work" / "done", lambda pid: None):
        item = find_item(inventory([out]), f"work:{out}/.work/done")
        assert item.needed_by == (f"a build is at work (process {os.getpid()})",)
        assert item.stale is None


def test_list_shows_sizes(place: Path) -> None:
    done = run(place, "list", "--json")
    items = json.loads(done.stdout)["data"]["items"]
    kinds = {one["kind"] for one in items}
    assert kinds == {kind.value for kind in Kind}
    assert all(one["bytes"] >= one["frees_bytes"] > 0 for one in items)
    shown = run(place, "list")
    assert "validated" in shown.stdout
    assert "the pinned build" in shown.stdout
