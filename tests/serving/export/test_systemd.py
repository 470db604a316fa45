"""The unit, by systemd's own checks and by what they don't see."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from serving.export.cases import CASES, Case, deployment
from serving.export.read_systemd import command, sections, value
from system_programs import program

from quantplan.errors import CannotExport, TargetTooOld
from quantplan.serving.export.formats import export
from quantplan.serving.export.write import write_files
from quantplan.units import MIB

BY_NAME = {case.name: case for case in CASES}
SOME_PROGRAM = ("/bin/true",)  # verify asks for one that is there


def analyze() -> str:
    return program("systemd-analyze", package="Debian: systemd")


def unit(folder: Path, case: Case, **target: object) -> str:
    told = deployment(folder, case, program=SOME_PROGRAM, quantplan=SOME_PROGRAM, **target)
    return export("systemd", (told,)).files[0].text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_systemd_finds_nothing_wrong(case: Case, tmp_path: Path) -> None:
    told = deployment(tmp_path, case, program=SOME_PROGRAM, quantplan=SOME_PROGRAM)
    (path,) = write_files(tmp_path / "out", export("systemd", (told,)).files)
    done = subprocess.run([analyze(), "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    rated = subprocess.run([analyze(), "security", "--offline=true", "--no-pager", str(path)],
                           capture_output=True, text=True, check=False)  # fmt: skip
    (score,) = re.findall(r"Overall exposure level for .*: ([\d.]+)", rated.stdout)
    assert float(score) < 2.0, rated.stdout


def test_folders_with_spaces_and_colons_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / 'a b:c "d" %n'
    told = deployment(folder, BY_NAME["cpu"], program=SOME_PROGRAM, quantplan=SOME_PROGRAM)
    (path,) = write_files(tmp_path / "out", export("systemd", (told,)).files)
    done = subprocess.run([analyze(), "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    argv = command(path.read_text(), "ExecStart")
    assert argv[argv.index("--model") + 1] == str(told.model.path)


def test_the_checks_see_a_bare_unit(tmp_path: Path) -> None:
    """What the test above relies on: a unit without hardening is rated badly, a wrong word is said."""
    (tmp_path / "bare.service").write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / "wrong.service").write_text("[Service]\nExecStart=/bin/true\nMemoryMaximum=1\n")
    rated = subprocess.run([analyze(), "security", "--offline=true", "--no-pager",
                            str(tmp_path / "bare.service")], capture_output=True, text=True, check=False)  # fmt: skip
    assert float(re.findall(r"Overall exposure level for .*: ([\d.]+)", rated.stdout)[0]) > 9
    told = subprocess.run([analyze(), "verify", str(tmp_path / "wrong.service")], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert "MemoryMaximum" in told.stderr


def test_the_limits_are_the_plan(tmp_path: Path) -> None:
    text = unit(tmp_path, BY_NAME["pinned threads"])
    memory = 4000 * MIB + 123 + 512 * MIB + 77 + 1
    most = -(-(memory + 256 * MIB) // MIB) * MIB
    assert value(text, "MemoryMax") == str(most)
    assert value(text, "MemoryHigh") == str(most - 128 * MIB)
    assert value(text, "MemorySwapMax") == "0"
    assert value(text, "CPUQuota") == "800%"
    assert value(text, "AllowedCPUs") == "0-7"
    assert "LimitMEMLOCK" not in text
    assert value(unit(tmp_path / "locked", BY_NAME["locked"]), "LimitMEMLOCK") == "infinity"


def test_keys_come_as_a_credential(tmp_path: Path) -> None:
    text = unit(tmp_path, BY_NAME["cpu"], api_key_file="/srv/keys/llm")
    assert value(text, "LoadCredential") == "api-key:/srv/keys/llm"
    assert command(text, "ExecStart")[-2:] == ["--api-key-file", "%d/api-key"]
    assert "/srv/keys" not in " ".join(command(text, "ExecStart"))


def test_a_stop_leaves_time_to_drain(tmp_path: Path) -> None:
    text = unit(tmp_path, BY_NAME["cpu"], drain_s=45, load_s=900)
    assert (value(text, "KillSignal"), value(text, "TimeoutStopSec")) == ("SIGINT", "55")
    assert int(value(text, "TimeoutStartSec")) > 900
    assert dict(zip(*[iter(command(text, "ExecStartPost")[3:])] * 2, strict=False))["--wait"] == "900"


def test_cards_are_opened_and_nothing_else(tmp_path: Path) -> None:
    text = unit(tmp_path, BY_NAME["partial offload"])
    allowed = [told for key, told in sections(text)["Service"] if key == "DeviceAllow"]
    assert value(text, "DevicePolicy") == "closed"
    assert {word.split()[0] for word in allowed} == {
        "char-nvidiactl", "char-nvidia-frontend", "char-nvidia-caps", "char-nvidia-uvm", "char-drm"
    }  # fmt: skip
    assert "PrivateDevices" not in text
    assert value(unit(tmp_path / "cpu", BY_NAME["cpu"]), "PrivateDevices") == "yes"


def test_what_would_speak_for_a_flag_is_taken_away(tmp_path: Path) -> None:
    names = value(unit(tmp_path, BY_NAME["cpu"]), "UnsetEnvironment").split()
    assert {"LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_THREADS", "LLAMA_API_KEY", "OMP_NUM_THREADS"} <= set(names)


def test_a_public_address_leaves_the_addresses_open_and_says_so(tmp_path: Path) -> None:
    told = deployment(tmp_path, BY_NAME["cpu"], host="0.0.0.0", program=SOME_PROGRAM, quantplan=SOME_PROGRAM)
    made = export("systemd", (told,))
    assert "IPAddressDeny" not in made.files[0].text
    assert "--public" in command(made.files[0].text, "ExecStartPost")
    assert any("firewall" in note for note in made.notes)


def test_files_that_a_service_could_not_open_are_named(tmp_path: Path) -> None:
    told = deployment(tmp_path, BY_NAME["cpu"])
    model = told.model.path
    model.chmod(0o600)
    from dataclasses import replace

    closed = replace(told, files=(replace(told.model, world_readable=False),))
    assert any(model.name in note and "chmod" in note for note in export("systemd", (closed,)).notes)
    assert not any("chmod" in note for note in export("systemd", (told,)).notes)


@pytest.mark.parametrize(("version", "needed"), [("241", "248"), ("v247.3", "248")])
def test_an_old_systemd_is_refused(version: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(TargetTooOld, match=f"systemd {version} is too old: .* needs {needed}"):
        export("systemd", (deployment(tmp_path, BY_NAME["cpu"]),), version=version)
    assert export("systemd", (deployment(tmp_path / "new", BY_NAME["cpu"]),), version=["252", "(252.39-1)"][0])


def test_a_mac_has_no_systemd(tmp_path: Path) -> None:
    from serving.export.cases import ONE, device

    case = Case(name="mac", plan={"memory": (ONE[0], device("MTL0", 6000)), "n_gpu_layers": 33})
    with pytest.raises(CannotExport, match="MTL0 is a card of macOS"):
        export("systemd", (deployment(tmp_path, case),))
