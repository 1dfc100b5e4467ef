"""Writing, checking, costing and installing methods from the command line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import mistake, run_arguments
from training_fixtures import Mini

from dgbench.cli import call
from dgbench.cli.cost import _possible
from dgbench.errors import DgbenchError
from dgbench.protocol import load_protocol
from dgbench.registry import find_method

TABLE_VI = {"erm": (37_915_650, 945.23), "dualtask": (37_999_238, 945.44)}
"""Printed in the paper's Table VI: parameters (3.79e7, 3.80e7) and GFLOPs."""


def test_new_plugin_runs_and_keeps_the_contract(
    tmp_path: Path, mini: Mini, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["methods", "new", "first_idea"]) == 0
    assert "dgbench run --method first_idea.method:FirstIdea" in capsys.readouterr().out
    assert call(["methods", "check", "first_idea"]) == 0
    assert "14 of 14 checks passed" in capsys.readouterr().out
    assert call(run_arguments(mini, tmp_path / "runs", method="first_idea.method:FirstIdea")) == 0


def test_new_plugin_beside_the_built_in_ones_is_known_by_name(tmp_path: Path) -> None:
    from dgbench.cli.plugins import write_plugin

    package = tmp_path / "dgbench_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    folder, method = write_plugin("second_idea", package, 2026)
    assert method == "second_idea"
    assert 'target="dgbench_methods.second_idea.method:SecondIdea"' in (folder / "__init__.py").read_text()


def test_mistakes_of_new_and_check_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ["methods", "new", f"--dir={tmp_path}"]
    assert mistake(capsys, [*new, "erm"]) == "method name 'erm' is taken — `dgbench methods show erm`"
    assert "must be a Python name" in mistake(capsys, [*new, "my-idea"])
    (tmp_path / "third_idea").mkdir()
    assert "exists" in mistake(capsys, [*new, "third_idea"])
    assert list(tmp_path.iterdir()) == [tmp_path / "third_idea"]
    assert "unknown method 'emr'" in mistake(capsys, ["methods", "check", "emr"])
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "neither INFO nor a class with `info`" in mistake(capsys, ["methods", "check", str(tmp_path / "empty.py")])
    (tmp_path / "wrong.py").write_text("import nothing_of_this_name\n")
    assert "ModuleNotFoundError" in mistake(capsys, ["methods", "check", str(tmp_path / "wrong.py")])


def test_method_that_breaks_the_contract_ends_with_its_name_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["methods", "check", "broken_plugins:Logits"]) == 2
    out, err = capsys.readouterr()
    assert "FAILED: predict gives values from" in out
    assert err == "error: does not keep the contract: logits (output_shape, card_is_complete)\n"


@pytest.mark.parametrize("name", TABLE_VI)
def test_cost_is_that_of_the_papers_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["cost", "--method", name, "--convention", "table-vi", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["params"], round(answer["gflops"], 2)) == TABLE_VI[name]
    assert set(answer["stages"]) == {"tumor-coarse", "tumor-fine"}


def test_plain_conventions_count_what_is_deployed(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {}
    for convention in ("table-vi", "macs", "flops"):
        assert call(["cost", "--method=dualtask", f"--convention={convention}", "--format=json"]) == 0
        numbers[convention] = json.loads(capsys.readouterr().out)["gflops"]
    assert numbers["flops"] == pytest.approx(2 * numbers["macs"])
    assert numbers["macs"] < numbers["table-vi"]
    assert call(["cost", "--method=erm,dualtask"]) == 0
    assert "a multiply-accumulate is one operation" in capsys.readouterr().out
    assert "name one method" in mistake(capsys, ["cost", "--method=erm,dualtask", "--set=views=1"])


def test_a_method_that_a_protocol_cannot_hold_has_no_cost_there(capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--protocol=phantom-in-domain", "--preset=tiny"]
    reason = "n/a: method dart needs at least 2 source centers, with protocol phantom-in-domain there are 1"
    for time in ([], ["--time"]):
        assert mistake(capsys, ["cost", "--method=dart", *where, *time]) == reason
    assert call(["cost", "--method= dart, erm,erm", *where, "--format=json"]) == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["method"] == "erm"
    assert answer.err == f"{reason}\n"
    protocol = load_protocol("phantom")
    flat = protocol.model_copy(update={"task": protocol.task.model_copy(update={"ndim": 2})})
    solid = replace(find_method("erm"), dims=frozenset({3}))
    assert _possible([solid], protocol) == [solid]
    with pytest.raises(DgbenchError, match="n/a: method erm works in 3D, protocol phantom is 2D"):
        _possible([solid], flat)


@pytest.mark.slow
def test_method_of_another_distribution_is_built_installed_listed_and_run(tmp_path: Path, mini: Mini) -> None:
    """And a broken plugin in the same distribution is listed with its reason, and harms nobody."""
    from dgbench.cli.plugins import write_plugin

    project, site = tmp_path / "project", tmp_path / "site"
    (project / "far_methods").mkdir(parents=True)
    (project / "far_methods" / "__init__.py").touch()
    write_plugin("far_idea", project / "far_methods", 2026)
    (project / "far_methods" / "sick.py").write_text("raise RuntimeError('out of order')\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "far-methods"\nversion = "1.0"\n'
        '[project.entry-points."dgbench.methods"]\n'
        'far_idea = "far_methods.far_idea"\nsick = "far_methods.sick"\n'
    )
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(project)], check=True, capture_output=True)

    def dgbench(*arguments: str) -> str:
        words = [str(Path(sys.executable).parent / "dgbench"), *arguments]
        paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        answer = subprocess.run(
            words, check=False, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    listed = {row["name"]: row for row in json.loads(dgbench("methods", "list", "--format", "json"))}
    assert listed["far_idea"]["broken"] is None
    assert listed["far_methods.sick"]["broken"] == "RuntimeError: out of order"
    assert listed["erm"]["broken"] is None
    dgbench(*run_arguments(mini, tmp_path / "runs", method="far_idea"))
    assert list((tmp_path / "runs").glob("*/GAMMA/far_idea/seed0-*/evaluation/cases.parquet"))
