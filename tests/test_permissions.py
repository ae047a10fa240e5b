"""Folders that may not be entered: one error that names the place and the cure, and a finding of the check."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskaug.cli import main
from maskaug.envs import busi, lgg, manifest, medmnist, mura
from maskaug.envs.checking import check_dataset
from maskaug.envs.dataset_registry import read_dataset
from maskaug.envs.errors import DatasetError
from maskaug.envs.folders import ABSENT, is_file
from maskaug.envs.listing import list_dataset

NOBODY = 65534


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    made = {
        "busi": busi.write_example(folder),
        "lgg": lgg.write_example(folder, side=64),
        "manifest": manifest.write_example(folder, 30),
        "hip_fracture": manifest.write_hip_example(folder, 30),
        "mura": mura.write_example(folder, 40, side=(40, 60)),
        "medmnist": medmnist.write_example(folder).parent,
    }
    for name, root in made.items():
        # What is imported late is imported while everything may be read.
        check_dataset(name, root)
    return made


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own is for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("MASKAUG_CACHE", str(Path(name) / "cache"))
        (Path(name) / "cache").mkdir()
        for folder in (Path(name), Path(name) / "cache"):
            folder.chmod(0o777)
        yield Path(name)


@contextlib.contextmanager
def locked(folder: Path, mode: int = 0) -> Iterator[None]:
    """The folder with this mode, for somebody whom it stops: root may enter everything."""
    root = os.geteuid() == 0
    folder.chmod(mode)
    try:
        if root:
            try:
                os.seteuid(NOBODY)
            except OSError:
                pytest.skip("root cannot become somebody else here")
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def inner(name: str, root: Path) -> Path:
    """A folder of pictures inside."""
    place = {
        "busi": "benign",
        "lgg": "TCGA_CS_4941_19960909",
        "manifest": "images",
        "hip_fracture": "images",
        "mura": "train/XR_ELBOW",
    }
    return root / place[name]


@pytest.mark.parametrize("name", ["busi", "lgg", "manifest", "hip_fracture", "mura", "medmnist"])
def test_a_root_that_may_not_be_entered_is_one_finding(
    name: str, shared: Path, examples: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(examples[name], shared / name)
    with locked(root):
        assert main(["data", "check", name, "--root", str(root), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["kind"], finding["severity"]) == ("listing", "error")
    (item,) = finding["items"]
    assert str(root) in item["detail"]
    assert "cannot be looked at (Permission denied)" in item["detail"]
    assert "chmod" in item["detail"]


@pytest.mark.parametrize("mode", [0, 0o444])
@pytest.mark.parametrize("name", ["busi", "lgg", "manifest", "hip_fracture", "mura"])
def test_a_folder_inside_that_may_not_be_entered_is_found(
    name: str, mode: int, shared: Path, examples: dict[str, Path]
) -> None:
    root = shutil.copytree(examples[name], shared / name)
    folder = inner(name, root)
    with locked(folder, mode):
        report = check_dataset(name, root)
    assert not report.ok
    assert {finding.kind for finding in report.findings} & {"listing", "unreadable"}
    assert "missing" not in {finding.kind for finding in report.findings}
    refused = [item for f in report.findings if f.kind in ("listing", "unreadable") for item in f.items]
    assert all("Permission denied" in item.detail and "chmod" in item.detail for item in refused)
    assert all(str(folder) in item.detail for item in refused)


@pytest.mark.parametrize("mode", [0, 0o444])
@pytest.mark.parametrize("name", ["busi", "lgg", "mura"])
def test_loading_names_the_folder_and_the_cure(name: str, mode: int, shared: Path, examples: dict[str, Path]) -> None:
    root = shutil.copytree(examples[name], shared / name)
    for folder in (root, inner(name, root)):
        with locked(folder, mode), pytest.raises(DatasetError, match="Permission denied") as error:
            read_dataset(name, root, image_size=36)
        assert str(folder) in str(error.value)
        assert re.search("chmod|make it readable", str(error.value))


@pytest.mark.parametrize("name", ["busi", "lgg", "manifest", "mura"])
def test_listing_names_the_folder_and_the_cure(name: str, shared: Path, examples: dict[str, Path]) -> None:
    root = shutil.copytree(examples[name], shared / name)
    with locked(root), pytest.raises(DatasetError, match=f"{root}.*Permission denied.*chmod"):
        list_dataset(name, root)


@pytest.mark.parametrize("kind", ["file", "nothing", "folder", "dead link", "loop", "long", "null", "below a file"])
def test_what_is_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_bytes(b"1")
    elif kind == "folder":
        path.mkdir()
    elif kind in ("dead link", "loop"):
        path.symlink_to(tmp_path / ("gone" if kind == "dead link" else "x"))
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    elif kind == "null":
        path = tmp_path / "a\0b"
    elif kind == "below a file":
        path.write_bytes(b"1")
        path /= "y"
    assert is_file(path) == (kind == "file")


def test_a_file_that_may_not_be_looked_at_is_not_called_absent(shared: Path) -> None:
    (shared / "in").mkdir()
    (shared / "in" / "a.png").write_bytes(b"1")
    with locked(shared / "in"), pytest.raises(PermissionError) as error:
        is_file(shared / "in" / "a.png")
    assert error.value.errno not in ABSENT
