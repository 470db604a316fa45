"""Prices as options or as a file. No price ships with quantplan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from quantplan.planner.cost import MachinePrice, Prices

F = TypeVar("F", bound=Callable[..., Any])


class PriceOf(click.ParamType[tuple[str, float]]):
    """AMOUNT for every machine, or MACHINE=AMOUNT."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        machine, _, amount = str(value).rpartition("=")
        try:
            number = float(amount)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1e12:
            self.fail(f"{amount!r} is no amount", param, ctx)
        return machine.strip().lower(), number


_OPTIONS = (
    click.option("--electricity", "electricity_per_kwh", type=click.FloatRange(0), metavar="PRICE",
                 help="Price of a kWh: then a million tokens has a price."),
    click.option("--watts", type=PriceOf(), multiple=True, metavar="[MACHINE=]W",
                 help="Measured draw under load; left out, the power limits of the GPUs."),
    click.option("--price", "prices", type=PriceOf(), multiple=True, metavar="[MACHINE=]PRICE",
                 help="What the machine costs to buy, written off over --years."),
    click.option("--years", type=click.FloatRange(0, min_open=True), help="Years a bought machine is used."),
    click.option("--hourly", type=PriceOf(), multiple=True, metavar="[MACHINE=]PRICE",
                 help="What the machine costs by the hour, electricity included."),
    click.option("--utilisation", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
                 help="Share of its hours that the machine works; left out, all of them."),
    click.option("--prices", "prices_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                 help="All of these as a TOML file (docs/runtime-and-cost.md)."),
)  # fmt: skip


def price_options(function: F) -> F:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


NAMES = ("electricity_per_kwh", "watts", "prices", "years", "hourly", "utilisation", "prices_file")


def prices_from(
    *, electricity_per_kwh: float | None, watts: tuple[tuple[str, float], ...], prices: tuple[tuple[str, float], ...],
    years: float | None, hourly: tuple[tuple[str, float], ...], utilisation: float | None, prices_file: Path | None,
) -> Prices:  # fmt: skip
    """What the options and the file say; an option comes before the file. Raises BadPrices."""
    from quantplan.planner.cost import Prices

    told = _read(prices_file) if prices_file is not None else {}
    machines: dict[str, dict[str, float]] = {name: dict(row) for name, row in told.get("machines", {}).items()}
    for key, given in (("watts", watts), ("price", prices), ("hourly", hourly)):
        for machine, amount in given:
            machines.setdefault(machine, {})[key] = amount
    usual = machines.pop("", {})
    return Prices(
        electricity_per_kwh=_first(electricity_per_kwh, told.get("electricity_per_kwh")),
        years=_first(years, told.get("years")), utilisation=_first(utilisation, told.get("utilisation")) or 1.0,
        currency=str(told.get("currency", "")), any_machine=_machine(usual),
        machines={name: _machine(row) for name, row in machines.items()},
        source=prices_file.name if prices_file is not None else "as given",
    )  # fmt: skip


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _machine(row: Mapping[str, float]) -> MachinePrice:
    from quantplan.planner.cost import MachinePrice

    return MachinePrice(price=row.get("price"), hourly=row.get("hourly"), watts=row.get("watts"))


_NUMBERS = ("electricity_per_kwh", "years", "utilisation")
_OF_A_MACHINE = ("price", "hourly", "watts")


def _read(path: Path) -> dict[str, Any]:
    """The file, every number looked at. Raises BadPrices."""
    from quantplan.errors import BadPrices
    from quantplan.hardware.profile_files import toml

    try:
        told: dict[str, Any] = toml().loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise BadPrices(path=str(path), where="", why=str(error)) from error
    for key, value in told.items():
        if key in _NUMBERS:
            _amount(path, key, value, positive=key != "electricity_per_kwh", most=1 if key == "utilisation" else 1e12)
        elif key not in ("currency", "machines"):
            known = ", ".join((*_NUMBERS, "currency", "machines"))
            raise BadPrices(path=str(path), where=key, why=f"is no key of a price file; there are {known}")
    machines = told.get("machines", {})
    if not isinstance(machines, dict):
        raise BadPrices(path=str(path), where="machines", why="is no table")
    for name, row in machines.items():
        if not isinstance(row, dict) or set(row) - set(_OF_A_MACHINE):
            raise BadPrices(path=str(path), where=f"machines.{name}", why=f"has other keys than {_OF_A_MACHINE}")
        for key, value in row.items():
            _amount(path, f"machines.{name}.{key}", value)
    return {**told, "machines": {name.lower(): row for name, row in machines.items()}}


def _amount(path: Path, where: str, value: object, *, positive: bool = False, most: float = 1e12) -> None:
    from quantplan.errors import BadPrices

    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
    if not good or (positive and value == 0):
        raise BadPrices(path=str(path), where=where, why=f"is {value!r}, which is no such number")
