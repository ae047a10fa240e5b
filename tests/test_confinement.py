"""Paths of a list stay in its folder: nothing outside of it is opened."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manifest_files import PLAIN, errors, folder, load, picture

from maskaug.envs.confinement import Confinement, confined
from maskaug.envs.errors import DatasetError, ImageError
from maskaug.envs.manifest import (
    list_manifest,
)

ELSEWHERE = [
    "../secret.png", "sub/../../secret.png", "sub/../a.png", "..", "sub/..", "/etc/hostname", "//server/share/a.png",
    "\\\\server\\share\\a.png", "\\\\?\\C:\\a.png", "\\\\.\\NUL", "\\a.png", "C:\\a.png", "c:a.png", "C:/a.png",
    "~/a.png", "~root/a.png", "~", "file:///etc/hostname", "FILE:a.png", "http://example.org/a.png",
    "s3://bucket/a.png", "..\\secret.png", "sub\\..\\..\\secret.png", "./../secret.png", "sub/./../../secret.png",
    "out/secret.png", "out.png", "sub/out2/secret.png", "chain/secret.png", "a\0.png", "a\x1b.png", "sub/", ".", "./",
    "x" * 256 + ".png", "ü" * 130 + ".png", "x/" * 2500 + "a.png", "/dev/zero", "/proc/self/mem",
]  # fmt: skip
WITHIN = [
    "a.png", "./a.png", "sub/a.png", "sub//a.png", "sub\\a.png", "in/a.png", "in.png", "sub/up/a.png", "...png", "a..b",
    "..a/b.png", "a~.png", "10:30.png", "ünïcode/x.png", "no/such/file.png", "a.png/x.png", "loop/x.png", "dangling",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = folder(tmp_path, PLAIN)
    picture(tmp_path / "secret.png", 222)
    picture(root / "sub/a.png")
    (root / "out").symlink_to(tmp_path)
    (root / "out.png").symlink_to("../secret.png")
    (root / "sub/out2").symlink_to("../../")
    (root / "chain").symlink_to("sub/out2")
    (root / "in").symlink_to("sub")
    (root / "in.png").symlink_to(root / "a.png")
    (root / "sub/up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nothing")
    return root


def test_paths_stay_below_the_root(tree: Path) -> None:
    checked = Confinement(tree)
    for text in [*ELSEWHERE, ""]:
        with pytest.raises(DatasetError):
            checked.accept(text)
    for text in WITHIN:
        name = checked.accept(text)
        assert os.path.realpath(tree / name).startswith(os.path.realpath(tree) + os.sep)
        assert "\\" not in name
    assert checked.accept("sub\\\\x\\.\\a.png") == "sub/x/a.png"


def test_the_root_itself_may_be_a_link(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tree.parent / "elsewhere"
    link.symlink_to(tree)
    assert load(link).images[:, 0, 0, 0].tolist() == [10, 20]
    monkeypatch.chdir(tree.parent)
    assert load(Path("root")).names == ("a.png", "b.png")
    assert confined(link / "in.png", link) == Path(os.path.realpath(tree)) / "a.png"
    with pytest.raises(ImageError, match=r"out.png: leads out of the root by a link; copy the file"):
        confined(link / "out.png", link)


def test_paths_elsewhere_are_wrong_rows(tree: Path) -> None:
    with (tree / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "region"])
        writer.writerows([[text, ""] for text in ELSEWHERE])
        writer.writerows([["a.png" if i == 0 else f"x{i}.png", text] for i, text in enumerate(ELSEWHERE)])
        writer.writerows([[text, ""] for text in WITHIN[-8:]])
    listing = list_manifest(tree)
    kinds = [problem.kind for problem in errors(listing)]
    assert kinds == ["path"] * len(ELSEWHERE) + ["region"] * len(ELSEWHERE)
    assert [entry.name for entry in listing.entries] == WITHIN[-8:]


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    checked = Confinement(tree)
    assert checked.accept("sub/a.png") == "sub/a.png"
    assert checked.accept("in/a.png") == "in/a.png"
    for text in ("sub/out2/secret.png", "out.png", "chain/secret.png"):
        with pytest.raises(DatasetError, match="leads out"):
            checked.accept(text)


WATCHED = """
import json, os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
outside, root, texts = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
from maskaug.envs.manifest import list_manifest, load_manifest
from maskaug.envs.images import Reading
from maskaug.envs.loading import load_listing
from maskaug.envs.errors import MaskAugError
import PIL.PngImagePlugin, tqdm
opened, errors = [], []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir") and args and isinstance(args[0], (str, bytes, os.PathLike)):
        opened.append(os.path.realpath(os.fsdecode(args[0])))
sys.addaudithook(hook)
def attempt(act):
    try:
        act()
    except MaskAugError as error:
        errors.append(str(error))
def load(**options):
    attempt(lambda: load_manifest(root, image_size=40, channels=1, seed=0, **options))
for text in texts:
    for row in ((text, ""), ("a.png", text)):
        quoted = ",".join('"' + cell + '"' for cell in row)
        (root / "manifest.csv").write_text("path,region\\n" + quoted + "\\n", encoding="utf-8")
        load()
for text in texts:
    load(manifest=text)
refused = len(errors)
# Links that are made after the listing.
(root / "late").mkdir()
for name in ("late/x.png", "y.png", "mask.png"):
    (root / name).write_bytes((root / "a.png").read_bytes())
for row in ("late/x.png,", "y.png,", "a.png,mask.png"):
    (root / "manifest.csv").write_text("path,region\\n" + row + "\\n")
    listing = list_manifest(root)
    assert len(listing.entries) == 1 and not [p for p in listing.problems if p.severity == "error"]
    name = row.strip(",").rpartition(",")[2]
    kept = (root / name).read_bytes()
    if name == "y.png":
        # A later start, which finds its pictures in the cache, looks at the links as well.
        attempt(lambda: load_listing(listing, Reading(40)))
    if name == "late/x.png":
        os.rename(root / "late", root / "before")
        os.symlink(outside, root / "late")
    else:
        os.unlink(root / name)
        os.symlink(outside + "/x.png", root / name)
    attempt(lambda: load_listing(listing, Reading(40)))
inside = [path for path in opened if path.startswith(os.path.realpath(root) + os.sep)]
wrong = [path for path in opened if path.startswith(os.path.realpath(outside))]
print(json.dumps({"wrong": wrong, "inside": len(inside), "refused": refused, "late": errors[refused:]}))
"""


def test_nothing_outside_of_the_root_is_opened(tree: Path, tmp_path: Path) -> None:
    import json

    outside = tmp_path / "outside"
    for name in ("secret.png", "x.png", "manifest.csv"):
        picture(outside / f"{name}.png").rename(outside / name)
    for link, target in (("away", outside), ("away.png", outside / "x.png"), ("away.csv", outside / "manifest.csv")):
        (tree / link).symlink_to(target)
    texts = [
        str(outside / "x.png"), f"file://{outside}/x.png", "../outside/x.png", "sub/../../outside/x.png",
        "..\\outside\\x.png", "away/x.png", "away.png", "out/outside/x.png", "chain/outside/x.png", "in/up/away/x.png",
        "sub/up/../../outside/x.png", "away.csv", "../outside/manifest.csv",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(outside), str(tree), json.dumps(texts)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "MASKAUG_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["refused"] == 3 * len(texts)
    assert len(told["late"]) == 3
    assert all("leads out of the root by a link" in message for message in told["late"])
    # Or the hook would have seen nothing at all.
    assert told["inside"] > len(texts)
