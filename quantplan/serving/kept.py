"""An engine that is there for as long as a block lasts, started again when it dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from quantplan.errors import QuantplanError
from quantplan.serving.runtimes import Launch
from quantplan.serving.supervise import OnEvent, Patience, Supervisor


@dataclass(slots=True, kw_only=True)
class Kept:
    """The engine, and the error that ended it for good, if one did."""

    supervisor: Supervisor
    failed: list[QuantplanError] = field(default_factory=list)


@contextmanager
def kept_running(launch: Launch, *, on_event: OnEvent, patience: Patience | None = None) -> Iterator[Kept]:
    """A healthy engine; ended with the block, or with this process however that ends.

    Raises ToolFailed or NotReady when it cannot start, and at the end KeepsCrashing when it was given up meanwhile.
    """
    kept = Kept(supervisor=Supervisor(launch, on_event=on_event, patience=patience))
    keeper = threading.Thread(target=_keep, args=(kept,), name="engine-keeper")
    try:
        kept.supervisor.start()
        keeper.start()
        yield kept
    finally:
        kept.supervisor.stop()
        if keeper.ident is not None:
            keeper.join()
        kept.supervisor.close()
    if kept.failed:
        raise kept.failed[0]


def _keep(kept: Kept) -> None:
    try:
        kept.supervisor.run()
    except QuantplanError as error:
        kept.failed.append(error)
