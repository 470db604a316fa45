"""Options of `recommend` for choosing a model or a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Billions(click.ParamType[int]):
    """A number of parameters as people write it: 8B, 0.6B, 70e9, 350M."""

    name = "parameters"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().upper()
        scale = {"B": 1e9, "M": 1e6, "K": 1e3}.get(text[-1:], 1.0)
        try:
            n = float(text.rstrip("BMK")) * scale
        except ValueError:
            n = 0.0
        if not 1 <= n < 1e15:
            self.fail(f"{value!r} is no number of parameters, such as 8B or 350M", param, ctx)
        return int(n)


_OPTIONS = (
    click.option("--hardware", "machines", multiple=True, metavar="MACHINE",
                 help="Plan for another machine: rtx4070, 2x3090+64GB, g5.2xlarge, a saved name or a profile file; "
                 "several are compared (repeatable)."),
    click.option("--runtime", type=click.Choice(("auto", "llama.cpp", "vllm", "ollama")),
                 help="Say which engine to serve with and why; or whether this one can."),
    click.option("--license", "licences", multiple=True, metavar="NAME",
                 help="Without MODEL: only models of this licence, or of those that begin so (repeatable)."),
    click.option("--family", "families", multiple=True, metavar="NAME",
                 help="Without MODEL: only models with this in their name (repeatable)."),
    click.option("--max-params", "max_parameters", type=Billions(), metavar="N",
                 help="Without MODEL: only models of at most so many parameters, as 14B."),
    click.option("--machines", "machine_table", type=click.Choice(("cards", "cloud", "all")),
                 help="Over the table's machines: cards that people buy, cloud instances, or all."),
    click.option("--smallest", is_flag=True,
                 help="The smallest machine that does: of --machines (left out, all) or of the --hardware named."),
    click.option("--top", type=click.IntRange(1), default=15, show_default=True,
                 help="Without MODEL: rows of the ranking."),
)  # fmt: skip


def catalog_options(function: F) -> F:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
