"""Options and fixtures shared by all tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaderboard_runs import write_two_seeds
from training_fixtures import Mini
from tune_studies import invent, request_of, tune

from dgbench.cli import TRACE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", metavar="K/N", default=None, help="run the K-th of N shares of the selected tests, K from 0"
    )
    parser.addoption(
        "--real-data", type=Path, default=None, help="folder with small real scans and masks (see docs/testing.md)"
    )

    parser.addoption("--slurm", action="store_true", help="run the tests on a real Slurm (needs slurm-wlm and munge)")


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


@pytest.fixture(scope="session", autouse=True)
def traces() -> Iterator[None]:
    """A fault of dgbench itself fails a test with its trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRACE, "1")
        yield


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real scans, or a skip that says how to give it."""
    folder: Path | None = request.config.getoption("--real-data")
    if folder is None:
        pytest.skip("needs --real-data DIR")
    return folder.resolve()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """Three sound centers, of which GAMMA is held out."""
    return Mini.write(tmp_path_factory.mktemp("mini"))


@pytest.fixture
def mini(sound: Mini, tmp_path: Path) -> Mini:
    """A copy of the data that a test may spoil."""
    shutil.copytree(sound.data, tmp_path / "data")
    return Mini(tmp_path / "data", sound.protocol, tmp_path / "cache")


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process, so that a test need not start three others."""
    monkeypatch.setattr("dgbench.launch.execute.run_job", lambda function, job, *_: function(job, lambda *_: None))


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    """Made-up runs of two seeds."""
    return write_two_seeds(tmp_path)


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgbench.tuning.trial.run_job", invent)


@pytest.fixture(scope="module")
def whole(sound: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of an invented study."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgbench.tuning.trial.run_job", invent)
        tune(request_of(sound, runs))
    return runs


@pytest.fixture
def study(whole: Path, tmp_path: Path, invented: None) -> Path:
    """The folder of an invented study, in a runs folder ``runs`` that a test may change."""
    shutil.copytree(whole, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("mini/GAMMA/mixstyle/tune-*")
    return folder
