"""The preset, by really starting llama-server's router with it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from serving.engine import LOAD_S
from serving.export.cases import CASES, deployment
from serving.export.deployed import deployed, put
from serving.export.read_preset import router_words, sections
from serving.export.test_llama_swap import sized
from serving.gateway.front_door import ask, chat
from serving.tiny_plan import free_port

from quantplan.artifact.store import Artifact
from quantplan.errors import CannotExport, TargetTooOld
from quantplan.llama.types import Toolchain
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.formats import export
from quantplan.serving.export.target import Target


@contextmanager
def routed(folder: Path, port: int) -> Iterator[str]:
    """router.sh as exported, running, with an environment that would change the plan if it reached the servers."""
    env = {"PATH": "/usr/bin:/bin", "LLAMA_ARG_THREADS": "7", "LLAMA_ARG_CACHE_REUSE": "256"}
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen([folder / "router.sh"], stdout=log, stderr=log, env=env, cwd="/")
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + LOAD_S
        while ask(f"{url}/health")[0] != 200:
            assert child.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield url
    finally:
        child.terminate()
        child.wait(timeout=20)


@pytest.mark.tools
@pytest.mark.build
def test_the_router_serves_both_models_as_planned(tiny: Artifact, toolchain: Toolchain, tmp_path: Path) -> None:
    key = tmp_path / "keys"
    key.touch(mode=0o600)
    key.write_text("of-the-test\n")
    port = free_port()
    target = Target(port=port, api_key_file=str(key), program=tuple(map(str, toolchain.programs["llama-server"])))
    short = deployed(tiny, tmp_path, target=target, model="short", n_ctx_per_slot=256)
    long = deployed(tiny, tmp_path, target=target, model="long/and wide", n_parallel=3, n_ctx_per_slot=512)
    folder = put(tmp_path / "out", export("preset", (short, long)))
    with routed(folder, port) as url:
        assert ask(f"{url}/v1/models", key="another")[0] == 401
        for told in (short, long):
            deadline = time.monotonic() + LOAD_S
            while (answer := ask(f"{url}/v1/chat/completions", chat("Hi", model=told.alias), key="of-the-test"))[
                0
            ] != 200:
                assert time.monotonic() < deadline, answer
                time.sleep(0.1)
            props = json.loads(ask(f"{url}/props?model={told.alias.replace(' ', '%20')}", key="of-the-test")[2])
            assert props["total_slots"] == told.plan.n_parallel
            assert props["default_generation_settings"]["n_ctx"] == told.plan.n_ctx_per_slot
            over = chat("word " * told.plan.n_ctx_per_slot, model=told.alias)
            status, _, body = ask(f"{url}/v1/chat/completions", over, key="of-the-test")
            assert (status, json.loads(body)["error"]["n_ctx"]) == (400, told.plan.n_ctx_per_slot)
        assert ask(f"{url}/v1/chat/completions", chat("Hi", model="a third"), key="of-the-test")[0] in (400, 404)


@pytest.fixture
def told(tmp_path: Path) -> Deployment:
    return deployment(tmp_path, CASES[0])


def n_max(*deployments: Deployment) -> int:
    words = router_words(export("preset", deployments).files[1].text)
    return int(words[words.index("--models-max") + 1])


def test_as_many_as_fit_whichever_they_are(told: Deployment) -> None:
    """The router counts: three small ones would fit, but with the large one only two do."""
    models = [sized(told, name, gib, capacity_gib=18) for name, gib in (("a", 9), ("b", 5), ("c", 5), ("d", 5))]
    assert n_max(*models) == 2
    assert n_max(*models[1:]) == 3
    assert n_max(models[0]) == 1
    notes = export("preset", tuple(models)).notes
    assert any("at most 2 of 4 at once" in note for note in notes)
    assert any(note.startswith("up to 3 of them would fit") for note in notes)
    text = export("preset", tuple(models[1:])).files[0].text
    assert {one["load-on-startup"] for one in sections(text).values()} == {"true"}
    text = export("preset", tuple(models)).files[0].text
    assert {one["load-on-startup"] for one in sections(text).values()} == {"false"}


def test_what_it_cannot_say(told: Deployment) -> None:
    odd = replace(told, plan=replace(told.plan, model="a]b"))
    with pytest.raises(CannotExport, match="cannot be a section"):
        export("preset", (odd,))
    with pytest.raises(CannotExport, match="two models are called"):
        export("preset", (told, told))
    assert told.engine.number is not None
    with pytest.raises(TargetTooOld, match="a server as it was measured needs"):
        export("preset", (told,), version=f"b{told.engine.number - 1}")
