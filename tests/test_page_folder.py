"""The folder of the page: what is not a page's is refused and left alone, a failure leaves the page before, names are harmless."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaderboard_runs import PROTOCOL, compiled
from page_runs import write_board

from dgbench.errors import DgbenchError
from dgbench.leaderboard.page import site
from dgbench.leaderboard.page.folder import MARKER, file_name
from dgbench.leaderboard.page.site import write_page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield write_board(tmp_path_factory.mktemp("runs"), seeds=1)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_folder_of_others_is_refused_and_left_alone(tmp_path: Path, runs: Path) -> None:
    result, out = compiled(runs), tmp_path / "page"
    out.mkdir()
    (out / "thesis.md").write_text("mine")
    with pytest.raises(DgbenchError, match=r"holds files that are not of a leaderboard page \(thesis.md\)"):
        write_page(result, out, root=runs, protocol=PROTOCOL)
    assert [path.name for path in out.iterdir()] == ["thesis.md"]
    (out / "thesis.md").unlink()
    write_page(result, out, root=runs, protocol=PROTOCOL, cases=False)
    (out / "methods" / "notes.txt").write_text("mine")
    with pytest.raises(DgbenchError, match=r"methods/notes\.txt"):
        write_page(result, out, root=runs, protocol=PROTOCOL)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DgbenchError, match="is a file"):
        write_page(result, tmp_path / "file", root=runs, protocol=PROTOCOL)


def test_a_failure_leaves_the_page_before(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, out = compiled(runs), tmp_path / "page"
    write_page(result, out, root=runs, protocol=PROTOCOL, cases=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site, "method_pages", fail)
    with pytest.raises(DgbenchError, match="No space left"):
        write_page(result, out, root=runs, protocol=PROTOCOL, cases=False)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_marker_cannot_hide_files_of_others(tmp_path: Path, runs: Path) -> None:
    out = tmp_path / "page"
    out.mkdir()
    (out / MARKER).write_text(json.dumps({"made_by": "someone", "files": ["x"]}))
    (out / "x").write_text("mine")
    with pytest.raises(DgbenchError, match="holds files that are not"):
        write_page(compiled(runs), out, root=runs, protocol=PROTOCOL)


def test_file_names_are_harmless() -> None:
    assert file_name("erm_long") == "erm_long"
    assert file_name("_pancreas").startswith("pancreas-") or file_name("_pancreas").startswith("_pancreas-")
    odd = ["../../x", "a/b", "a?b", "ä", "", ".hidden", "x" * 80]
    names = [file_name(text) for text in odd]
    assert len(set(names)) == len(odd)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) for name in names)
