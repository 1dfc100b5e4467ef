"""Fingerprints: of contents, read once, of ids and bytes only."""

import os
from pathlib import Path

import pytest
from scans import make_case, mask, save

from dgbench.data import fingerprint
from dgbench.data.case import Center
from dgbench.errors import DgbenchError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_content_hash_reads_an_unchanged_file_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"abc")
    first = fingerprint.content_hash(file, cache)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert fingerprint.content_hash(file, cache) == first
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert fingerprint.content_hash(file, cache) != first
    for record in (cache / "hashes").iterdir():
        record.write_text("{half")
    file.write_bytes(b"abc")
    assert fingerprint.content_hash(file, cache) == first
    with pytest.raises(DgbenchError, match="cannot be read: No such file"):
        fingerprint.content_hash(tmp_path / "none", cache)


def test_set_fingerprint_knows_ids_and_bytes_only(tmp_path: Path, cache: Path) -> None:
    cases = [make_case(tmp_path / "x", "1"), make_case(tmp_path / "x", "2")]
    moved = [make_case(tmp_path / "y", "1"), make_case(tmp_path / "y", "2")]
    first = fingerprint.set_fingerprint(cases, cache)
    assert fingerprint.set_fingerprint(moved[::-1], cache) == first
    assert fingerprint.center_fingerprint(Center("A", tmp_path, tuple(cases), {}), cache) == first
    assert fingerprint.set_fingerprint(cases[:1], cache) != first
    save(moved[0].label, mask() * 0)
    assert fingerprint.set_fingerprint(moved, cache) != first
