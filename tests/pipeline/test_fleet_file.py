"""Build files: what they ask for, in which order, and every mistake named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantplan.errors import BadFleet
from quantplan.pipeline.fleet_commands import How, What, unit_commands
from quantplan.pipeline.fleet_file import Fleet, read_fleet, selected
from quantplan.pipeline.fleet_order import units_of

TOML = """
output = "out"
jobs = 3
max_disk = "200GB"
max_memory = "16GiB"

[defaults]
chunks = 4
texts = ["t=text.txt"]

[matrix]
models = ["quantplan-tiny", "org/Big@v1"]
quants = ["Q4_K_M", "q5_k_m"]
gates = ["standard", "strict"]
exclude = [{ model = "org/Big@v1", quant = "q5_k_m" }]
include = [{ model = "quantplan-tiny", quant = "IQ2_XS", imatrix = "m.gguf" }]

[[builds]]
name = "last"
model = "org/Other"
quants = ["Q8_0"]
needs = ["Big-Q4_K_M"]
push = "me/{name}-GGUF"
"""


def write(folder: Path, text: str, name: str = "fleet.toml") -> Path:
    (folder / "text.txt").write_text("x")
    (folder / "m.gguf").write_text("x")
    (folder / name).write_text(text)
    return folder / name


def read(folder: Path, text: str, name: str = "fleet.toml") -> Fleet:
    return read_fleet(write(folder, text, name))


def test_a_matrix_with_more_and_less(tmp_path: Path) -> None:
    fleet = read(tmp_path, TOML)
    assert [entry.id for entry in fleet.entries] == [
        "quantplan-tiny-Q4_K_M", "quantplan-tiny-Q5_K_M", "Big-Q4_K_M", "quantplan-tiny-IQ2_XS", "Other-Q8_0",
    ]  # fmt: skip
    assert (fleet.output, fleet.jobs, fleet.max_disk_bytes) == (tmp_path / "out", 3, 200 * 10**9)
    assert fleet.max_memory_bytes == 16 << 30
    assert [entry.gates for entry in fleet.entries] == [("standard", "strict")] * 4 + [()]
    assert fleet.entries[-1].push == "me/Other-GGUF"


def test_yaml_says_the_same(tmp_path: Path) -> None:
    text = """
output: out
jobs: 3
defaults: {chunks: 4, texts: ["t=text.txt"]}
matrix:
  models: [quantplan-tiny]
  quants: [Q4_K_M, Q5_K_M]
"""
    fleet = read(tmp_path, text, "fleet.yaml")
    assert [entry.id for entry in fleet.entries] == ["quantplan-tiny-Q4_K_M", "quantplan-tiny-Q5_K_M"]
    assert fleet.entries[0].options.chunks == 4


def test_one_build_for_the_presets_of_a_model(tmp_path: Path) -> None:
    units = units_of(read(tmp_path, TOML).entries)
    assert [(unit.name, unit.quants, unit.stage) for unit in units] == [
        ("quantplan-tiny", ("Q4_K_M", "Q5_K_M"), 0), ("Big", ("Q4_K_M",), 0), ("quantplan-tiny-2", ("IQ2_XS",), 0),
        ("Other", ("Q8_0",), 1),
    ]  # fmt: skip


def test_the_commands_of_a_build(tmp_path: Path) -> None:
    units = units_of(read(tmp_path, TOML).entries)
    found = unit_commands(units[1], How(output="out", disk="fast", threads=2, keep=False))
    assert [command.what for command in found] == [What.BUILD, What.GATE, What.GATE, What.CLEAN]
    assert found[0].words == (
        "build", "org/Big@v1", "--quant", "Q4_K_M", "--output", "out", "--text", f"t={tmp_path / 'text.txt'}",
        "--chunks", "4", "--disk", "fast", "--threads", "2", "--json",
    )  # fmt: skip
    assert found[2].words == ("gate", "out/Big-Q4_K_M", "--policy", "strict", "--json")
    assert found[3].words[-3:] == ("--clean", "--disk", "tight")


def test_a_part_with_what_it_needs(tmp_path: Path) -> None:
    fleet = read(tmp_path, TOML)
    assert [entry.id for entry in selected(fleet, ["Other-Q8_0"]).entries] == ["Big-Q4_K_M", "Other-Q8_0"]
    with pytest.raises(BadFleet, match="'Other-Q8' is no artifact of this file; near: Other-Q8_0"):
        selected(fleet, ["Other-Q8"])


ONE = '[[builds]]\nmodel = "quantplan-tiny"\nquants = ["Q4_K_M"]\n'

BAD = [
    ("", "asks for no build"),
    ("[matrix]\nmodels = ['quantplan-tiny']\n", "matrix: names no quants"),
    ("[matrix]\nmodel = ['x']\n", "matrix.model: is no key that is known here; near: models"),
    ("job = 2\n" + ONE, "job: is no key that is known here; near: jobs"),
    ("jobs = 0\n" + ONE, "jobs: is 0, expected 1 to 10,000"),
    ("jobs = true\n" + ONE, "jobs: is True, expected a whole number"),
    ("max_disk = 'much'\n" + ONE, "max_disk: is 'much', expected a size such as 200GB"),
    ("disk = 'tigt'\n" + ONE, "disk: is 'tigt', possible are auto, fast, tight; near: tight"),
    (ONE + "chunk = 3\n", "builds[1].chunk: is no key that is known here; near: chunks"),
    (ONE + "calibration = 'none.txt'\n", "builds[1].calibration: none.txt: no such file"),
    (ONE + "gates = ['strikt']\n", "is neither a preset nor a file; near: strict"),
    (ONE + "needs = ['quantplan-tiny-Q4_K_S']\n", "is no build of this file; near: quantplan-tiny-Q4_K_M"),
    (ONE + "needs = ['quantplan-tiny-Q4_K_M']\n",
     "a circle of needs: quantplan-tiny-Q4_K_M -> quantplan-tiny-Q4_K_M"),
    (ONE + ONE, "the artifact quantplan-tiny-Q4_K_M is asked for twice"),
    ('[[builds]]\nmodel = "a/x"\nquants = ["Q8_0"]\n[[builds]]\nmodel = "b/x"\nquants = ["Q8_0"]\n',
     "the artifact x-Q8_0 is asked for of a/x and of b/x"),
    ('[[builds]]\nmodel = "quantplan-tini"\nquants = ["Q8_0"]\n', "is no model to build from"),
    ('[[builds]]\nmodel = "quantplan-tini"\nquants = ["Q8_0"]\n', "near: quantplan-tiny"),
    ('[[builds]]\nmodel = "quantplan-tiny"\nquants = ["Q4_KM"]\n',
     "'Q4_KM' is no preset of llama-quantize; near: Q4_K_M"),
    ('[[builds]]\nmodel = "quantplan-tiny"\n', "builds[1]: names no quant"),
    ("[matrix]\nmodels=['quantplan-tiny']\nquants=['Q8_0']\nexclude=[{quant='Q6_K'}]\n", "'Q6_K' is not in the matrix"),
    ("disk = 'tight'\n" + ONE + "gates = ['standard']\n", "tight deletes the 16-bit file that gates measure against"),
    ("= nonsense", "is no TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD)
def test_every_mistake_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadFleet) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "fleet.toml"))


def test_a_long_circle_is_shown(tmp_path: Path) -> None:
    builds = [("a", "Q8_0", "b"), ("b", "Q6_K", "c"), ("c", "Q5_K_M", "a")]
    text = "".join(
        f'[[builds]]\nname="{name}"\nmodel="quantplan-tiny"\nquants=["{quant}"]\nneeds=["{need}"]\n'
        for name, quant, need in builds
    )
    with pytest.raises(
        BadFleet, match="tiny-Q8_0 -> quantplan-tiny-Q6_K -> quantplan-tiny-Q5_K_M -> quantplan-tiny-Q8"
    ):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [("jobs: 1\njobs: 2\n", "'jobs' is there twice"), ("[a", "is no YAML"), ("- a", "holds no tables")],
)
def test_yaml_is_read_strictly(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadFleet) as caught:
        read(tmp_path, text, "fleet.yml")
    assert says in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadFleet, match="No such file"):
        read_fleet(tmp_path / "none.toml")
