"""What comes from elsewhere is data: nothing of it is run, no name leaves its folder, and whatever is wrong with it is one line."""

import ast
import hashlib
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from cli_calls import mistake, run_arguments
from fake_runs import fake_cases, fake_run
from pyarrow import parquet
from training_fixtures import PROTOCOL, Mini

from dgbench.atomic import read_json, write_json
from dgbench.data.case import load_center
from dgbench.data.preparation import prepare_case
from dgbench.errors import DgbenchError
from dgbench.evaluation.job import load_result
from dgbench.info import MethodInfo
from dgbench.launch.jobs import empty_folder
from dgbench.registry import find_method
from dgbench.store import checkpoint_file
from dgbench.store.cases import read_cases
from dgbench.store.checkpoint_file import load_checkpoint, save_checkpoint
from dgbench.store.folder import RunFolder, iter_runs, write_status
from dgbench.store.foreign import MAX_ROWS
from dgbench.store.manifest import Manifest
from dgbench.store.record import write_record
from dgbench.store.slices import CaseSlice

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("dgbench", "methods") for path in (ROOT / name).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "telnetlib"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.load",
}
UNSAFE_METHODS = {"read_pickle", "to_pickle", "extractall"}


def unsafe(source: str) -> Iterator[str]:
    """Uses in ``source`` of anything that runs, or unpacks without looking, what a file or a text says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if str(node.module).partition(".")[0] in UNSAFE_MODULES:
                yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in UNSAFE_CALLS or name.rpartition(".")[2] in UNSAFE_METHODS:
                yield name
            if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                yield f"{name} without allow_pickle=False"
            if given.get("shell", "False") != "False":
                yield f"{name} with a shell"


def test_nothing_that_runs_what_a_file_says_is_used() -> None:
    assert len(SOURCES) > 100
    found = {path.relative_to(ROOT).as_posix(): list(unsafe(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {path: uses for path, uses in found.items() if uses} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "os.system(text)",
        "yaml.load(text)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "pd.read_pickle(path)",
        "tar.extractall(folder)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert len(list(unsafe(source))) == 1


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload leaves when it runs; it must never be there."""
    path = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists(), "the payload works"
    path.unlink()
    yield path
    assert not path.exists()


def one_line(error: pytest.ExceptionInfo[DgbenchError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def safetensors(header: dict[str, Any], data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


FORGED: dict[str, bytes] = {
    "header longer than the file": safetensors({"w": entry([4], 0, 16)}, length=2**60),
    "data beyond the file": safetensors({"w": entry([2**40], 0, 2**42)}),
    "shape larger than the data": safetensors({"w": entry([2**20], 0, 16)}),
    "a shape whose size overflows": safetensors({"w": entry([2**33, 2**33], 0, 16)}),
    "two tensors in one place": safetensors({"w": entry([4], 0, 16), "v": entry([4], 0, 16)}),
    "a negative place": safetensors({"w": entry([4], -16, 0)}),
    "no header": b"",
    "pickle": pickle.dumps({"w": [0.0] * 4}),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_checkpoint_with_a_right_checksum(tmp_path: Path, kind: str) -> None:
    stem = tmp_path / "last"
    file = save_checkpoint(stem, {}, {})
    file.write_bytes(FORGED[kind])
    sidecar = read_json(file.with_suffix(".json"))
    sidecar["sha256"] = hashlib.sha256(FORGED[kind]).hexdigest()
    sidecar["check"] = checkpoint_file._check(sidecar)
    write_json(file.with_suffix(".json"), sidecar)
    with pytest.raises(DgbenchError, match="not a safetensors file") as error:
        load_checkpoint(stem)
    assert str(file) in one_line(error)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, '{"a": ' + "9" * 10_000 + "}"])
def test_json_that_is_nested_or_long_beyond_reason(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(DgbenchError, match="not readable as JSON") as error:
        read_json(tmp_path / "spec.json")
    one_line(error)


@pytest.mark.parametrize("load", [CaseSlice.load, load_result])
@pytest.mark.parametrize("kind", ["objects", "pickle", "not a zip"])
def test_a_forged_npz_is_not_unpickled(tmp_path: Path, trace: Path, load: Callable[[Path], Any], kind: str) -> None:
    path = tmp_path / "evaluation" / "probabilities" / "RENJI" / "x.npz"
    path.parent.mkdir(parents=True)
    if kind == "objects":
        payload = np.array([Payload(trace)], dtype=object)
        names = ("levels", "lo", "shape", "stage", "roi", "rounds", "windowed", "spacing", "place", "case", "image")
        buffer = io.BytesIO()
        np.savez(buffer, **dict.fromkeys(names, payload))  # type: ignore[arg-type]
        path.write_bytes(buffer.getvalue())
    else:
        path.write_bytes(pickle.dumps(Payload(trace)) if kind == "pickle" else b"PK\x03\x04 no zip")
    with pytest.raises(DgbenchError, match=r"not (a readable slice|readable probabilities)") as error:
        load(path)
    assert str(path) in one_line(error)


def test_a_forged_prepared_case_is_not_unpickled(sound: Mini, tmp_path: Path, trace: Path) -> None:
    plan = sound.plan(tmp_path / "runs")
    case = plan.centers["ALPHA"].cases[0]
    prepared = prepare_case(case, plan.resolved.protocol, tmp_path / "cache")
    for name in ("image.npy", "label.npy"):
        (prepared.folder / name).chmod(0o644)
        np.save(prepared.folder / name, np.array([Payload(trace)], dtype=object), allow_pickle=True)
    for read in (lambda: prepared.image, lambda: prepared.label):
        with pytest.raises(DgbenchError, match="case ALPHA/case_00") as error:
            read()
        one_line(error)


def huge(path: Path) -> None:
    """A small file of many equal rows."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MAX_ROWS + 1, np.int8)), ["x"])
    parquet.write_table(pa.table({"case": column}), path)
    assert path.stat().st_size < 100_000


def wrong_footer(path: Path) -> None:
    parquet.write_table(pa.table({"case": ["x"]}), path)
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<i", 2**31 - 1) + b"PAR1")


@pytest.mark.parametrize(("forge", "message"), [(huge, f"{MAX_ROWS + 1} rows"), (wrong_footer, "not a readable table")])
def test_a_table_that_claims_too_much(tmp_path: Path, forge: Callable[[Path], None], message: str) -> None:
    forge(tmp_path / "cases.parquet")
    with pytest.raises(DgbenchError, match=message) as error:
        read_cases(tmp_path)
    one_line(error)


def test_a_table_with_a_pickled_type_is_read_without_it(tmp_path: Path, trace: Path) -> None:
    pickled = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(trace)),
    }
    rows = pa.Table.from_pandas(fake_cases())
    fields = [field.with_metadata(pickled) if field.name == "reason" else field for field in rows.schema]
    parquet.write_table(pa.Table.from_arrays(rows.columns, schema=pa.schema(fields)), tmp_path / "cases.parquet")
    assert len(read_cases(tmp_path)) == len(rows)


@pytest.mark.parametrize("kind", ["pickle", "link", "folder"])
def test_a_malicious_prediction_file(
    sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], trace: Path, kind: str
) -> None:
    folder, runs = tmp_path / "masks", tmp_path / "runs"
    shutil.copytree(sound.data / "GAMMA" / "labelsTr", folder)
    secret = tmp_path / "secret"
    secret.write_text("the password is 1234")
    forged = folder / "case_00.nii.gz"
    forged.unlink()
    match kind:
        case "pickle":
            forged.write_bytes(pickle.dumps(Payload(trace)))
        case "link":
            forged.symlink_to(secret)
        case "folder":
            forged.mkdir()
    arguments = ["import-predictions", str(folder), "--name", "other", "--heldout", "GAMMA"]
    arguments += ["--protocol", str(sound.protocol), "--preset", "mini", "--data", str(sound.data)]
    text = mistake(capsys, [*arguments, "--runs", str(runs), "--cache", str(sound.cache)])
    assert "case GAMMA/case_00" in text
    assert "password" not in text
    assert not list(runs.rglob("*.json"))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", "", "x\n", "<b>", "a\\b", "-x"])
def test_no_name_leaves_its_folder(sound: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(DgbenchError, match="cannot be used"):
        MethodInfo(name=name, target="a:B", title="A", paper="none", year=2026)
    with pytest.raises(DgbenchError, match="unknown method"):
        find_method(name)
    protocol = tmp_path / "protocol.yaml"
    for change in ({"centers": ["ALPHA", "BETA", name]}, {"name": name}):
        protocol.write_text(yaml.safe_dump({**PROTOCOL, **change}), encoding="utf-8")
        text = mistake(capsys, run_arguments(Mini(sound.data, protocol, sound.cache), tmp_path / "runs"))
        assert "cannot be used" in text or "unknown held-out center" in text, text
    for option in ("heldout", "preset"):
        mistake(capsys, run_arguments(sound, tmp_path / "runs", **{option: name}))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name", ["os:system", "os:path", "../../x:Y", "os.path.:join", ":", "a:", ":b", "x;y:z", "__import__('os'):system"]
)
def test_a_method_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(DgbenchError, match="method") as error:
        find_method(name)
    one_line(error)


@pytest.mark.parametrize("written", ["../../../x", "/etc/passwd", "<script>alert(1)</script>", "a\nb"])
def test_the_name_in_a_data_set_names_nothing(mini: Mini, written: str) -> None:
    folder = mini.data / "ALPHA"
    manifest = {**read_json(folder / "dataset.json"), "name": written, "training": [{"image": written}]}
    write_json(folder / "dataset.json", manifest)
    center = load_center(folder)
    assert center.name == "ALPHA"
    assert all(path.is_relative_to(folder) for case in center.cases for path in (case.image, case.label))


@pytest.mark.parametrize("stem", ["..", "a b", "x\n", "<script>", "a;b", "ä"])
def test_a_case_name_that_is_no_folder_name(mini: Mini, stem: str) -> None:
    center = mini.data / "ALPHA"
    for part in ("imagesTr", "labelsTr"):
        (center / part / "case_00.nii.gz").rename(center / part / f"{stem}.nii.gz")
    if stem == "..":  # a name with a dot in front is a hidden file, no case
        assert [case.name for case in load_center(center).cases] == [f"case_0{n}" for n in range(1, 5)]
        return
    with pytest.raises(DgbenchError, match=r"case name .* cannot be used"):
        load_center(center)


def test_yaml_tags_are_not_followed(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], trace: Path
) -> None:
    tag = f"!!python/object/apply:os.mkdir ['{trace}']"
    runs = tmp_path / "runs"
    for method, key in (("randconv", "kernel_sizes"), ("erm", "preset.width")):
        text = mistake(capsys, run_arguments(mini, runs, method=method, set=f"{key}={tag}"))
        assert "cannot read the value" in text, text
    (mini.data / "ALPHA" / "center.yaml").write_text(f"title: {tag}\n")
    assert "center.yaml: not valid YAML" in mistake(capsys, run_arguments(mini, runs))
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text(mini.protocol.read_text() + f"title: {tag}\n")
    assert "not valid YAML" in mistake(capsys, run_arguments(Mini(mini.data, protocol, mini.cache), runs))
    slurm = tmp_path / "slurm.yaml"
    slurm.write_text(f"partition: {tag}\n")
    sweep = ["sweep", *run_arguments(mini, runs)[1:], "--launcher", "slurm", "--slurm", str(slurm)]
    assert "not valid YAML" in mistake(capsys, sweep)


def test_a_run_folder_that_is_a_link_is_that_of_its_spec_or_none(tmp_path: Path) -> None:
    elsewhere = fake_run(tmp_path / "elsewhere")
    root = tmp_path / "runs"
    link = root / "phantom" / "RENJI" / "erm" / "seed7-00000000"
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere.path)
    problems: list[str] = []
    assert list(iter_runs(root, lambda _, error: problems.append(str(error)))) == []
    assert len(problems) == 1
    assert "moved or changed by hand" in problems[0]


def finished(runs: Path) -> RunFolder:
    run = fake_run(runs)
    for folder in (run.path, run.evaluation):
        write_status(folder, "done")
    return run


def test_what_a_link_points_to_never_becomes_part_of_a_record(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    run = finished(tmp_path / "runs")
    (run.path / "env.json").unlink(missing_ok=True)
    (run.path / "env.json").symlink_to(secret)
    with pytest.raises(DgbenchError, match=r"env\.json: is a link") as error:
        write_record(run, tmp_path / "records")
    one_line(error)
    assert not list((tmp_path / "records").rglob("*.json"))


def test_a_record_with_a_link_is_refused(tmp_path: Path) -> None:
    record = finished(tmp_path / "runs").path
    Manifest.of(record, "experimental").write(record)
    moved = tmp_path / "cases.parquet"
    shutil.move(record / "evaluation" / "cases.parquet", moved)
    (record / "evaluation" / "cases.parquet").symlink_to(moved)
    with pytest.raises(DgbenchError, match=r"cases\.parquet: is a link") as error:
        Manifest.read(record).check(record)
    one_line(error)


def test_a_fresh_start_leaves_what_a_link_points_to(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    for path in (outside, folder):
        path.mkdir()
    (outside / "kept").touch()
    (folder / "link").symlink_to(outside)
    empty_folder(folder)
    assert list(folder.iterdir()) == []
    assert (outside / "kept").exists()
