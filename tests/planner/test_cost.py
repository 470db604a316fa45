"""What tokens cost: by hand, and never invented."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.cli.price_options import prices_from
from quantplan.errors import BadPrices
from quantplan.planner.cost import MachinePrice, Prices, cost
from quantplan.report.cost import per_million

NOTHING = {"electricity_per_kwh": None, "watts": (), "prices": (), "years": None, "hourly": (), "utilisation": None,
           "prices_file": None}  # fmt: skip


def test_an_owned_machine_by_hand() -> None:
    """200 W at 0.30 are 0.06 an hour; 1,753.20 over two years of 8,766 hours, half of them at work, 0.20."""
    prices = Prices(electricity_per_kwh=0.3, years=2, utilisation=0.5, any_machine=MachinePrice(price=1753.2))
    told = cost(prices, "x", decode_per_s=50, prefill_per_s=1000, power_limits_w=[200.0])
    assert told.electricity_hour == pytest.approx(0.06)
    assert told.owned_hour == pytest.approx(0.2)
    assert told.generated == pytest.approx(0.26 / 180_000 * 1e6)
    assert told.prompt == pytest.approx(0.26 / 3_600_000 * 1e6)
    assert (told.lacks, told.watts_from) == ((), "power limits of the GPUs alone")


def test_a_rented_machine_pays_for_its_idle_hours_and_nothing_else() -> None:
    prices = Prices(electricity_per_kwh=0.3, utilisation=0.25, machines={"g5.xlarge": MachinePrice(hourly=1.0)})
    told = cost(prices, "G5.xlarge", decode_per_s=100, prefill_per_s=1000, power_limits_w=[300.0])
    assert (told.hour, told.electricity_hour, told.lacks) == (4.0, None, ())


def test_without_a_price_the_figure_is_unknown_and_says_what_lacks() -> None:
    told = cost(Prices(years=3), "x", decode_per_s=50, prefill_per_s=1000, power_limits_w=[200.0])
    assert (told.generated, told.prompt, told.hour) == (None, None, None)
    assert per_million(told, "generated") == "unknown"
    assert told.lacks == ("the price of electricity", "the price of the machine")
    some = cost(Prices(electricity_per_kwh=0.3), "x", decode_per_s=50, prefill_per_s=1000, power_limits_w=[200.0])
    assert per_million(some, "generated") == "0.333+"
    cpu = cost(Prices(electricity_per_kwh=0.3), "x", decode_per_s=50, prefill_per_s=1000, power_limits_w=[])
    assert cpu.generated is None
    assert "the draw in watts" in cpu.lacks
    one_unknown = cost(
        Prices(electricity_per_kwh=0.3), "x", decode_per_s=5, prefill_per_s=9, power_limits_w=[9.0, None]
    )
    assert one_unknown.watts is None


def test_an_unknown_speed_has_no_cost() -> None:
    prices = Prices(any_machine=MachinePrice(hourly=1.0))
    assert cost(prices, "x", decode_per_s=0, prefill_per_s=10, power_limits_w=[]).generated is None


@given(st.floats(0.01, 10), st.floats(0.05, 1), st.floats(1, 1e4), st.floats(1.01, 10))
def test_faster_is_cheaper_and_idling_dearer(hourly: float, share: float, speed: float, more: float) -> None:
    def of(utilisation: float, per_s: float) -> float:
        prices = Prices(utilisation=utilisation, any_machine=MachinePrice(hourly=hourly))
        found = cost(prices, "x", decode_per_s=per_s, prefill_per_s=1, power_limits_w=[]).generated
        assert found is not None
        return found

    assert of(share, speed * more) < of(share, speed)
    assert of(share / more, speed) > of(share, speed)


def test_a_file_of_prices_and_options_before_it(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('electricity_per_kwh = 0.3\ncurrency = "EUR"\nyears = 3\nutilisation = 0.4\n'
                    '[machines."RTX4090+64GB"]\nprice = 2500\nwatts = 500\n')  # fmt: skip
    told = prices_from(**{**NOTHING, "prices_file": file, "electricity_per_kwh": 0.2})
    assert (told.electricity_per_kwh, told.years, told.utilisation, told.currency) == (0.2, 3, 0.4, "EUR")
    assert told.of("rtx4090+64gb") == MachinePrice(price=2500, watts=500)
    assert told.of("other") == MachinePrice()
    assert prices_from(**NOTHING).is_empty


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("years = 0", "years is 0"), ("utilisation = 1.5", "utilisation is 1.5"), ("nosuch = 1", "nosuch is no key"),
        ('[machines."a"]\nprice = "much"', "machines.a.price is 'much'"), ("electricity_per_kwh = -1", "is -1"),
        ('[machines."a"]\nrent = 1', "machines.a has other keys"), ("= 3", "prices"), ("machines = 3", "is no table"),
    ],
)  # fmt: skip
def test_bad_files_name_the_key(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(BadPrices, match=where):
        prices_from(**{**NOTHING, "prices_file": file})
