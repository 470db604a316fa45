"""Downloads from a hub on loopback with every fault injected: the right bytes or a clear error, never wrong bytes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from quantplan import errors
from quantplan.model.hub import Hub
from quantplan.pipeline import download
from quantplan.pipeline.download import Downloaded

RNG = random.Random(7)
BIG = RNG.randbytes(400_000)
OTHER = RNG.randbytes(70_000)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": BIG, "empty.txt": b"", "sub/other.gguf": OTHER}


class Silent:
    """A progress that counts."""

    def __init__(self) -> None:
        self.n_bytes, self.total, self.said = 0, 0, list[str]()

    def start(self, n_bytes: int) -> None:
        self.total = n_bytes

    def add(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def say(self, text: str) -> None:
        self.said.append(text)

    def stop(self) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setenv("QUANTPLAN_CACHE", str(tmp_path / "cache"))
    with LoopbackHub() as served:
        served.add("org/model", FILES)
        yield served


def get(
    hub: LoopbackHub, progress: Silent | None = None, waits: list[float] | None = None, names: tuple[str, ...] = ()
) -> Downloaded:
    client = Hub(endpoint=hub.url, sleep=lambda _: None)
    slept = waits if waits is not None else []
    return download.download(
        client, client.repository("org/model"), names or tuple(FILES), progress=progress or Silent(),
        sleep=slept.append,
    )  # fmt: skip


def assert_right(found: Downloaded) -> None:
    for name, content in FILES.items():
        assert (found.folder / name).read_bytes() == content
    left = [path.name for path in found.folder.rglob("*") if path.name.endswith(".incomplete")]
    assert left == []


def test_files_of_a_commit_each_once(hub: LoopbackHub) -> None:
    progress = Silent()
    found = get(hub, progress)
    assert_right(found)
    assert found.fetched_bytes == progress.n_bytes == progress.total == sum(map(len, FILES.values()))
    assert found.folder.name == hub.repositories["org/model"].commit
    hub.log.clear()
    again = get(hub)
    assert again.fetched_bytes == 0
    assert [entry.path for entry in hub.log] == ["/api/models/org/model?blobs=true"]


def test_only_what_is_asked_for(hub: LoopbackHub) -> None:
    found = get(hub, names=("config.json",))
    assert [path.name for path in found.folder.iterdir() if not path.name.startswith(".")] == ["config.json"]


FAULTS = {
    "429 with a time": ({"status": 429, "headers": {"Retry-After": "7"}, "times": 1}, [7.0]),
    "500 twice": ({"status": 500, "times": 2}, None),
    "500 for long": ({"status": 500, "times": 9}, None),
    "reset at once": ({"reset_after": 0, "times": 2}, None),
    "reset mid-file": ({"reset_after": 100_000, "times": 1}, None),
    "reset again and again": ({"reset_after": 70_000, "times": 12}, None),
    "ends early": ({"cut_after": 150_000, "times": 2}, None),
    "ends early and says so": ({"cut_after": 150_000, "claim_cut": True, "times": 2}, None),
    "wrong byte": ({"flip_at": 399_999, "times": 1}, None),
    "wrong bytes twice": ({"flip_at": 5, "times": 2}, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_hub_that_passes(name: str, hub: LoopbackHub) -> None:
    """At the CDN that the hub redirects to, while the largest file is fetched."""
    fault, waits_for = FAULTS[name]
    sha = hashlib.sha256(BIG).hexdigest()
    hub.fail(f"/cdn/{sha}", **fault)
    waits: list[float] = []
    progress = Silent()
    found = get(hub, progress, waits)
    assert_right(found)
    assert progress.n_bytes == progress.total
    assert waits_for is None or waits == waits_for


def test_what_came_before_a_break_is_not_fetched_again(hub: LoopbackHub) -> None:
    sha = hashlib.sha256(BIG).hexdigest()
    hub.fail(f"/cdn/{sha}", reset_after=300_000, times=1)
    assert_right(get(hub))
    ranges = [entry.byte_range for entry in hub.log if sha in entry.path]
    assert ranges[0] == "bytes=0-"
    assert len(ranges) == 2
    assert int(str(ranges[1])[6:-1]) > 0


def test_an_expired_redirect_is_asked_for_anew(hub: LoopbackHub) -> None:
    """The signed address of the CDN runs out between two parts of the file."""
    sha = hashlib.sha256(BIG).hexdigest()
    hub.fail(f"/cdn/{sha}", reset_after=50_000, times=1)
    hub.fail(f"/cdn/{sha}", status=403, body=b"<Error><Code>AccessDenied</Code><Message>Request has expired", times=2)
    assert_right(get(hub))
    assert sum("/resolve/" in entry.path and "safetensors" in entry.path for entry in hub.log) >= 2


def test_a_redirect_that_never_works_is_told(hub: LoopbackHub) -> None:
    hub.fail("/cdn/", status=403)
    with pytest.raises(errors.HubRedirectRefused, match=r"answered 403 \(at the address that the hub redirects to\)"):
        get(hub)


def test_wrong_bytes_for_ever_leave_nothing(hub: LoopbackHub) -> None:
    hub.fail(f"/cdn/{hashlib.sha256(BIG).hexdigest()}", flip_at=1000)
    with pytest.raises(errors.HubContentDiffers, match=r"and the hub says .*, also when it is fetched again") as caught:
        get(hub)
    folder = next((Path(os.environ["QUANTPLAN_CACHE"]) / "downloads").rglob(".verified.json")).parent
    assert not list(folder.glob("model.safetensors*"))
    assert caught.value.file == "model.safetensors"


def test_a_small_file_with_a_wrong_byte_is_seen_too(hub: LoopbackHub) -> None:
    hub.fail(r"/resolve/.*config\.json", flip_at=3, times=1)
    progress = Silent()
    assert_right(get(hub, progress))
    assert any("config.json: what came is not what the hub describes" in text for text in progress.said)
    hub.fail(r"/resolve/.*config\.json", flip_at=3)


def test_faults_for_ever_are_told(hub: LoopbackHub) -> None:
    hub.fail("/cdn/", status=500)
    with pytest.raises(errors.HubFailed, match="the server answered 500"):
        get(hub)
    hub.faults.clear()
    hub.fail("/cdn/", reset_after=0)
    with pytest.raises(errors.HubUnreachable, match="no connection"):
        get(hub)
    hub.faults.clear()
    hub.fail("/cdn/", status=429, headers={"Retry-After": "4000"})
    with pytest.raises(errors.HubRateLimited, match="try again in 4000 s"):
        get(hub)
    hub.faults.clear()
    hub.fail("/cdn/", cut_after=0, claim_cut=True)
    with pytest.raises(errors.HubError, match=r"the answers end after|no connection|says that"):
        get(hub)


def test_a_server_without_ranges_begins_again(hub: LoopbackHub) -> None:
    hub.serves_ranges = False
    hub.fail(f"/cdn/{hashlib.sha256(BIG).hexdigest()}", reset_after=100_000, times=2)
    progress = Silent()
    assert_right(get(hub, progress))
    assert progress.n_bytes == progress.total


def test_what_was_changed_on_the_disk_is_fetched_again(hub: LoopbackHub) -> None:
    folder = get(hub).folder
    (folder / "model.safetensors").write_bytes(BIG[:-1] + b"x")
    progress = Silent()
    assert_right(get(hub, progress))
    assert progress.said == ["model.safetensors: what lies here is not what the hub describes; it is fetched again"]


def test_a_broken_rest_of_another_day_is_never_believed(hub: LoopbackHub) -> None:
    """A rest with other content, and one that is too long."""
    client = Hub(endpoint=hub.url)
    folder = download.source_folder(client.repository("org/model"))
    folder.mkdir(parents=True)
    (folder / "model.safetensors.incomplete").write_bytes(bytes(200_000))
    (folder / "config.json.incomplete").write_bytes(bytes(200_000))
    assert_right(get(hub))


KILLED = """
import sys
from quantplan.model.hub import Hub
from quantplan.pipeline import download
class Silent:
    def start(self, n): pass
    def add(self, n): pass
    def say(self, text): print(text, flush=True)
    def stop(self): pass
client = Hub()
download.download(client, client.repository("org/model"), sys.argv[1:], progress=Silent())
"""


def test_a_killed_download_goes_on_where_it_was(hub: LoopbackHub) -> None:
    """SIGKILL while the body comes; the second process asks for the rest alone."""
    sha = hashlib.sha256(BIG).hexdigest()
    hub.fail(f"/cdn/{sha}", hold_after=200_000, times=1)
    env = {**os.environ, "HF_ENDPOINT": hub.url}
    child = subprocess.Popen([sys.executable, "-c", KILLED, "model.safetensors"], env=env)
    assert hub.held.wait(30)
    folder = download.source_folder(Hub(endpoint=hub.url).repository("org/model"))
    partial = folder / "model.safetensors.incomplete"
    for _ in range(300):
        if partial.exists() and partial.stat().st_size >= 65_536:
            break
        hub.pause(0.02)
    child.kill()
    child.wait()
    hub.release.set()
    have = partial.stat().st_size
    assert 65_536 <= have < len(BIG)
    hub.log.clear()
    assert_right(get(hub))
    assert [entry.byte_range for entry in hub.log if sha in entry.path] == [f"bytes={have}-"]


def client_cache(hub: LoopbackHub, home: Path, content: bytes) -> None:
    """What huggingface_hub would have left in its cache for the big file of another commit."""
    blobs = home / "hub" / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / hashlib.sha256(BIG).hexdigest()).write_bytes(content)


@pytest.mark.parametrize("whole", [True, False])
def test_the_clients_own_cache_is_linked_when_it_is_right(whole: bool, hub: LoopbackHub, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    client_cache(hub, home, BIG if whole else BIG[:-1] + b"?")
    code = KILLED + "\nprint(*[p.name for p in download.source_folder(client.repository('org/model')).iterdir()"
    code += " if p.is_symlink()])"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
    done = subprocess.run([sys.executable, "-c", code, *FILES], env=env, capture_output=True, text=True, check=True)
    sha = hashlib.sha256(BIG).hexdigest()
    fetched = [entry for entry in hub.log if sha in entry.path and entry.n_sent]
    if whole:
        assert done.stdout == "model.safetensors\n"
        assert fetched == []
    else:
        assert "model.safetensors: huggingface_hub's cache holds other content; it is fetched anew" in done.stdout
        assert sum(entry.n_sent for entry in fetched) == len(BIG)
    folder = download.source_folder(Hub(endpoint=hub.url).repository("org/model"))
    assert (folder / "model.safetensors").read_bytes() == BIG


def test_no_space_is_said_before_the_first_byte(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopback_hub import Hole

    hub.add("org/huge", {"model.gguf": Hole(b"GGUF", 1 << 55)})
    client = Hub(endpoint=hub.url)
    with pytest.raises(errors.NoDiskSpace, match="of disk space needed"):
        download.download(client, client.repository("org/huge"), ["model.gguf"], progress=Silent())
    assert not any("/cdn/" in entry.path for entry in hub.log)


def random_fault(rng: random.Random) -> dict[str, object]:
    kind = rng.choice(["status", "reset", "cut", "claimed", "flip", "stall"])
    times = rng.choice([1, 1, 2, 3, 8, 10**9])
    at = rng.randrange(0, 420_000)
    return {
        "status": {"status": rng.choice([403, 404, 429, 500, 502, 503]), "times": times},
        "reset": {"reset_after": at, "times": times}, "cut": {"cut_after": at, "times": times},
        "claimed": {"cut_after": at, "claim_cut": True, "times": times}, "flip": {"flip_at": at, "times": times},
        "stall": {"status": 429, "headers": {"Retry-After": str(rng.choice([1, 60, 5000]))}, "times": times},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_faults_at_random_never_give_wrong_bytes(seed: int, hub: LoopbackHub) -> None:
    """Up to three kinds of fault at once, some for ever, on any address: the right bytes or one of our errors, and
    then the right bytes once the hub is well."""
    rng = random.Random(seed)
    client = Hub(endpoint=hub.url, sleep=lambda _: None)
    repository = client.repository("org/model")
    for _ in range(rng.randint(1, 3)):
        hub.fail(rng.choice(["/cdn/", "/resolve/", r"config\.json", r"safetensors"]), **random_fault(rng))  # type: ignore[arg-type]
    how = {"progress": Silent(), "sleep": lambda _: None, "n_at_once": rng.choice([1, 4])}
    try:
        assert_right(download.download(client, repository, tuple(FILES), **how))  # type: ignore[arg-type]
    except errors.HubError:
        folder = download.source_folder(repository)
        for name, content in FILES.items():
            assert not (folder / name).exists() or (folder / name).read_bytes() == content
    hub.faults.clear()
    assert_right(download.download(client, repository, tuple(FILES), **how))  # type: ignore[arg-type]
