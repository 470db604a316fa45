"""Nothing to choose from: a filter without models, a use without data, a runtime that cannot serve, a price unknown."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.errors.base import ExitCode, QuantplanError


class NoModelLeft(QuantplanError):
    """Filters that no model of the catalog passes. `without` says how many are left when one filter is dropped."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, asked: Sequence[str], without: Sequence[tuple[str, int]], near: Sequence[str] = ()) -> None:
        like = f"; known: {', '.join(near)}" if near else ""
        left = ", ".join(f"without {what} there are {n}" for what, n in without if n)
        super().__init__(f"no model of the catalog has {' and '.join(asked)}{like}" + (f"; {left}" if left else ""))
        self.asked, self.without, self.near = tuple(asked), tuple(without), tuple(near)


class UseWithoutData(QuantplanError):
    """A use that nothing is known of: which models are good for it nobody recorded."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, use: str, known: Sequence[str]) -> None:
        super().__init__(f"the catalog does not say which models are for {use}; it does for {', '.join(known)}")
        self.use, self.known = use, tuple(known)


class NoModelFits(QuantplanError):
    """Every model that was asked about needs more than the machine has."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, n: int, smallest: str, why: str) -> None:
        which = "the one model asked about does not fit" if n == 1 else f"none of the {n} models asked about fits"
        super().__init__(f"{which}; the smallest is {smallest}: {why}")
        self.n, self.smallest, self.why = n, smallest, why


class NoMachineMeets(QuantplanError):
    """No machine that was looked at meets the constraints. `nearest` is the one that comes closest, and why not."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, model: str, n: int, nearest: str, why: str) -> None:
        looked = "the machine does not do" if n == 1 else f"none of the {n} machines does"
        super().__init__(f"{looked} for {model}; nearest is {nearest}: {why}")
        self.model, self.n, self.nearest, self.why = model, n, nearest, why


class RuntimeCannot(QuantplanError):
    """An engine that cannot serve this model on this machine, and those that can."""

    exit_code = ExitCode.DOES_NOT_FIT

    def __init__(self, *, runtime: str, model: str, why: str, others: Sequence[str]) -> None:
        instead = f"; {' or '.join(others)} can" if others else ""
        super().__init__(f"{runtime} cannot serve {model}: {why}{instead}")
        self.runtime, self.model, self.why, self.others = runtime, model, why, tuple(others)


class BadPrices(QuantplanError):
    """A file of prices that cannot be right, with the line or key."""

    exit_code = ExitCode.USAGE

    def __init__(self, *, path: str, where: str, why: str) -> None:
        super().__init__(f"prices {path}: {where} {why}" if where else f"prices {path}: {why}")
        self.path, self.where, self.why = path, where, why
