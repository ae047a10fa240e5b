"""`maskaug data check`: what the readers find, listing by name, and the command line."""

import dataclasses
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checked_listing import NAMES, Picture, found
from PIL import Image

from maskaug.cli import main
from maskaug.data import DATA, DataOptions, as_text
from maskaug.envs import busi, mura
from maskaug.envs.checking import check_dataset
from maskaug.envs.dataset_registry import dataset_names, dataset_spec
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.examples import write_example
from maskaug.envs.findings import Finding, Item, Report
from maskaug.envs.images import read_mask
from maskaug.envs.listing import dataset_folder, list_dataset, listing_options
from maskaug.envs.synthetic import render
from maskaug.options import EnvOptions


@pytest.fixture(scope="module")
def pictures() -> Picture:
    return render("radiograph", "medium", 96, 0, np.arange(24))[0]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {name: write_example(name, folder / name) for name in NAMES}


# ---- the readers -----------------------------------------------------------------------------------------------------


def test_busi_leaves_copies_out_unless_told_otherwise(examples: dict[str, Path]) -> None:
    clean, raw = (check_dataset("busi", examples["busi"], variant=variant) for variant in ("clean", "raw"))
    assert clean == check_dataset("busi", examples["busi"])
    assert clean.ok
    assert found(clean)["label_conflict_left_out"].items[0].where == ("benign (2).png", "malignant (4).png")
    assert [item.where[0] for item in found(clean)["left_out"].items] == [
        "benign (2).png",
        "benign (4).png",
        "malignant (4).png",
    ]
    assert not raw.ok
    assert found(raw)["label_conflict"].items[0].detail == "benign, malignant"
    assert "label_disagreement" in found(raw)
    # Its reader keeps the copies together: they cross no part.
    assert not {"duplicate_across_parts", "near_duplicate", "left_out"} & set(found(raw))


def test_busi_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = busi.write_example(tmp_path)
    mask = folder / "benign" / "benign (1)_mask.png"
    Image.fromarray(np.zeros_like(read_mask(mask)).astype(np.uint8)).save(mask)
    kinds = found(check_dataset("busi", folder))
    assert "outlines nothing" in kinds["loading"].items[0].detail
    assert kinds["empty_region"].items[0].where == ("benign (1).png",)


def test_labels_from_regions_are_counted(examples: dict[str, Path]) -> None:
    report = check_dataset("lgg", examples["lgg"])
    images = {count.class_name: count.images for count in report.counts if count.split == "all"}
    masks = [read_mask(path).any() for path in examples["lgg"].glob("*/*_mask.tif")]
    assert images == {None: len(masks), "no tumour": len(masks) - sum(masks), "tumour": sum(masks)}


def test_options_choose_what_is_checked(examples: dict[str, Path]) -> None:
    everything, elbow = (check_dataset("mura", examples["mura"], body_part=part) for part in ("all", "elbow"))
    assert 0 < elbow.images < everything.images
    assert "unreadable" in found(check_dataset("mura", examples["mura"], max_pixels=100))


def test_copies_in_arrays(tmp_path: Path) -> None:
    folder = write_example("medmnist", tmp_path)
    file = next(folder.glob("*.npz"))
    arrays = dict(np.load(file, allow_pickle=False))
    arrays["test_images"][0] = arrays["train_images"][0]
    brighter = arrays["train_images"][1].astype(np.int64) + 5
    arrays["test_images"][1] = np.clip(brighter, 0, 255).astype(np.uint8)
    np.savez(file, **arrays)
    kinds = found(check_dataset("medmnist", folder))
    assert len(kinds["duplicate_across_parts"].items) == 1
    # So small that it proves nothing: a hint.
    assert kinds["near_duplicate"].severity == "warning"
    assert "near_duplicate_across_parts" not in kinds


@pytest.mark.parametrize("name", ["mura", "lgg", "manifest", "hip_fracture", "busi", "medmnist"])
def test_a_cut_down_copy_says_what_is_missing(
    name: str, tmp_path: Path, examples: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(examples[name], folder)
    pattern = {"mura": "**/image1.png", "lgg": "*/*_2.tif", "busi": "normal/normal (1).png", "medmnist": "*.npz"}
    gone = sorted(folder.glob(pattern.get(name, "images/**/*.*")))[:2]
    assert gone
    for path in gone:
        path.unlink()
    status = main(["data", "check", name, "--root", str(folder), "--limit", "0"])
    printed = capsys.readouterr().out
    if name in ("mura", "manifest", "hip_fracture"):
        # Lists tell what should be there.
        assert status == 1
        assert "missing ×2" in printed
        for path in gone:
            assert path.relative_to(folder).as_posix() in printed
    elif name == "busi":
        # Numbers do.
        assert "missing: 1, 5–133" in printed
    elif name == "lgg":
        assert "_2" in printed
    else:
        assert status == 1
        assert "listing ×1" in printed


# ---- listing by name -------------------------------------------------------------------------------------------------


def test_list_dataset(examples: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list_dataset("mura", examples["mura"], body_part="elbow") == mura.list_mura(
        examples["mura"], body_part="elbow"
    )
    assert listing_options("mura") == {"body_part"}
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("MASKAUG_DATA", str(tmp_path / "data"))
    with pytest.raises(DatasetError, match="MASKAUG_DATA"):
        list_dataset("lgg")
    shutil.copytree(examples["lgg"], tmp_path / "data" / "kaggle_3m")
    assert len(list_dataset("lgg").entries) == len(list_dataset("lgg", examples["lgg"]).entries)
    assert dataset_folder("lgg") == tmp_path / "data" / "kaggle_3m"


@pytest.mark.parametrize(
    ("name", "options", "cause"),
    [
        ("synthetic", {}, "drawn"),
        ("medmnist", {}, "no folder of picture files"),
        ("mura", {"flag": "x"}, "unknown option flag"),
        ("atlantis", {}, "unknown data set"),
    ],
)
def test_what_cannot_be_listed(name: str, options: dict[str, Any], cause: str, examples: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        list_dataset(name, examples["mura"], **options)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_table_can_be_read(tmp_path: Path, examples: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(examples["mura"], folder)
    gone = sorted(folder.glob("train/**/image1.png"))[:5]
    for path in gone:
        path.unlink()
    assert main(["data", "check", "mura", "--root", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 200
    head = next(line for line in lines if line.startswith("split"))
    assert head.split() == ["split", "class", "images", "patients", "studies"]
    row = lines[lines.index(head) + 2]
    assert row.split()[:2] == ["train", "(all)"]
    assert head.index("images") + len("images") == row.index(row.split()[2]) + len(row.split()[2])
    start = next(i for i, line in enumerate(lines) if line.startswith("ERROR    missing ×5: "))
    assert [line.strip() for line in lines[start + 1 : start + 4]] == [str(p.relative_to(folder)) for p in gone[:3]]
    assert lines[start + 4].strip() == "… and 2 more (--limit 0 lists all)"
    assert lines[-1] == "200 images: 1 kind of error"
    assert main(["data", "check", "mura", "--root", str(folder), "--limit", "1"]) == 1
    assert "… and 4 more" in capsys.readouterr().out


def test_json_is_json_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], examples: dict[str, Path]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(examples["mura"], folder)
    sorted(folder.glob("train/**/image1.png"))[0].unlink()
    words = ["data", "check", "mura", "--root", str(folder), "--json", "--seed", "3", "--workers", "1"]
    assert main(words) == 1
    text = capsys.readouterr().out
    report = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(report, indent=2, sort_keys=True) + "\n"
    assert set(report) == {"counts", "dataset", "division", "findings", "images", "ok", "root", "seed"}
    assert (report["dataset"], report["division"], report["seed"], report["ok"]) == ("mura", "carved", 3, False)
    for row in report["counts"]:
        assert set(row) == {"split", "class_name", "images", "patients", "studies"}
    (missing,) = [f for f in report["findings"] if f["kind"] == "missing"]
    assert set(missing) == {"severity", "kind", "message", "count", "items"}
    assert (missing["severity"], missing["count"], len(missing["items"])) == ("error", 1, 1)
    assert set(missing["items"][0]) == {"where", "detail"}
    assert main(words) == 1
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_cannot_be_printed_are_escaped(
    encoding: str, tmp_path: Path, pictures: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "d é"
    root.mkdir()
    for i, name in enumerate([b"a\xff.png", b"b\x1b[31m.png", b"c\n.png", "é.png".encode()]):
        (root / "normal").mkdir(exist_ok=True)
        Path(os.fsdecode(os.path.join(os.fsencode(root), b"normal", name))).write_bytes(b"no picture %d" % i)
    written = {}
    for words in ([], ["--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["data", "check", "busi", "--root", str(root), *words]) == 1
        stream.flush()
        written[bool(words)] = stream.buffer.getvalue().decode(encoding)
    assert r"a\udcff.png, b\x1b[31m.png, c .png, " in written[False]
    assert ("é" if encoding == "utf-8" else r"\xe9") in written[False].splitlines()[0]
    assert all(line.isprintable() for line in written[False].splitlines())
    report = json.loads(written[True])
    assert written[True].isascii()
    assert report["root"] == str(root)
    (told,) = [item["detail"] for f in report["findings"] if f["kind"] == "name" for item in f["items"]]
    assert os.fsencode(told).endswith(b"a\xff.png, b\x1b[31m.png, c\n.png, " + "é.png".encode())


def test_places_of_a_finding_are_printable_too() -> None:
    wrong = Finding("error", "missing", "gone", (Item(("a\x1b[31m\n.png",)),))
    text = as_text(Report("mine", "d", "none", 0, 1, (), (wrong,)), 3)
    assert r"a\x1b[31m\n.png" in text


def test_a_folder_of_something_else_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        assert main(["data", "check", name, "--root", str(tmp_path), "--json"]) == 1
        (finding,) = json.loads(capsys.readouterr().out)["findings"]
        assert (finding["kind"], finding["severity"]) == ("listing", "error")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["check", "synthetic"], "nothing to list or check"),
        (["check", "synthetic", "--root", "full"], "nothing to list or check"),
        (["check", "atlantis", "--root", "full"], "atlantis"),
        (["check", "mura"], "MASKAUG_DATA"),
        (["check", "mura", "--root", "/nowhere"], "/nowhere"),
        (["check", "mura", "--root", "full", "--flag", "x"], "unknown option flag"),
        (["check", "mura", "--root", "full", "--body-part", "ear"], "ear"),
        (["check", "mura", "--root", "full", "--limit", "-1"], "limit=-1"),
        (["check", "mura", "--root", "full", "--seed", "-1"], "seed=-1"),
        (["check", "mura", "--root", "full", "--workers", "0"], "workers=0"),
        (["check", "medmnist", "--root", "full", "--flag", "chestmnist"], "chestmnist"),
        (["example", "synthetic", "--out", "new"], "no example"),
        (["example", "atlantis", "--out", "new"], "atlantis"),
        (["example", "busi", "--out", "."], "exists already"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    words: list[str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path(dataset_spec("busi").folder).mkdir()
    assert main(["data", *words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("maskaug: error: ")
    assert cause in line
    assert captured.out == ""
    assert not Path("new").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_written_and_what_to_try_is_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], examples: dict[str, Path]
) -> None:
    assert main(["data", "example", name, "--out", str(tmp_path / "x"), "--seed", "1"]) == 0
    folder, command = capsys.readouterr().out.splitlines()
    assert Path(folder) == tmp_path / "x" / dataset_spec(name).folder
    assert command == f"try: maskaug data check {name} --root {folder}"
    files = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*.*")) if path.is_file()]
    other = [path.relative_to(examples[name]) for path in sorted(examples[name].rglob("*.*")) if path.is_file()]
    assert [(Path(folder) / f).read_bytes() for f in files] != [(examples[name] / f).read_bytes() for f in other]


def test_every_data_set_that_is_read_is_tested_here() -> None:
    read = {name for name in dataset_names() if (dataset_spec(name).loader or "").startswith("maskaug.envs.")}
    assert read == set(NAMES)


def test_flags_are_those_of_the_environments() -> None:
    flags = {field.name: field.type for field in dataclasses.fields(DataOptions)}
    environments = {field.name: field.type for field in dataclasses.fields(EnvOptions)}
    assert flags.items() <= environments.items()
    needed = set().union(*(listing_options(name) for name in NAMES if dataset_spec(name).lister))
    assert needed - {"task"} <= set(flags)
    assert DataOptions.__doc__ is not None
    for name in flags:
        assert f"        {name}: " in DataOptions.__doc__
    assert set(DATA) == {"check", "example"}


def test_no_bar_where_nobody_looks(examples: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    assert main(["data", "check", "lgg", "--root", str(examples["lgg"]), "--json"]) == 0
    assert capsys.readouterr().err == ""
