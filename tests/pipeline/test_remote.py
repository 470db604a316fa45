"""Weights read from the hub: proved as whole files, then tensor by tensor, whatever the hub does in between."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_models
from loopback_hub import FakeFile, LoopbackHub

from quantplan import errors
from quantplan.model.hub import Hub
from quantplan.pipeline.candidate import find_candidate
from quantplan.pipeline.convert import has_projector
from quantplan.pipeline.disk import RECORDS_BYTES, BuildSizes, DiskMode, disk_plan
from quantplan.pipeline.needed import needed_files
from quantplan.pipeline.planned_source import planned_source
from quantplan.pipeline.remote.digests import ProvedFile, prove_file, prove_files, read_digests, write_digests
from quantplan.pipeline.remote.feed import TensorFeed
from quantplan.pipeline.remote.reader_process import Feed
from quantplan.pipeline.remote.weights import RemoteWeights
from quantplan.pipeline.schedule import DIGESTS, READ_SOURCE, SOURCE, Kind, Order, Work, schedule

A, B, C = bytes(range(256)) * 2000, b"\x07" * 300_000, b"\x01\x02"


def safetensors(**tensors: bytes) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"".join(tensors.values())


FILES = {
    "model-00001-of-00002.safetensors": safetensors(a=A, empty=b"", b=B),
    "model-00002-of-00002.safetensors": safetensors(c=C, last=b""),
}
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        served.add("org/m", FILES)
        yield served


class Reading:
    """The hub's files as a build would read them; what was said and counted."""

    def __init__(self, hub: LoopbackHub) -> None:
        self.slept: list[float] = []
        self.said: list[str] = []
        self.n_bytes = 0
        client = Hub(endpoint=hub.url, token="hf_good", sleep=self.slept.append)
        repository = client.repository("org/m")
        files = tuple(repository.file(name) for name in FILES)
        self.remote = RemoteWeights(hub=client, repository=repository, files=files, sleep=self.slept.append)
        self.how = self.remote.fetching(self.add, self.said.append)

    def add(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def first(self) -> ProvedFile:
        file = self.remote.files[0]
        return prove_file(file, self.remote.open(file), self.how)


def test_every_tensor_gets_the_hash_of_its_own_bytes(hub: LoopbackHub, tmp_path: Path) -> None:
    reading = Reading(hub)
    found = prove_files(reading.remote, tmp_path / "marks", reading.how)
    told = {one.name: (one.n_bytes, one.sha256) for file in found for one in file.tensors}
    parts = {"a": A, "empty": b"", "b": B, "c": C, "last": b""}
    assert told == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in parts.items()}
    for file in found:
        whole = FILES[file.name]
        assert whole.startswith(file.header)
        assert all(parts[one.name] == whole[one.offset : one.offset + one.n_bytes] for one in file.tensors)
    assert reading.n_bytes == sum(map(len, FILES.values()))
    write_digests(tmp_path / "digests.json", found)
    assert read_digests(tmp_path / "digests.json") == found


def test_a_file_that_was_read_to_its_end_is_not_read_again(hub: LoopbackHub, tmp_path: Path) -> None:
    """The other fails for good; a later build reads only that one. A mark that is cut off counts as none."""
    hub.fail(f"/resolve/.*/{FIRST}", status=404, headers={"X-Error-Code": "EntryNotFound"}, times=1)
    first = Reading(hub)
    with pytest.raises(errors.HubFileNotFound):
        prove_files(first.remote, tmp_path, first.how)
    second_file = list(FILES)[1]
    small = Reading(hub)  # the small one, whether or not it had been read before the failure stopped all
    (tmp_path / "none").mkdir()
    prove_files(small.remote, tmp_path, small.how)
    hub.log.clear()
    again = Reading(hub)
    assert [file.name for file in prove_files(again.remote, tmp_path, again.how)] == [FIRST, second_file]
    assert again.n_bytes == sum(map(len, FILES.values()))
    assert not [entry for entry in hub.log if "/resolve/" in entry.path or "/cdn/" in entry.path]
    mark = tmp_path / f"{hashlib.sha256(FILES[FIRST]).hexdigest()}.json"
    mark.write_text(mark.read_text()[:-20])
    prove_files(again.remote, tmp_path, again.how)
    assert [e.path for e in hub.log if "/resolve/" in e.path] == [
        f"/org/m/resolve/{again.remote.repository.commit}/{FIRST}"
    ]


def test_faults_on_the_way_cost_time_and_nothing_else(hub: LoopbackHub) -> None:
    """500, 429, a reset and a short body are taken up where they broke; a wrong byte makes it read the file again."""
    for fault in ({"status": 500}, {"status": 429, "headers": {"Retry-After": "7"}}, {"reset_after": 100_000},
                  {"cut_after": 70_000}, {"cut_after": 50_000, "claim_cut": True}):  # fmt: skip
        hub.fail("/cdn/", times=1, **fault)  # type: ignore[arg-type]
    reading = Reading(hub)
    clean = reading.first()
    assert 7.0 in reading.slept
    assert reading.said == ["the hub asks to wait 7 s (rate limit)"]
    assert reading.n_bytes == len(FILES[FIRST])
    for at in (3, 40, 600_000):  # in the length of the header, in the header, in a tensor
        hub.fail("/cdn/", times=1, flip_at=at)
        again = Reading(hub)
        assert again.first() == clean
        assert again.said == [f"{FIRST}: what came is not what the hub describes (hash), attempt 1 of 3"]
        assert again.n_bytes == len(FILES[FIRST])


def test_a_file_that_stays_wrong_is_refused(hub: LoopbackHub) -> None:
    hub.fail("/cdn/", flip_at=600_000)
    with pytest.raises(errors.HubContentDiffers, match=r"also when it is fetched again \(3 times\)"):
        Reading(hub).first()


def test_a_hub_that_is_broken_for_good_ends_in_its_error(hub: LoopbackHub) -> None:
    hub.fail("/cdn/", reset_after=0)
    with pytest.raises(errors.HubUnreachable):
        Reading(hub).first()
    hub.faults.clear()
    hub.fail("/cdn/", status=503)
    reading = Reading(hub)
    with pytest.raises(errors.HubFailed):
        reading.first()
    assert max(reading.slept) <= 30.0


def test_what_is_no_safetensors_file_at_the_hub_either(hub: LoopbackHub) -> None:
    hub.add("org/m", {**FILES, FIRST: b"\xff" * 5000})
    with pytest.raises(errors.BadModelFile, match="declares a header of"):
        Reading(hub).first()


class Asking:
    """The converter's side of a feed."""

    def __init__(self, reading: Reading, files: tuple[ProvedFile, ...]) -> None:
        self.feed = TensorFeed(reading.remote, files, reading.how)

    def __enter__(self) -> Feed:
        self.feed.__enter__()
        self.end = socket.socket(fileno=os.dup(self.feed.fd))
        return Feed(self.end)

    def __exit__(self, *exc: Any) -> None:
        self.end.close()
        self.feed.__exit__(*exc)


@pytest.fixture
def proved(hub: LoopbackHub, tmp_path: Path) -> tuple[ProvedFile, ...]:
    reading = Reading(hub)
    return prove_files(reading.remote, tmp_path / "marks", reading.how)


def place(files: tuple[ProvedFile, ...], tensor: str) -> tuple[str, int, int]:
    return next((file.name, one.offset, one.n_bytes) for file in files for one in file.tensors if one.name == tensor)


def test_the_converter_gets_proved_bytes_alone(hub: LoopbackHub, proved: tuple[ProvedFile, ...]) -> None:
    """In any order, twice, an empty one; with faults and a wrong byte on the way."""
    reading, asking = Reading(hub), None
    name, offset, _ = place(proved, "b")
    for fault in ({"status": 500}, {"status": 429, "headers": {"Retry-After": "1"}}, {"reset_after": 100_000},
                  {"cut_after": 70_000}, {"flip_at": offset + 299_000}):  # fmt: skip
        hub.fail("/cdn/", times=1, **fault)  # type: ignore[arg-type]
    with (asking := Asking(reading, proved)) as feed:
        assert bytes(feed.read(*place(proved, "b"))) == B
        assert reading.said[-1] == f"{name}: b came with wrong bytes, attempt 1 of 3"
        for tensor, data in (("c", C), ("empty", b""), ("a", A), ("c", C)):
            assert bytes(feed.read(*place(proved, tensor))) == data
    assert asking.feed.error is None
    assert reading.n_bytes == len(A) + len(B) + 2 * len(C)


def test_ranges_are_asked_for_at_the_commit_and_nothing_beyond_them(
    hub: LoopbackHub, proved: tuple[ProvedFile, ...]
) -> None:
    reading = Reading(hub)
    hub.log.clear()
    with Asking(reading, proved) as feed:
        feed.read(*place(proved, "a"))
    commit = hub.repositories["org/m"].commit
    _, offset, n_bytes = place(proved, "a")
    asked = [(entry.path.split("?")[0], entry.byte_range) for entry in hub.log]
    wanted = f"bytes={offset}-{offset + n_bytes - 1}"
    sha256 = hashlib.sha256(FILES[FIRST]).hexdigest()
    assert asked == [(f"/org/m/resolve/{commit}/{FIRST}", wanted), (f"/cdn/{sha256}", wanted)]


def test_a_signed_address_that_has_run_out_is_asked_for_again(hub: LoopbackHub, proved: tuple[ProvedFile, ...]) -> None:
    reading = Reading(hub)
    with Asking(reading, proved) as feed:
        feed.read(*place(proved, "a"))
        hub.fail("/cdn/", times=1, status=403)
        assert bytes(feed.read(*place(proved, "b"))) == B


def test_a_tensor_that_stays_wrong_never_reaches_the_converter(
    hub: LoopbackHub, proved: tuple[ProvedFile, ...]
) -> None:
    """The same for a file that is another one at the hub since it was proved."""
    _, offset, _ = place(proved, "b")
    hub.fail("/cdn/", flip_at=offset + 5)
    with (asking := Asking(Reading(hub), proved)) as feed, pytest.raises(RuntimeError, match="could not be read"):
        feed.read(*place(proved, "b"))
    assert isinstance(asking.feed.error, errors.TensorDiffers)
    assert str(asking.feed.error) == (
        f"org/m/{FIRST}: the bytes of b are not those of the file whose hash was proved, "
        "also when they are read again (3 times): nothing was made of them"
    )
    hub.faults.clear()
    sha256 = hashlib.sha256(FILES[FIRST]).hexdigest()
    hub.blobs[sha256] = FakeFile(FILES[FIRST][::-1], sha256)
    with (asking := Asking(Reading(hub), proved)) as feed, pytest.raises(RuntimeError):
        feed.read(*place(proved, "a"))
    assert isinstance(asking.feed.error, errors.TensorDiffers)
    hub.blobs[sha256] = FakeFile(FILES[FIRST] + b"more", sha256)
    with (asking := Asking(Reading(hub), proved)) as feed, pytest.raises(RuntimeError):
        feed.read(*place(proved, "a"))
    assert "its repository says" in str(asking.feed.error)


def test_a_server_without_ranges_is_no_source(hub: LoopbackHub, proved: tuple[ProvedFile, ...]) -> None:
    hub.serves_ranges = False
    with (asking := Asking(Reading(hub), proved)) as feed, pytest.raises(RuntimeError):
        feed.read(*place(proved, "b"))
    assert isinstance(asking.feed.error, errors.HubNoRanges)


def test_a_model_of_the_hub_that_sees_has_its_projector(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the same model in a folder has: the registry knows the whole model, not the text part of it."""
    monkeypatch.setenv("QUANTPLAN_CACHE", str(tmp_path / "cache"))
    folder = toy_models.vision(tmp_path / "v")
    hub.add("org/Vis", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    candidate = find_candidate("org/Vis", endpoint=hub.url)
    source = planned_source(candidate, needed_files(candidate.files))
    registry = tmp_path / "conversion" / "__init__.py"
    registry.parent.mkdir()
    registry.write_text('MMPROJ_MODEL_MAP: dict[str, str] = {\n    "Idefics3ForConditionalGeneration": "x",\n}\n')
    assert has_projector(source, tmp_path / "convert_hf_to_gguf.py")


WORK = Work(quants=("Q4_K_M",), baseline="Q8_0", texts=("a",), mmproj=True, source_is_ours=True)
SIZES = BuildSizes(
    converted_bytes=500, quants={"Q8_0": 250, "Q4_K_M": 150}, logits_bytes=10, source_bytes=520, mmproj_bytes=40,
    small_source_bytes=20, digests_bytes=3,
)  # fmt: skip


def test_the_digests_come_first_and_stay() -> None:
    remote = Work(quants=("Q4_K_M",), baseline="Q8_0", texts=("a",), mmproj=True, remote=True)
    for order in Order:
        actions = schedule(remote, order)
        assert (actions[0].name, actions[0].makes, actions[0].needs) == (READ_SOURCE, DIGESTS, (SOURCE,))
        assert [action.needs for action in actions[1:3]] == [(SOURCE, DIGESTS)] * 2
        dropped = {key for action in actions if action.kind is Kind.DROP for key in action.needs}
        assert not {SOURCE, DIGESTS} & dropped


def test_auto_reads_remotely_only_where_nothing_else_fits() -> None:
    """By hand: remote is 20 + 3 + 500 + 40 + Q8_0 250 + 150; tight adds 500 of weights until the conversion is done."""
    modes = {
        mode: disk_plan(SIZES, WORK, mode).peak_bytes - RECORDS_BYTES for mode in (DiskMode.TIGHT, DiskMode.REMOTE)
    }
    assert modes[DiskMode.TIGHT] == 520 + 500 + 40
    assert modes[DiskMode.REMOTE] < modes[DiskMode.TIGHT]

    def chosen(free: int, remote: int | None) -> DiskMode:
        plan = disk_plan(SIZES, WORK, DiskMode.AUTO, free_bytes=RECORDS_BYTES + free,
                         remote_free_bytes=None if remote is None else RECORDS_BYTES + remote)  # fmt: skip
        return plan.mode

    assert chosen(1060, 1060) is DiskMode.TIGHT
    assert chosen(1059, 1059) is DiskMode.REMOTE
    assert chosen(1059, None) is DiskMode.TIGHT
    assert chosen(1059, modes[DiskMode.REMOTE]) is DiskMode.REMOTE
    assert chosen(1059, modes[DiskMode.REMOTE] - 1) is DiskMode.TIGHT
