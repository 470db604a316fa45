"""What tokens cost at a plan: electricity, amortized hardware or an hourly price, by a million tokens. Pure.

    an hour of work      = watts / 1000 × price of a kWh + price of the machine / (years × 8,766 hours) / utilisation
                           or the hourly price / utilisation
    a million tokens     = an hour of work / (tokens a second × 3,600) × 1,000,000

Who owns or rents a machine pays for its idle hours too: that is what utilisation divides by. Electricity is counted
while it works; what a machine draws idle is not. Nothing is assumed: without a price the figure is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HOURS_PER_YEAR = 8766.0  # 365.25 days
_MILLION = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePrice:
    """What one machine costs: to buy, by the hour, and what it draws in watts under load; None where nobody said."""

    price: float | None = None
    hourly: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What was given. `any_machine` is for machines that are not named; `utilisation` the share of its hours that a
    machine works."""

    electricity_per_kwh: float | None = None
    years: float | None = None
    utilisation: float = 1.0
    currency: str = ""
    machines: Mapping[str, MachinePrice] = field(default_factory=dict)
    any_machine: MachinePrice = MachinePrice()
    source: str = "as given"

    @property
    def is_empty(self) -> bool:
        return self.electricity_per_kwh is None and not self.machines and self.any_machine == MachinePrice()

    def of(self, machine: str) -> MachinePrice:
        """Of the machine, each figure that was not given for it as for any machine."""
        own, usual = self.machines.get(machine.lower(), MachinePrice()), self.any_machine
        return MachinePrice(
            price=usual.price if own.price is None else own.price,
            hourly=usual.hourly if own.hourly is None else own.hourly,
            watts=usual.watts if own.watts is None else own.watts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a million tokens generated and read; None where a price or a speed is not known, `lacks` says which.
    `hour` is what an hour of work costs, by part."""

    machine: str
    generated: float | None
    prompt: float | None
    hour: float | None
    electricity_hour: float | None
    owned_hour: float | None
    rented_hour: float | None
    watts: float | None
    watts_from: str | None
    utilisation: float
    currency: str
    lacks: tuple[str, ...] = ()


def cost(
    prices: Prices, machine: str, *, decode_per_s: float, prefill_per_s: float, power_limits_w: Sequence[float | None]
) -> Cost:
    """The cost of the tokens of all slots together. `power_limits_w` are those of the GPUs that work; the rest of the
    machine is only in a measured draw."""
    own = prices.of(machine)
    watts, watts_from = _watts(own, power_limits_w)
    rented = own.hourly / prices.utilisation if own.hourly is not None else None
    owned = None
    if own.price is not None and prices.years is not None:
        owned = own.price / (prices.years * HOURS_PER_YEAR) / prices.utilisation
    electricity = None
    if prices.electricity_per_kwh is not None and watts is not None:
        electricity = watts / 1000 * prices.electricity_per_kwh
    parts = [rented] if rented is not None else [part for part in (electricity, owned) if part is not None]
    hour = sum(parts) if parts else None
    return Cost(
        machine=machine, generated=_million(hour, decode_per_s), prompt=_million(hour, prefill_per_s), hour=hour,
        electricity_hour=None if rented is not None else electricity, owned_hour=None if rented is not None else owned,
        rented_hour=rented, watts=watts, watts_from=watts_from, utilisation=prices.utilisation,
        currency=prices.currency, lacks=_lacks(prices, own, watts),
    )  # fmt: skip


def _watts(own: MachinePrice, power_limits_w: Sequence[float | None]) -> tuple[float | None, str | None]:
    if own.watts is not None:
        return own.watts, "as given"
    known = [limit for limit in power_limits_w if limit is not None]
    if not known or len(known) < len(power_limits_w):
        return None, None
    return sum(known), "power limits of the GPUs alone"


def _million(hour: float | None, per_s: float) -> float | None:
    return None if hour is None or per_s <= 0 else hour / (per_s * 3600) * _MILLION


def _lacks(prices: Prices, own: MachinePrice, watts: float | None) -> tuple[str, ...]:
    """What is missing for the whole cost; an hourly price is all of it."""
    if own.hourly is not None:
        return ()
    said = []
    if prices.electricity_per_kwh is None:
        said.append("the price of electricity")
    elif watts is None:
        said.append("the draw in watts")
    if own.price is None:
        said.append("the price of the machine")
    elif prices.years is None:
        said.append("the years it is written off over")
    return tuple(said)
