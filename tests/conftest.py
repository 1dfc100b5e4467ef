"""Options and fixtures shared by all tests."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-data", type=Path, default=None, help="folder with small real scans and masks (see docs/testing.md)"
    )


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real scans, or a skip that says how to give it."""
    folder: Path | None = request.config.getoption("--real-data")
    if folder is None:
        pytest.skip("needs --real-data DIR")
    return folder.resolve()
