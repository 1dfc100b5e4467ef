"""The house rules of docs: imports run one way, heavy libraries stay out of the light commands, modules stay small."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder

import dgbench
import dgbench_methods
from dgbench.info import MethodInfo
from dgbench.protocol import load_protocol, protocol_names
from dgbench.registry import discover, load_class

LEVELS = (
    {"", "errors", "atomic", "frozen", "seeds", "task", "protocol", "info", "yaml_text", "processor"},
    {"nets", "ops"},
    {"method", "registry"},
    {"data"},
    {"training", "inference", "evaluation", "store", "leaderboard"},
    {"launch", "tuning", "verification"},
    {"cli", "testing"},
)
HEAVY = ("torch", "monai", "mlflow", "optuna", "pandas")
FOR_METHODS = ("dgbench.errors", "dgbench.method", "dgbench.info", "dgbench.nets", "dgbench.ops")
MAX_LINES = 400

PACKAGE = Path(dgbench.__file__).parent
METHODS = Path(dgbench_methods.__path__[0])


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path, root): path for root in (PACKAGE, METHODS) for path in sorted(root.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported anywhere in ``tree``, but under ``if TYPE_CHECKING``: these never run."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute"
        assert tree.module is not None
        names = [f"{tree.module}.{alias.name}" for alias in tree.names]
        yield from (name if name in MODULES else tree.module for name in names)
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


GRAPH = {name: set(imports(parsed(name))) for name in MODULES}


def level(module: str) -> int:
    room = module.split(".")[1] if "." in module else ""
    return next(index for index, rooms in enumerate(LEVELS) if room in rooms)


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "dgbench"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "dgbench"])
def test_imports_run_one_way(module: str) -> None:
    upward = [name for name in ours(GRAPH[module]) if level(name) > level(module)]
    assert not upward, f"{module} imports what is built on it"


def test_no_module_imports_itself_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: Sequence[str]) -> None:
        assert module not in path, f"circle: {' → '.join([*path, module])}"
        if module not in done and module in GRAPH:
            for name in sorted(GRAPH[module]):
                if name != module:
                    visit(name, [*path, module])
            done.add(module)

    for module in GRAPH:
        visit(module, [])


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("dgbench_methods.")])
def test_methods_import_only_the_contract(module: str) -> None:
    package = ".".join(module.split(".")[:2])
    foreign = [
        name
        for name in GRAPH[module]
        if name.split(".")[0] in ("dgbench", "dgbench_methods")
        and not name.startswith(package)
        and not any(name == room or name.startswith(f"{room}.") for room in FOR_METHODS)
    ]
    assert not foreign, f"{module} reaches behind the contract"


def test_the_leaderboard_never_reaches_torch_or_the_code_that_runs_methods() -> None:
    reached: set[str] = set()
    waiting = [name for name in MODULES if name.startswith("dgbench.leaderboard")]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += GRAPH.get(name, ())
    assert not {name for name in reached if name.split(".")[0] in ("torch", "monai", "safetensors", "scipy")}
    assert not {name for name in reached if name.startswith(("dgbench.training", "dgbench.evaluation", "dgbench.data"))}


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_the_source_distribution_has_the_published_results_and_no_run_records() -> None:
    root = PACKAGE.parent
    shipped = {path.distribution_path for path in SdistBuilder(str(root)).recurse_included_files()}
    assert {"dgbench/protocol.py", "protocols/phantom.yaml", "leaderboards/published/dual-task.yaml"} <= shipped
    assert any((root / "leaderboards" / "phantom").iterdir())
    assert {path for path in shipped if path.startswith("leaderboards/")} == {"leaderboards/published/dual-task.yaml"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["methods", "list"],
        ["methods", "show", "dualtask"],
        ["protocols", "list"],
        ["figures", "--help"],
        ["run", "--method", "dualtask", "--heldout", "RENJI", "--device", "cpu", "--dry-run", "--cache", "none"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import json, sys\nfrom dgbench.cli import call\n"
        f"code = call({arguments!r})\n"
        f"sys.stderr.write(json.dumps([code, *(name for name in {HEAVY!r} if name in sys.modules)]))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(answer.stderr) == [0]
    assert answer.stdout
    assert not list(tmp_path.iterdir())


def test_every_method_can_be_listed_configured_and_loaded() -> None:
    found = discover()
    assert {"erm", "randconv", "dualtask"} <= set(found)
    for name, info in found.items():
        assert isinstance(info, MethodInfo), f"{name}: {info}"
        assert load_class(info).info.target == info.target
        info.configure()


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_loads_and_resolves(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name
    for preset in protocol.presets:
        resolved = protocol.resolve(preset)
        assert not resolved.modified
        assert all(resolved.steps(stage) >= 1 for stage in protocol.stages)
