"""What all tests share: the tools on this host, the shared truth, and the rule that CI skips nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from system_programs import MISSING

ROOT = Path(__file__).resolve().parent.parent
MAY_BE_SKIPPED = ("gpu", "vllm")
_skipped: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """What the commands remember is not to end in the state folder of whoever runs the tests."""
    os.environ.setdefault("QUANTPLAN_STATE", tempfile.mkdtemp(prefix="quantplan-state-"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agreement", action="store_true", help="Hold measurements against C and dd too.")
    parser.addoption("--no-skips", action="store_true", help="Fail when a test is skipped that may not be.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Other machines' work beside this one decides what a shared disk or memory bus gives: not a test of ours."""
    if not config.getoption("--agreement"):
        kept = [item for item in items if not item.get_closest_marker("agreement")]
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("agreement")])
        items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    may = any(marker in report.keywords for marker in MAY_BE_SKIPPED) or MISSING in str(report.longrepr)
    if report.skipped and not may:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--no-skips") and _skipped and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--no-skips"):
        terminalreporter.write_line(
            f"{len(_skipped)} test(s) skipped that may not be ({', '.join(MAY_BE_SKIPPED)} may)"
        )
        for nodeid in _skipped:
            terminalreporter.write_line(f"  skipped: {nodeid}", red=True)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests build and gate is not recorded in the history of who runs them."""
    os.environ["QUANTPLAN_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def documents_keep_their_schemas() -> Iterator[None]:
    """Whatever JSON document a command prints in these tests is held to its schema in data/schemas."""
    import command_line

    from quantplan.report import document

    render = document.render

    def checked(told: Mapping[str, Any], *, one_line: bool = False) -> str:
        command_line.hold_to_schema(told)
        return render(told, one_line=one_line)

    document.render = checked
    yield
    document.render = render


@pytest.fixture(scope="session")
def toolchain():  # type: ignore[no-untyped-def]
    """The llama.cpp tools of this host."""
    from quantplan.errors import ToolMissing
    from quantplan.llama.toolchain import find_toolchain

    try:
        return find_toolchain()
    except ToolMissing as error:
        pytest.skip(f"{error}; install them with: quantplan toolchain install")


@pytest.fixture(scope="session")
def llama_bin(toolchain) -> Path:  # type: ignore[no-untyped-def]
    """The folder of the tools."""
    return Path(toolchain.programs["llama-quantize"][0]).parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The truth tables beside the checkout. In CI they must be there."""
    folder = Path(os.environ.get("QUANTPLAN_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the truth tables are missing: {folder}")
        pytest.skip("the truth tables are not beside this checkout")
    return folder
