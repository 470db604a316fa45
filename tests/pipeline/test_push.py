"""Publishing: whole and truthful whatever breaks, never over another's file, and refused before any work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf_fixture import write_gguf
from loopback_hub import LoopbackHub
from push_child import Pusher

from quantplan.artifact.receipt import Receipt, entry_of, sha256_of, write_receipt
from quantplan.artifact.results import Metric, Result, Verdict, write_result
from quantplan.artifact.store import read_artifact
from quantplan.model.gguf_choice import choose_gguf
from quantplan.pipeline.push_card import repository_card
from quantplan.pipeline.verify import verify_artifact

REPO = "me/tiny-GGUF"


def make(folder: Path, quant: str = "Q4_K_M", *, split: int = 0, verdict: Verdict = Verdict.PASS,
         base: str | None = "org/tiny", extra: bytes = b"", mmproj: bytes = b"") -> Path:  # fmt: skip
    """An artifact with a measured result; `extra` makes its file another one."""
    folder.mkdir(parents=True)
    name = folder.name
    write_gguf(folder / f"{name}.gguf", split_max_tensors=split)
    for path in list(folder.glob("*.gguf")):
        path.write_bytes(path.read_bytes() + quant.encode() + extra)
    if mmproj:
        (folder / "mmproj-tiny-BF16.gguf").write_bytes(mmproj)
    files = tuple(entry_of(path) for path in sorted(folder.glob("*.gguf"), key=lambda p: p.name.startswith("mmproj")))
    source = {"repo": base, "revision": "a" * 40, "name": "tiny", "files": []}
    write_receipt(folder, Receipt(files=files, quant=quant, source=source, tools={"version": "b11312"}, steps=(),
                                  texts=()))  # fmt: skip
    metric = Metric(name="kld_mean", corpus="chat", value=0.0123 + len(extra), se=0.0001, low=None, high=None,
                    limit=0.05, n=5100)  # fmt: skip
    result = Result(artifact_sha256=files[0].sha256, policy="standard", verdict=verdict, metrics=(metric,), tool={},
                    host={}, kind="gate", reason="every text is inside its limit")  # fmt: skip
    write_result(folder, "gate", result)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    return folder


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        yield served


@pytest.fixture
def pusher(tmp_path: Path) -> Pusher:
    return Pusher(tmp_path)


def files_of(hub: LoopbackHub, repo: str = REPO) -> dict[str, bytes]:
    return {name: bytes(file.content) for name, file in hub.repositories[repo].files.items()}  # type: ignore[arg-type]


def front_of(card: bytes) -> dict[str, Any]:
    told = yaml.safe_load(card.decode().split("---")[1])
    assert isinstance(told, dict)
    return told


def whole_or_nothing(files: dict[str, bytes], artifact: Path) -> bool:
    """Whether the artifact lies there whole, with a card that tells its very hashes; else nothing of it does."""
    name = artifact.name
    ours = {f"{name}/{path.relative_to(artifact)}" for path in artifact.rglob("*.*") if path.name != "README.md"}
    card = files.get("README.md", b"").decode()
    if not ours & set(files):
        assert name not in card
        return False
    assert ours <= set(files)
    for one in sorted(ours):
        assert files[one] == (artifact / one.partition("/")[2]).read_bytes()
    for path in artifact.glob("*.gguf"):
        assert f"`{path.name}`" in card
        assert sha256_of(path) in card
    return True


def download(hub: LoopbackHub, place: Path) -> Path:
    for name, content in files_of(hub).items():
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return place


def test_all_of_an_artifact_and_a_card_that_tells_it(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    artifact = make(tmp_path / "a" / "tiny-Q4_K_M", split=1, mmproj=b"GGUF projector")
    status, said = pusher.run(hub, artifact, REPO, "--json")
    assert status == 0, said
    assert whole_or_nothing(files_of(hub), artifact)
    told = json.loads(said[said.index("{") :])["data"]
    assert told["commit"] == hub.repositories[REPO].commit
    assert len([name for name in told["uploads"] if name.endswith(".gguf")]) == 4
    card = files_of(hub)["README.md"]
    front = front_of(card)
    assert front["base_model"] == "org/tiny"
    assert front["base_model_relation"] == "quantized"
    assert front["license"] == "apache-2.0"
    assert "| chat | 0.01230 | 0.00020 | 0.05000 |" in card.decode()
    assert len(hub.writes.commits) == 1  # nothing of it was to be seen before
    assert verify_artifact(download(hub, tmp_path / "down") / "tiny-Q4_K_M").ok
    status, said = pusher.run(hub, artifact, REPO)
    assert (status, len(hub.writes.commits)) == (0, 1)
    assert "nothing to push" in said


def test_who_asks_for_a_preset_finds_it_in_its_folder(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    for artifact in (make(tmp_path / "tiny-Q4_K_M", split=1), make(tmp_path / "tiny-Q8_0", "Q8_0")):
        assert pusher.run(hub, artifact, REPO)[0] == 0
    names = tuple(files_of(hub))
    assert choose_gguf(names, model=REPO, quant="Q8_0") == "tiny-Q8_0/tiny-Q8_0.gguf"
    assert choose_gguf(names, model=REPO, quant="Q4_K_M") == "tiny-Q4_K_M/tiny-Q4_K_M-00001-of-00003.gguf"


def test_a_large_file_goes_in_parts(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    artifact = make(tmp_path / "tiny-Q4_K_M")
    hub.writes.part_bytes = 1000
    status, said = pusher.run(hub, artifact, REPO, "--private")
    assert status == 0, said
    assert len(hub.writes.parts) == -(-(artifact / "tiny-Q4_K_M.gguf").stat().st_size // 1000) > 2
    assert whole_or_nothing(files_of(hub), artifact)
    assert hub.repositories[REPO].private


@pytest.mark.parametrize("what", ["kill", "reset"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_broken_at_every_request_and_run_again(what: str, when: str, pusher: Pusher, tmp_path: Path) -> None:
    """Each request of a second artifact's push broken once, before the hub did it and after: the repository is always
    whole with the old card or whole with the new one, and the next run ends complete."""
    first, second = make(tmp_path / "tiny-Q4_K_M"), make(tmp_path / "tiny-Q8_0", "Q8_0", split=1)
    with LoopbackHub() as hub:
        assert pusher.run(hub, first, REPO)[0] == 0
        begin = files_of(hub)
        assert pusher.run(hub, second, REPO)[0] == 0
        n_requests = hub.n_requests

    def broken(number: int) -> bool:
        (tmp_path / str(number)).mkdir()
        return broken_once(Pusher(tmp_path / str(number)), begin, (first, second), number, what=what, when=when)

    with ThreadPoolExecutor(max_workers=4) as pool:  # they wait for the client's own pauses most of the time
        found = list(pool.map(broken, range(1, n_requests + 1)))
    assert all(found)
    assert n_requests >= 15


def broken_once(
    pusher: Pusher, begin: Mapping[str, bytes], artifacts: tuple[Path, Path], number: int, *, what: str, when: str
) -> bool:
    """One push broken at that request, and run again. False where it never came to it."""
    first, second = artifacts
    done: list[int] = []

    def choose(at: int) -> str | None:
        if at == number:
            done.append(at)
            return what
        return None

    with LoopbackHub() as hub:
        hub.add(REPO, begin)
        status, said = pusher.run(hub, second, REPO, **{when: choose})  # type: ignore[arg-type]
        if not done:
            assert status == 0, said
            return False
        assert status in ((-9,) if what == "kill" else (0, 1)), said
        if status == 1:
            assert "Error: " in said
            assert "Traceback" not in said
        for state in hub.writes.states:  # what anybody could have seen at any time
            assert ("tiny-Q8_0/artifact.json" in state) == ("tiny-Q8_0/tiny-Q8_0-00001-of-00003.gguf" in state)
        assert whole_or_nothing(files_of(hub), first)
        there = whole_or_nothing(files_of(hub), second)
        assert there or status != 0
        sent = hub.writes.received_bytes
        status, said = pusher.run(hub, second, REPO)
        assert status == 0, said
        assert whole_or_nothing(files_of(hub), second)
        assert whole_or_nothing(files_of(hub), first)
        assert len(hub.writes.commits) == 1
        assert hub.writes.received_bytes - sent <= sum(p.stat().st_size for p in second.glob("*.gguf"))
    return True


def test_the_card_lists_all_artifacts_and_keeps_what_others_wrote(
    hub: LoopbackHub, pusher: Pusher, tmp_path: Path
) -> None:
    hub.add(REPO, {"README.md": b"---\nlanguage: [de]\nlicense: mit\n---\n# My page\n\nHello.\n"})
    one, two = make(tmp_path / "tiny-Q4_K_M"), make(tmp_path / "tiny-Q8_0", "Q8_0", extra=b"x")
    for artifact in (one, two, one):
        assert pusher.run(hub, artifact, REPO)[0] == 0
    card = files_of(hub)["README.md"].decode()
    assert card.count("<!-- quantplan:begin -->") == 1
    assert "# My page\n\nHello.\n" in card
    told = front_of(card.encode())
    assert (told["language"], told["license"], told["base_model"]) == (["de"], "mit", "org/tiny")
    for artifact in (one, two):
        assert whole_or_nothing(files_of(hub), artifact)
    assert len(hub.writes.commits) == 2
    # a result that came later changes what the card says, and so does a verdict
    result = Result(artifact_sha256=sha256_of(one / "tiny-Q4_K_M.gguf"), policy="p", verdict=Verdict.FAIL, metrics=(),
                    tool={}, host={}, reason="too far off")  # fmt: skip
    write_result(one, "gate", result)
    status, said = pusher.run(hub, one, REPO)
    assert status == 4
    assert "not pass: it was not published" in said
    assert pusher.run(hub, one, REPO, "--allow-unvalidated")[0] == 0
    assert "verdict: **fail** (too far off)" in files_of(hub)["README.md"].decode()


def test_another_file_of_that_name_is_never_written_over(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    one, two = make(tmp_path / "a" / "tiny-Q4_K_M"), make(tmp_path / "b" / "tiny-Q4_K_M", extra=b"other")
    assert pusher.run(hub, one, REPO)[0] == 0
    before = files_of(hub)
    status, said = pusher.run(hub, two, REPO)
    assert status == 1
    assert "tiny-Q4_K_M/ is taken: the receipt there is of another artifact; nothing was changed" in said
    hub.add("me/other", {"tiny-Q4_K_M.gguf": b"GGUF of somebody"})
    status, said = pusher.run(hub, two, "me/other")
    assert status == 1
    assert "me/other: tiny-Q4_K_M.gguf is taken: the file there is another one" in said
    assert files_of(hub) == before
    assert len(hub.writes.commits) == 1


def test_the_same_files_from_another_build_keep_the_receipt_there(
    hub: LoopbackHub, pusher: Pusher, tmp_path: Path
) -> None:
    one, two = make(tmp_path / "a" / "tiny-Q4_K_M"), make(tmp_path / "b" / "tiny-Q4_K_M")
    told = json.loads((two / "artifact.json").read_text())
    (two / "artifact.json").write_text(json.dumps({**told, "tools": {"version": "b2"}}))
    assert pusher.run(hub, one, REPO)[0] == 0
    sent = hub.writes.received_bytes
    status, said = pusher.run(hub, two, REPO)
    assert status == 0, said
    files = files_of(hub)
    assert files["tiny-Q4_K_M/artifact.json"] == (one / "artifact.json").read_bytes()
    assert len([name for name in files if "/results/" in name]) == 2
    assert hub.writes.received_bytes == sent


def test_another_models_repository_is_refused(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    hub.add(REPO, {"README.md": b"---\nbase_model: org/large\n---\n"})
    status, said = pusher.run(hub, make(tmp_path / "tiny-Q4_K_M"), REPO)
    assert status == 1
    assert "it is of another base model: the card there says org/large" in said
    assert hub.writes.commits == []


def test_two_at_once_tell_of_both(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    """Somebody commits between the look and the commit: the card is made anew, on top of theirs."""
    one, two = make(tmp_path / "tiny-Q4_K_M"), make(tmp_path / "tiny-Q8_0", "Q8_0")
    other = Pusher(tmp_path / "other")
    (tmp_path / "other").mkdir()
    hub.add(REPO, {".gitattributes": b""})
    state = {"done": False}

    def meanwhile(at: int) -> str | None:
        if not state["done"] and hub.writes.received_bytes:
            state["done"] = True
            act, hub.before = hub.before, None
            assert other.run(hub, two, REPO)[0] == 0
            hub.before = act
        return None

    status, said = pusher.run(hub, one, REPO, before=meanwhile)
    assert status == 0, said
    assert "changed by others" in said
    assert whole_or_nothing(files_of(hub), one)
    assert whole_or_nothing(files_of(hub), two)


def test_refused_before_any_work(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    artifact = make(tmp_path / "tiny-Q4_K_M")
    hub.add("me/there", {})
    hub.add("org/read-only", {})
    hub.writes.read_only = {"org/read-only"}
    cases = [
        ((artifact, "strange/new"), "it is me's, who is not strange and no member of it"),
        ((artifact, "org/read-only"), "org/read-only: the token may not write there"),
        ((tmp_path, REPO), "it has no artifact.json"),
        ((tmp_path / "none", REPO), "no such artifact"),
    ]
    for words, sentence in cases:
        status, said = pusher.run(hub, *words)
        assert status == 1, said
        assert sentence in said
        assert "Hint: " in said
    hub.writes.role = "read"
    status, said = pusher.run(hub, artifact, "me/there")
    assert status == 1
    assert "me/there: the token may not write there: it is a token for reading only" in said
    hub.writes.role = "write"
    status, said = pusher.run(hub, artifact, REPO, token="hf_other")
    assert status == 1
    assert "the hub does not accept the token" in said
    status, said = pusher.run(hub, artifact, REPO, token="")
    assert status == 1
    assert "nothing can be published without a token" in said
    status, said = pusher.run(hub, artifact, REPO, HF_HUB_OFFLINE="1")
    assert status == 1
    assert "the hub may not be asked (offline mode)" in said
    assert {line.method for line in hub.log} == {"GET"}
    assert "me/tiny-GGUF" not in hub.repositories


def test_what_does_not_verify_is_not_published(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    artifact = make(tmp_path / "tiny-Q4_K_M")
    path = artifact / "tiny-Q4_K_M.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    status, said = pusher.run(hub, artifact, REPO, "--allow-unvalidated")
    assert status == 4
    assert "its receipt says" in said
    assert "it was not published" in said
    assert REPO not in hub.repositories


def test_a_dry_run_changes_nothing(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    status, said = pusher.run(hub, make(tmp_path / "tiny-Q4_K_M"), "tiny-GGUF", "--dry-run")
    assert status == 0, said
    assert "me/tiny-GGUF (to be made)  would get 4 file(s)" in said
    assert REPO not in hub.repositories
    assert {line.method for line in hub.log} == {"GET"}


def test_a_branch_of_its_own(hub: LoopbackHub, pusher: Pusher, tmp_path: Path) -> None:
    artifact = make(tmp_path / "tiny-Q4_K_M")
    status, said = pusher.run(hub, artifact, REPO, "--revision", "candidate")
    assert status == 0, said
    assert set(files_of(hub)) == {".gitattributes"}
    branch = hub.repositories[REPO].branch_files["candidate"]
    assert "tiny-Q4_K_M/tiny-Q4_K_M.gguf" in branch
    assert "nothing to push" in pusher.run(hub, artifact, REPO, "--revision", "candidate")[1]


def test_a_pulled_file_is_not_said_to_be_made_here(tmp_path: Path) -> None:
    folder = make(tmp_path / "tiny-Q4_K_M", base="other/tiny-GGUF")
    told = json.loads((folder / "artifact.json").read_text())
    told["source"] |= {"pulled": True}
    (folder / "artifact.json").write_text(json.dumps(told))
    card = repository_card("me/x", (read_artifact(folder),), before=None, licence=None, base=None)
    assert "base_model" not in front_of(card.encode())
    assert "Taken from `other/tiny-GGUF`" in card


def test_without_a_repository_in_the_receipt_no_base_model_is_made_up(tmp_path: Path) -> None:
    own = read_artifact(make(tmp_path / "tiny-Q4_K_M", base=None))
    assert "base_model" not in front_of(repository_card("me/x", (own,), before=None, licence=None, base=None).encode())
    told = front_of(repository_card("me/x", (own,), before=None, licence=None, base="org/tiny").encode())
    assert (told["base_model"], told["base_model_relation"]) == ("org/tiny", "quantized")
