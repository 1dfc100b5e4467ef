"""Options and fixtures shared by all tests."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", metavar="K/N", default=None, help="run the K-th of N shares of the selected tests, K from 0"
    )
    parser.addoption(
        "--real-data", type=Path, default=None, help="folder with small real scans and masks (see docs/testing.md)"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the K-th of N shares of the tests that -m selected, dealt in turn, so that no share is empty or much larger than another."""
    share: str | None = config.getoption("--share")
    if share is None:
        return
    wanted, shares = map(int, share.split("/"))
    kept = items[wanted::shares]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real scans, or a skip that says how to give it."""
    folder: Path | None = request.config.getoption("--real-data")
    if folder is None:
        pytest.skip("needs --real-data DIR")
    return folder.resolve()
