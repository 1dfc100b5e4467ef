"""Second records of the same run, and the tier that they support."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cli_calls import mistake
from record_changes import COMMITTED, change, change_rows, copy_records, raise_dsc, record_of, rehash

from dgbench.atomic import read_json
from dgbench.cli import call
from dgbench.store.folder import RunSpec, read_run
from dgbench.store.manifest import REPRODUCTIONS, Manifest, Tier
from dgbench.store.record import write_record
from dgbench.store.tiers import agreement, reproductions, supported_tier


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return copy_records(tmp_path)


class TestTiers:
    def elsewhere(self, records: Path, folder: Path) -> Path:
        """The same run made on another machine, which came to the same rows in its own time."""
        run = self.copied(records, folder)
        for log in run.glob("*/times.jsonl"):
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            lines = [json.dumps(row | {"seconds": 2 * row["seconds"]}) + "\n" for row in rows]
            log.write_text("".join(lines), encoding="utf-8")
        path = run / "evaluation" / "times.parquet"
        pd.read_parquet(path).assign(seconds=1.0).to_parquet(path, index=False)
        return run

    def copied(self, records: Path, folder: Path) -> Path:
        """A copy of the run that says that it was made on another machine."""
        shutil.copytree(records / "phantom", folder / "phantom")
        run = record_of(folder)
        change(run / "env.json", lambda env: env | {"processor": "another processor"})
        return run

    def test_a_copy_is_no_second_run(
        self, records: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One field of env.json is changed faster than a run is repeated."""
        copy = self.copied(records, tmp_path_factory.mktemp("elsewhere"))
        line = mistake(capsys, ["submit", str(copy), f"--to={records}"])
        assert line == (
            f"{copy}/evaluation/times.parquet: has the times of {record_of(records)} — a copy is no second run, leave it out"
        )
        assert not (record_of(records) / REPRODUCTIONS).exists()
        shutil.copytree(copy, record_of(records) / REPRODUCTIONS / "0" / "")
        rehash(record_of(records) / REPRODUCTIONS / "0")
        rehash(record_of(records), "verified")
        assert "a copy is no second run" in mistake(capsys, ["verify", str(records)])

    def test_a_second_record_from_elsewhere_raises_the_tier(
        self, records: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = self.elsewhere(records, tmp_path_factory.mktemp("elsewhere"))
        before = Manifest.read(record_of(records))
        assert call(["submit", str(other), f"--to={records}"]) == 0
        assert "  verified\n" in capsys.readouterr().out
        after = Manifest.read(record_of(records))
        assert (before.tier, after.tier) == ("experimental", "verified")
        assert before.files == after.files
        (second,) = (record_of(records) / REPRODUCTIONS).iterdir()
        assert Manifest.read(second).tier == "experimental"
        assert call(["verify", str(records)]) == 0
        assert "2 experimental, 1 verified" in capsys.readouterr().out
        assert call(["submit", str(record_of(records)), f"--to={records}"]) == 0  # again: kept
        assert second.is_dir()
        change(second / "env.json", lambda env: env | {"processor": "AMD EPYC"})
        rehash(second)
        capsys.readouterr()
        assert "made in an environment that the record has already" in mistake(capsys, ["verify", str(records)])

    def test_a_tier_that_nothing_supports_is_refused(self, records: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rehash(record_of(records), "reproduced")
        text = mistake(capsys, ["verify", str(records)])
        assert "tier reproduced, its 0 reproductions support experimental" in text

    def test_a_reproduction_is_checked_as_its_record_is(
        self, records: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = self.elsewhere(records, tmp_path_factory.mktemp("elsewhere"))
        change_rows(other, raise_dsc)
        assert "is no ratio of whole voxels" in mistake(capsys, ["submit", str(other), f"--to={records}"])
        write_record(read_run(other.parents[3], other), records)
        text = mistake(capsys, ["verify", str(records)])
        assert REPRODUCTIONS in text
        assert "is no ratio of whole voxels" in text

    def test_a_reproduction_has_its_cost_and_none_of_its_own(
        self, records: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = self.elsewhere(records, tmp_path_factory.mktemp("elsewhere"))
        assert call(["submit", str(other), f"--to={records}"]) == 0
        capsys.readouterr()
        (second,) = (record_of(records) / REPRODUCTIONS).iterdir()
        (second / REPRODUCTIONS / "deep").mkdir(parents=True)
        assert f"{second / REPRODUCTIONS}: is no second record of" in mistake(capsys, ["verify", str(records)])
        shutil.rmtree(second / REPRODUCTIONS)
        change(second / "cost.json", lambda cost: {})
        rehash(second)
        assert f"{second}: its cost cannot be read" in mistake(capsys, ["verify", str(records)])

    @pytest.mark.parametrize(
        ("other", "tier"),
        [
            ([0.50, 0.60], "verified"),
            ([0.505, 0.595], "verified"),
            ([0.55, 0.55], "reproduced"),
            ([0.52, 0.60], "reproduced"),
            ([0.60, 0.60], "experimental"),
        ],
    )
    def test_agreement(self, other: list[float], tier: Tier) -> None:
        index = pd.MultiIndex.from_tuples([("F-Seg", "MSD/a"), ("F-Seg", "MSD/b")], names=["setting", "case"])
        assert agreement(pd.Series([0.5, 0.6], index), pd.Series(other, index)) == tier
        assert agreement(pd.Series([0.5, 0.6], index), pd.Series([0.5], index[:1])) == "experimental"

    def test_without_an_environment_nothing_is_supported(self, records: Path) -> None:
        assert supported_tier(record_of(records)) == "experimental"
        assert RunSpec.read(record_of(records)).method.imported is False


def test_the_documents_say_how_far_apart_two_processors_came() -> None:
    """Of the records that they name, in points of DSC."""
    text = (COMMITTED.parent / "docs" / "submitting.md").read_text(encoding="utf-8")
    said = text[text.index("How far apart two processors come") :].partition("\n\n")[0].replace("\n", " ")
    named = [COMMITTED.parent / name for name in re.findall(r"`(leaderboards/\S+)`", said)]
    assert len(named) == 2
    official = {"role": "held-out", "checkpoint": "source-val", "threshold": 0.5}
    for record in named:
        (second,) = (one for one in reproductions(record) if "Intel" in read_json(one / "env.json")["processor"])
        first, other = (pd.read_parquet(one / "evaluation" / "cases.parquet") for one in (record, second))
        both = first.merge(other, on=[*official, "setting", "case"], suffixes=("", "_other"))
        both = both[(both[list(official)] == pd.Series(official)).all(axis=1)]
        apart = (100 * (both["dsc"].fillna(0) - both["dsc_other"].fillna(0))).groupby(both["setting"])
        means, most = apart.mean().abs(), apart.agg(lambda points: points.abs().max())
        if "P-Fine" in means:
            assert f"by {means['P-Coarse']:.1f} (coarse) and {means['P-Fine']:.1f} points (fine)" in said
            assert f"by up to {most.max():.1f} in one case" in said
        else:
            assert f"by {means['F-Seg']:.1f} points in `F-Seg`, and by up to {most['F-Seg']:.1f} in one case" in said
            assert f"{means['F-Mask']:.1f} points in `F-Mask` keep it `experimental`" in said
