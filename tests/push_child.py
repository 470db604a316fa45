"""`quantplan push` in a child that is started from a warm process, so that it can be killed a hundred times."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub


def push_all(argv: list[str], env: dict[str, str], report: Path) -> None:
    """The command line, in this process; its end is told in a file."""
    os.environ.update(env)
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = env["HF_ENDPOINT"], env["HF_ENDPOINT"] + template
    constants.HF_HUB_OFFLINE = bool(env.get("HF_HUB_OFFLINE"))
    constants.HF_TOKEN_PATH = str(report.with_name("no-token"))
    from quantplan.cli.main import main

    with report.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            main(["push", *argv])
        except SystemExit as end:
            os._exit(int(end.code or 0))


class Pusher:
    """Starts children against a hub."""

    def __init__(self, place: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["quantplan.cli.main", "quantplan.cli.push", "quantplan.pipeline.push", "huggingface_hub.hf_api",
             "huggingface_hub._commit_api", "quantplan.model.hub_push", "yaml", "gguf"]
        )  # fmt: skip
        self._place = place

    def run(
        self, hub: LoopbackHub, *argv: str | Path, before: Callable[[int], str | None] | None = None,
        after: Callable[[int], str | None] | None = None, token: str | None = None, **more: str,
    ) -> tuple[int, str]:  # fmt: skip
        """Exit status (negative: the signal) and all that was said. `before` and `after` say of every request's number
        since the start: "kill", "reset" or nothing."""
        report = self._place / "said.txt"
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token if token is None else token, "QUANTPLAN_CACHE": str(self._place / "cache"),
            "QUANTPLAN_STATE": str(self._place / "state"),
            "HF_HOME": str(self._place / "hf"),
            **more,
        }  # fmt: skip
        child: Any = self._context.Process(target=push_all, args=([*map(str, argv)], env, report))
        hub.n_requests = 0
        hub.before, hub.after = _act(before, lambda: child.pid), _act(after, lambda: child.pid)
        child.start()
        child.join(60)
        hub.before = hub.after = None
        assert child.exitcode is not None, "it hangs"
        return child.exitcode, report.read_text()


def _act(choose: Callable[[int], str | None] | None, pid: Callable[[], int]) -> Callable[[int], bool] | None:
    if choose is None:
        return None
    lock = threading.Lock()

    def act(number: int) -> bool:
        with lock:
            what = choose(number)
            if what == "kill":
                os.kill(pid(), signal.SIGKILL)
            return what is not None

    return act
