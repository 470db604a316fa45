"""The runner with processes that are only said to run: how many, beside which, within what, and who goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from quantplan.pipeline import fleet_run
from quantplan.pipeline.fleet_budget import Admission, Budget, UnitNeed, memory_at_once, most_at_once
from quantplan.pipeline.fleet_commands import How
from quantplan.pipeline.fleet_file import read_fleet
from quantplan.pipeline.fleet_order import Unit, units_of
from quantplan.pipeline.fleet_run import EntryEnd, FleetRunner
from quantplan.units import MIB


class FakeHost:
    """Starts nothing; a command takes `polls` looks. Answers are made from the words; some fail."""

    def __init__(self, *, fails: Mapping[str, int] | None = None, verdicts: Mapping[str, str] | None = None) -> None:
        self.fails, self.verdicts = dict(fails or {}), dict(verdicts or {})
        self.running: list[tuple[str, ...]] = []
        self.began: list[tuple[str, ...]] = []
        self.most = 0
        self.together: set[frozenset[str]] = set()
        self.stopped: list[object] = []

    def start(self, argv: Sequence[str], out: IO[bytes], log: IO[bytes]) -> FakeChild:
        words = tuple(argv[1:])
        self.began.append(words)
        self.running.append(words)
        self.most = max(self.most, len(self.running))
        self.together.add(frozenset(one[1] for one in self.running))
        status, told = self._answer(words)
        out.write(json.dumps(told).encode())
        return FakeChild(self, words, status)

    def _answer(self, words: tuple[str, ...]) -> tuple[int, Any]:
        key = next((key for key in self.fails if key in " ".join(words)), None)
        if key is not None:
            return self.fails[key], {"error": {"message": f"{key} cannot be made"}}
        if words[0] == "build":
            quants = [words[i + 1] for i, word in enumerate(words) if word == "--quant"]
            artifacts = [
                {"quant": quant, "verdict": self.verdicts.get(quant, "pass"), "reason": "so", "fresh": True,
                 "file": {"name": "x.gguf", "bytes": 5}}
                for quant in quants
            ]  # fmt: skip
            return 0, {"data": {"artifacts": artifacts}}
        if words[0] == "gate":
            verdict = self.verdicts.get(words[3], "pass")
            return {"pass": 0, "fail": 4}[verdict], {"data": {"result": {"verdict": verdict, "reason": "too far"}}}
        return 0, {"data": {"repo": "me/x"}}


class FakeChild:
    def __init__(self, host: FakeHost, words: tuple[str, ...], status: int) -> None:
        self._host, self._words, self._status, self._left = host, words, status, 3

    def poll(self) -> int | None:
        self._left -= 1
        if self._left > 0:
            return None
        self._host.running.remove(self._words)
        return self._status


class Quiet:
    def show(self, jobs: Sequence[fleet_run.Job]) -> None: ...


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_run, "_POLL_S", 0.001)


def units(folder: Path, text: str) -> tuple[Unit, ...]:
    (folder / "fleet.toml").write_text(text)
    return units_of(read_fleet(folder / "fleet.toml").entries)


def need(unit: Unit, folder: Path, *, peak: int = 100 * MIB, memory: int | None = 100 * MIB) -> UnitNeed:
    return UnitNeed(
        unit=unit, mode="fast", peak_bytes=peak, stays_bytes=peak // 2, memory_bytes=memory,
        work_folder=folder / ".work" / unit.lane, made_files=frozenset({"converted.gguf"}),
        artifacts=tuple(folder / entry.id for entry in unit.entries), source_folder=None,
    )  # fmt: skip


def run(
    folder: Path, needs: Sequence[UnitNeed], host: FakeHost, *, jobs: int = 2, disk: int = 10**12, memory: int = 10**12,
    keep: bool = False,
) -> Mapping[str, EntryEnd]:  # fmt: skip
    runner = FleetRunner(
        needs, How(output="out", keep=keep), jobs=jobs, program=("quantplan",), logs=folder / "logs", board=Quiet(),
        admission=Admission(needs, Budget(disk_bytes=disk, memory_bytes=memory)), start=host.start,
    )  # fmt: skip
    return runner.run()


MODELS = "[matrix]\nmodels = ['a/A', 'a/B', 'a/C', 'a/D']\nquants = ['Q8_0', 'Q4_K_M']\n"


def test_never_more_than_the_jobs_and_each_model_once(tmp_path: Path) -> None:
    host = FakeHost()
    ends = run(tmp_path, [need(unit, tmp_path) for unit in units(tmp_path, MODELS)], host)
    assert host.most == 2
    assert len(ends) == 8
    assert all(end.good for end in ends.values())
    builds = [words for words in host.began if "--clean" not in words]
    assert [words[1] for words in builds] == ["a/A", "a/B", "a/C", "a/D"]
    assert all(words.count("--quant") == 2 for words in builds)


@pytest.mark.parametrize(("limit", "value"), [("disk", 250 * MIB), ("memory", 150 * MIB)])
def test_what_does_not_fit_beside_the_other_waits(limit: str, value: int, tmp_path: Path) -> None:
    needs = [need(unit, tmp_path) for unit in units(tmp_path, MODELS)]
    host = FakeHost()
    ends = run(tmp_path, needs, host, jobs=4, **{limit: value})
    assert host.most == (2 if limit == "disk" else 1)
    assert all(end.good for end in ends.values())


def test_what_lies_there_counts(tmp_path: Path) -> None:
    """A finished lane's files are measured, a running one's are its plan: with 120 MiB of another model on the disk,
    two of 100 MiB do not go beside each other within 250."""
    first, *others = [need(unit, tmp_path) for unit in units(tmp_path, MODELS)]
    admission = Admission([first, *others], Budget(disk_bytes=250 * MIB, memory_bytes=10**12))
    assert admission.refusal(others[0]) is None
    admission.start(others[0])
    assert admission.refusal(others[1]) is None
    first.artifacts[0].mkdir(parents=True)
    with (first.artifacts[0] / "m.gguf").open("wb") as file:
        file.truncate(120 * MIB)
    assert "disk: 320.0 MiB together, 250.0 MiB allowed" in str(admission.refusal(others[1]))
    admission.end(others[0])
    assert admission.refusal(others[1]) is None
    # of its own lane only what the plan does not count comes on top
    own = others[1].work_folder
    own.mkdir(parents=True)
    (own / "converted.gguf").write_bytes(bytes(MIB))
    assert admission.refusal(others[1]) is None
    with (own / "something-else.gguf").open("wb") as file:
        file.truncate(40 * MIB)
    assert "disk: 260.0 MiB together" in str(admission.refusal(others[1]))


def test_unknown_memory_runs_alone(tmp_path: Path) -> None:
    found = units(tmp_path, MODELS)
    needs = [need(unit, tmp_path, memory=None if unit.lane == "B" else MIB) for unit in found]
    host = FakeHost()
    run(tmp_path, needs, host, jobs=4)
    assert frozenset({"a/B"}) in host.together
    assert not any("a/B" in names and len(names) > 1 for names in host.together)
    assert memory_at_once(needs, 2) is None


def test_what_is_promised(tmp_path: Path) -> None:
    needs = [need(unit, tmp_path) for unit in units(tmp_path, MODELS)]
    assert most_at_once(needs, 2) == (4 * 50 + 2 * 50) * MIB
    assert memory_at_once(needs, 2) == 200 * MIB


def test_others_go_on_when_one_fails_and_a_preset_is_found_that_does(tmp_path: Path) -> None:
    """The build of both presets fails; taken up one by one, one of them is good."""
    host = FakeHost(fails={"build a/B --quant Q8_0 --quant Q4_K_M": 1, "build a/B --quant Q4_K_M": 1})
    ends = run(tmp_path, [need(unit, tmp_path) for unit in units(tmp_path, MODELS)], host)
    assert {name for name, end in ends.items() if not end.good} == {"B-Q4_K_M"}
    assert ends["B-Q4_K_M"].error == "build a/B --quant Q4_K_M cannot be made"
    assert not any("--clean" in words for words in host.began if words[1] == "a/B")  # what is left goes on from it


def test_needs_come_first_and_a_bad_one_ends_what_waits(tmp_path: Path) -> None:
    text = """
[[builds]]
name = "first"
model = "a/A"
quants = ["Q8_0", "Q4_K_M"]
[[builds]]
model = "a/B"
quants = ["Q8_0"]
needs = ["first"]
[[builds]]
model = "a/C"
quants = ["Q8_0"]
"""
    needs = [need(unit, tmp_path) for unit in units(tmp_path, text)]
    host = FakeHost()
    assert all(end.good for end in run(tmp_path, needs, host).values())
    assert not any({"a/A", "a/B"} <= names for names in host.together)
    ends = run(tmp_path, needs, FakeHost(verdicts={"Q4_K_M": "fail"}))
    assert ends["B-Q8_0"].error == "needs A-Q4_K_M, which was not built or did not pass"
    assert ends["C-Q8_0"].good


def test_intermediates_go_with_the_last_build_of_a_model(tmp_path: Path) -> None:
    text = MODELS.replace("'a/B', 'a/C', 'a/D'", "") + "include = [{model = 'a/A', quant = 'Q6_K', chunks = 3}]\n"
    needs = [need(unit, tmp_path) for unit in units(tmp_path, text)]
    assert [one.unit.name for one in needs] == ["A", "A-2"]
    host = FakeHost()
    assert all(end.good for end in run(tmp_path, needs, host).values())
    assert host.most == 1  # they share a work folder
    assert [(words[3], "--clean" in words) for words in host.began] == [
        ("Q8_0", False), ("Q6_K", False), ("Q6_K", True),
    ]  # fmt: skip


def test_gates_judge_and_only_what_passed_is_published(tmp_path: Path) -> None:
    text = """
[[builds]]
model = "a/A"
quants = ["Q8_0"]
gates = ["standard"]
push = "me/A"
[[builds]]
model = "a/B"
quants = ["Q8_0"]
gates = ["strict"]
push = "me/B"
"""
    host = FakeHost(verdicts={"strict": "fail"})
    ends = run(tmp_path, [need(unit, tmp_path) for unit in units(tmp_path, text)], host)
    assert ends["A-Q8_0"].good
    assert ends["A-Q8_0"].pushed == "me/x"
    assert (ends["B-Q8_0"].verdict, ends["B-Q8_0"].reason) == (fleet_run.Verdict.FAIL, "strict: too far")
    assert [words[2] for words in host.began if words[0] == "push"] == ["me/A"]


def test_a_gate_measures_on_where_the_build_could_not_tell(tmp_path: Path) -> None:
    """An inconclusive build is told by its gates; a second gate never makes better what the first found."""
    text = """
[[builds]]
model = "a/A"
quants = ["Q8_0"]
gates = ["standard"]
[[builds]]
model = "a/B"
quants = ["Q8_0"]
gates = ["strict", "standard"]
"""
    host = FakeHost(verdicts={"Q8_0": "inconclusive", "strict": "fail"})
    ends = run(tmp_path, [need(unit, tmp_path) for unit in units(tmp_path, text)], host)
    assert (ends["A-Q8_0"].verdict, ends["A-Q8_0"].reason) == (fleet_run.Verdict.PASS, "standard: too far")
    assert ends["B-Q8_0"].verdict is fleet_run.Verdict.FAIL


def test_interrupted_all_children_are_stopped(tmp_path: Path) -> None:
    class Breaks(Quiet):
        def show(self, jobs: Sequence[fleet_run.Job]) -> None:
            raise KeyboardInterrupt

    needs, host, stopped = [need(unit, tmp_path) for unit in units(tmp_path, MODELS)], FakeHost(), []
    runner = FleetRunner(
        needs, How(output="out"), jobs=2, program=("quantplan",), logs=tmp_path / "logs", board=Breaks(),
        admission=Admission(needs, Budget(disk_bytes=10**12, memory_bytes=10**12)), start=host.start,
        stop=stopped.append,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert len(stopped) == 2
