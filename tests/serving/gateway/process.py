"""The gateway as a process of its own, as `serve --gateway` runs it: for tests that look at its memory and its end.

python process.py '{"engine": [port, key], "port": …, "plans": {name: path}, "keys": path | null, "wishes": {…}}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    from quantplan.artifact.plan_file import read_plan
    from quantplan.serving.gateway.app import run_gateway
    from quantplan.serving.gateway.keys import read_keys
    from quantplan.serving.gateway.limits import Wishes
    from quantplan.serving.gateway.upstream import Engine

    told = json.loads(sys.argv[1])
    port, key = told["engine"]
    run_gateway(
        {name: read_plan(Path(path)) for name, path in told["plans"].items()},
        Engine(host="127.0.0.1", port=port, key=key),
        host="127.0.0.1",
        port=told["port"],
        keys=read_keys(Path(told["keys"])) if told.get("keys") else {},
        wishes=Wishes(**told.get("wishes", {})),
        drain_s=told.get("drain_s", 20),
    )
