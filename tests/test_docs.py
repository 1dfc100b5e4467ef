"""The documentation is true: its commands parse and name what exists, its links lead somewhere, its example is trained."""

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from dgbench.cli import call
from dgbench.cli.app import app
from dgbench.cli.options import protocol_name
from dgbench.cli.sweep import heldouts_of, methods_of
from dgbench.evaluation.metrics import CaseMetrics
from dgbench.launch.plan import RunRequest, resolve_request
from dgbench.protocol import load_protocol, protocol_names
from dgbench.registry import discover, find_method
from dgbench.testing import CHECKS, check_method
from dgbench.training.step import TrainingContext

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CHEAP = {("methods", "list"), ("methods", "show"), ("protocols", "list"), ("protocols", "show"), ("doctor",)}
"""Commands that are run as they stand."""
ENTRY = ROOT / "CONTRIBUTING.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    """Every command of every bash block, as words without comments; each once."""
    found = {}
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found[" ".join(words)] = words
    return list(found.values())


COMMANDS = command_lines()


def context(arguments: list[str]) -> Any:
    """The innermost click context of ``arguments``: every option and argument is parsed and validated, nothing is run."""
    command: Any = typer.main.get_command(app)
    found = command.make_context("dgbench", list(arguments))
    while hasattr(found.command, "resolve_command"):
        rest = [*found._protected_args, *found.args]
        name, command, rest = found.command.resolve_command(found, rest)
        found = command.make_context(name, rest, parent=found)
    return found


def request_of(parameters: dict[str, Any], method: str, heldout: str) -> RunRequest:
    return RunRequest(
        method,
        heldout,
        protocol=protocol_name(parameters["protocol"], parameters["data"]),
        preset=parameters["preset"],
        data=parameters["data"],
        overrides=tuple(parameters["settings"] or ()),
    )


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples of CONTRIBUTING.md, under the names that the page gives them."""
    folder = tmp_path_factory.mktemp("plugin")
    text = ENTRY.read_text(encoding="utf-8")
    for name, code in zip(re.findall(r"as `(\w+\.py)`", text), blocks(ENTRY, "python"), strict=True):
        (folder / name).write_text(code)
    return folder


@pytest.fixture
def example(example_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(example_folder))
    return example_folder


def test_pages_are_there() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert names >= {
        "README.md",
        "CONTRIBUTING.md",
        "docs/protocol.md",
        "docs/run-folder.md",
        "docs/data.md",
        "docs/testing.md",
    }
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.usefixtures("example")
def test_command_is_right(words: list[str], pytestconfig: pytest.Config) -> None:
    program, *arguments = words
    match program:
        case "dgbench":
            check_dgbench(arguments)
        case "make":
            (target,) = arguments
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case "pytest":
            files = [word for word in arguments if word.startswith("tests/")]
            assert all((ROOT / name).is_file() for name in files)
            for option in (word.partition("=")[0] for word in arguments if word.startswith("-")):
                pytestconfig.getoption(option)  # ValueError where there is none
        case "pip":
            assert arguments[0] == "install"
            check_pip(arguments[1:])
        case "python":
            assert (ROOT / arguments[0]).is_file()
        case "python3":
            assert arguments == ["-m", "venv", ".venv"]
        case ".":
            assert arguments == [".venv/bin/activate"]
        case _:
            raise AssertionError(f"no check for {program!r}: add one")


def check_dgbench(arguments: list[str]) -> None:
    found = context(arguments)
    parameters = found.params
    path = tuple(word for word in found.command_path.split()[1:])
    if "protocol" in parameters:
        name = protocol_name(parameters["protocol"], parameters.get("data"))
        load_protocol("phantom" if name.endswith(".yaml") else name)
    if path == ("run",):
        resolve_request(request_of(parameters, parameters["method"], parameters["heldout"]))
    elif path == ("sweep",):
        protocol = load_protocol(protocol_name(parameters["protocol"], parameters["data"]))
        for method in methods_of(parameters["method"]):
            for one in heldouts_of(protocol, parameters["heldout"]):
                resolve_request(request_of(parameters, method, one))
    elif path == ("methods", "new"):
        assert parameters["name"].isidentifier()
    elif path[0] in ("methods", "protocols") and "name" in parameters:
        assert parameters["name"] in (discover() if path[0] == "methods" else protocol_names())


def check_pip(arguments: list[str]) -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = iter(arguments)
    for word in words:
        if word == "-c":
            assert (ROOT / next(words)).is_file()
        elif word == "-e":
            assert re.fullmatch(r"\.\[(\w+)\]", extra := next(words))
            assert extra[2:-1] in project["optional-dependencies"]
        elif word == "--index-url":
            assert next(words).startswith("https://download.pytorch.org/")
        else:
            assert word in pinned


def cheap(words: list[str]) -> bool:
    return words[0] == "dgbench" and any(tuple(words[1:][: len(start)]) == start for start in CHEAP)


@pytest.mark.parametrize("words", [words for words in COMMANDS if cheap(words)], ids=" ".join)
def test_cheap_command_succeeds(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(words[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    names = re.findall(
        r"`((?:dgbench|methods|protocols|leaderboards|tests|docs)/[\w/.-]+)`", page.read_text(encoding="utf-8")
    )
    missing = [name for name in names if not (ROOT / name).exists() and "random_gamma" not in name]
    assert missing == []


def test_readme_names_every_method() -> None:
    """The table abbreviates the ablations: `dualtask_bl`, `_idr`, …"""
    text = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    missing = [
        name for name in discover() if f"`{name}`" not in text and f"`{name.removeprefix('dualtask')}`" not in text
    ]
    assert missing == []


def test_protocol_page_names_presets_and_budgets() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    for name in protocol_names():
        assert f"**{name}**" in text
        assert all(f"`{preset}`" in text for preset in load_protocol(name).presets)
    presets = load_protocol("pancreas-tumor").presets
    for preset in ("paper", "bench"):
        for stage in ("tumor-fine", "pancreas-fine"):
            assert f"{presets[preset].stages[stage].draws:,}" in text
    for stage in ("tumor-coarse", "tumor-fine", "pancreas-coarse"):
        assert "×".join(map(str, presets["paper"].stages[stage].crop)) in text


def test_run_folder_page_names_every_column() -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    columns = {
        "case",
        "center",
        "role",
        "stage",
        "setting",
        "checkpoint",
        "threshold",
        "failed",
        "reason",
        "roi",
        "rounds",
        "windowed",
    }
    table = text.partition("### Columns")[2].partition("\n## ")[0]
    named = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == columns | {field.name for field in fields(CaseMetrics)}


def test_data_page_quotes_messages_of_the_code() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "dgbench" / "data").glob("*.py")))
    table = (
        (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("| in the message")[2].partition("\n\n")[0]
    )
    quoted = [
        text
        for line in table.splitlines()
        if line.startswith("| `")
        for text in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(quoted) > 10
    fragments = {
        text: text.replace("is identical to that of case", "is identical to that of case {}") for text in quoted
    }
    assert [text for text, fragment in fragments.items() if fragment not in source and text not in source] == []


def test_citation_and_yaml_are_readable() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"] == "Apache-2.0"


def test_example_changes_contrast_and_nothing_else(example: Path) -> None:
    from dgbench.method import Batch, Setup
    from dgbench.nets import Backbone
    from dgbench.registry import load_class

    info = find_method("random_gamma:RandomGamma")
    assert len(blocks(ENTRY, "python")[0].splitlines()) < 35
    task = load_protocol("phantom").task
    method = load_class(info)(
        info.configure({"strength": "0.8"}), Setup(task, "tumor-fine", True, 2, 1, lambda: Backbone(width=8))
    )
    image = torch.linspace(0, 1, 1024).reshape(2, 1, 8, 8, 8)
    batch = Batch(image, (image > 0.5).float(), torch.tensor([0, 1]))
    changed = method.augment(batch, TrainingContext(seed=3))
    assert torch.equal(changed.label, batch.label)
    assert changed.image.shape == image.shape
    inside = (image > 0.1) & (image < 0.9)
    exponents = (changed.image.log() / image.log()).masked_fill(~inside, float("nan"))
    per_case = [exponents[index][inside[index]] for index in range(2)]
    assert all(torch.allclose(values, values[0].expand_as(values), atol=1e-3) for values in per_case)
    assert per_case[0][0] != per_case[1][0]
    assert all(abs(float(values[0].log())) <= 0.8 for values in per_case)
    assert torch.equal(method.augment(batch, TrainingContext(seed=3)).image, changed.image)
    assert not torch.equal(method.augment(batch, TrainingContext(seed=4)).image, changed.image)


@pytest.mark.slow
def test_example_trains_and_leaves_what_the_page_lists(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command of the page, and every file that it leaves is in docs/run-folder.md."""
    monkeypatch.chdir(example)
    words = next(words for words in COMMANDS if words[1] == "run" and "random_gamma:RandomGamma" in words)
    quick = [
        "--threads",
        "1",
        "--device",
        "cpu",
        "--no-mlflow",
        "--runs",
        str(tmp_path / "runs"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert call([*words[1:], *quick]) == 0
    assert "random_gamma" in capsys.readouterr().out
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    documented = [re.escape(name) for name in re.findall(r"`([\w./<>-]+\.\w+)`", text)]
    patterns = [re.sub(r"<\w+>", r"[^/]+", name) for name in documented]
    (own,) = (tmp_path / "runs" / "phantom" / "RENJI" / "random_gamma").iterdir()
    (shared,) = (tmp_path / "runs" / "phantom" / "RENJI" / "_pancreas").iterdir()
    left = [
        path.relative_to(folder).as_posix() for folder in (own, shared) for path in folder.rglob("*") if path.is_file()
    ]
    assert len(left) > 30
    unknown = [name for name in left if not any(re.search(rf"(^|/){pattern}$", name) for pattern in patterns)]
    assert unknown == []


@pytest.mark.parametrize(
    "method",
    [
        "random_gamma:RandomGamma",
        pytest.param("style_noise:StyleNoise", marks=pytest.mark.slow),
        pytest.param("sharpness:Sharpness", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("example")
def test_examples_keep_the_contract(method: str) -> None:
    checks = [check for check in CHECKS if check.__name__ != "card_is_complete"]
    assert [(one.check, one.problem) for one in check_method(find_method(method), checks=checks) if one.problem] == []
