"""`maskaug data check`: each kind of finding is planted and found, and what is sound has none."""

import dataclasses
import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from checked_listing import NAMES, Picture, change, found, only, save, unsplit
from PIL import Image

from maskaug.cli import main
from maskaug.data import as_text
from maskaug.envs.checking import __doc__ as table
from maskaug.envs.checking import check_dataset, check_listing
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.examples import write_example
from maskaug.envs.findings import KINDS
from maskaug.envs.images import Reading
from maskaug.envs.listing import Listing, Problem
from maskaug.envs.loading import load_listing
from maskaug.envs.patients import similar
from maskaug.envs.synthetic import render


@pytest.fixture(scope="module")
def pictures() -> Picture:
    return render("radiograph", "medium", 96, 0, np.arange(24))[0]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {name: write_example(name, folder / name) for name in NAMES}


# ---- what is sound ---------------------------------------------------------------------------------------------------


def test_sound_pictures_have_no_findings(tmp_path: Path, pictures: Picture) -> None:
    report = check_listing(save(tmp_path / "d", pictures))
    assert report.findings == ()
    assert report.ok
    assert report.division == "official"
    assert report.images == 24
    rows = {(count.split, count.class_name): (count.images, count.patients, count.studies) for count in report.counts}
    assert rows["train", None] == (16, 16, None)
    assert rows["test", "b"] == (2, 2, None)
    assert rows["all", None] == (24, 24, None)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_no_errors(name: str, examples: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", name, "--root", str(examples[name]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {row["split"] for row in report["counts"]} == {*SPLITS, "all"}
    # Only BUSI's example has planted copies.
    assert {f["kind"] for f in report["findings"] if "duplicate" in f["kind"]} <= (
        {"duplicate_left_out"} if name == "busi" else set()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_are_those_of_loading(name: str, seed: int, examples: dict[str, Path]) -> None:
    report = check_dataset(name, examples[name], seed=seed)
    counted = {(count.split, count.class_name): count for count in report.counts}
    for split in (*SPLITS, "all"):
        data = load_dataset(name, root=examples[name], split=split, image_size=64, seed=seed)
        assert data.labels is not None
        assert counted[split, None].images == len(data)
        assert counted[split, None].patients == len(np.unique(data.groups))
        assert counted[split, None].studies == (None if data.studies is None else len(np.unique(data.studies)))
        for number, class_name in enumerate(data.class_names):
            assert counted[split, class_name].images == int((data.labels == number).sum())


def test_the_seed_deals_the_groups(examples: dict[str, Path]) -> None:
    reports = [check_dataset("lgg", examples["lgg"], seed=seed) for seed in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0].counts != reports[2].counts
    assert [report.seed for report in reports] == [0, 0, 1]


def test_workers_change_nothing(examples: dict[str, Path]) -> None:
    alone = check_dataset("lgg", examples["lgg"], workers=1)
    assert alone == check_dataset("lgg", examples["lgg"], workers=3)


@pytest.mark.parametrize("name", ["busi", "medmnist"])
def test_workers_are_those_that_decode(name: str, examples: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    module = importlib.import_module(f"maskaug.envs.{name}")
    cached_array = module.cached_array

    def spy(*args: Any, **keywords: Any) -> Any:
        given.append(keywords["workers"])
        return cached_array(*args, **keywords)

    monkeypatch.setattr(module, "cached_array", spy)
    for workers in (1, 3):
        check_dataset(name, examples[name], workers=workers)
    assert given == [1, 3]


# ---- each kind of finding --------------------------------------------------------------------------------------------


def test_missing(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    listing.entries[3].path.unlink()
    finding = only(listing, "missing", "error")
    assert [item.where for item in finding.items] == [("3.png",)]
    assert check_listing(listing).counts[0].images == 15


def test_unreadable(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    data = listing.entries[3].path.read_bytes()
    listing.entries[3].path.write_bytes(data[: len(data) // 2])
    listing.entries[5].path.write_bytes(b"")
    finding = only(listing, "unreadable", "error")
    assert [item.where for item in finding.items] == [("3.png",), ("5.png",)]
    assert "truncated" in finding.items[0].detail
    assert "empty" in finding.items[1].detail


def test_everything_unreadable_is_a_report_too(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures[:3])
    for entry in listing.entries:
        entry.path.write_bytes(b"no picture")
    report = check_listing(listing)
    assert (report.division, report.counts, report.images) == ("none", (), 3)
    assert len(found(report)["unreadable"].items) == 3
    assert "3 images: 1 kind of error" in as_text(report, 3)


def test_a_mask_that_does_not_fit_and_one_that_marks_nothing(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, regions=True)
    sizes = {0: (96, 96), 2: (96, 96), 4: (50, 96), 6: (96, 96)}
    for i, size in sizes.items():
        mask = np.zeros(size, np.uint8)
        mask[10:20, 10:20] = 255 * (i != 6)
        Image.fromarray(mask).save(tmp_path / "d" / f"{i}_mask.png")
        listing = change(listing, i, masks=(tmp_path / "d" / f"{i}_mask.png",))
    kinds = found(check_listing(listing))
    assert set(kinds) == {"mask", "empty_region"}
    assert [item.where for item in kinds["mask"].items] == [("4.png",)]
    assert [item.where for item in kinds["empty_region"].items] == [("6.png",)]
    assert (kinds["mask"].severity, kinds["empty_region"].severity) == ("error", "warning")
    # Class "b" has no region anywhere: there an empty mask is what it should be.
    shutil.copy(tmp_path / "d" / "6_mask.png", tmp_path / "d" / "1_mask.png")
    listing = change(listing, 1, masks=(tmp_path / "d" / "1_mask.png",))
    assert len(found(check_listing(listing))["empty_region"].items) == 1
    (tmp_path / "d" / "0_mask.png").unlink()
    assert [item.where for item in found(check_listing(listing))["missing"].items] == [("0_mask.png",)]


def test_a_region_that_covers_nearly_all_of_its_picture(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, regions=True)
    # Of 96 rows 91 are less than 95 %, 92 are more.
    for i, rows in enumerate((91, 92, 96)):
        mask = np.zeros((96, 96), np.uint8)
        mask[:rows] = 255
        Image.fromarray(mask).save(tmp_path / "d" / f"{i}_mask.png")
        listing = change(listing, i, masks=(tmp_path / "d" / f"{i}_mask.png",))
    # A photo that was taken for a mask.
    listing = change(listing, 5, masks=(listing.entries[7].path,))
    listing = change(listing, 9, boxes=((0, 0, 96, 92),))
    listing = change(listing, 11, boxes=((0, 0, 96, 91),))
    full = only(listing, "full_region", "warning")
    assert [item.where for item in full.items] == [("1.png",), ("2.png",), ("5.png",), ("9.png",)]


def test_sha256(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    right = hashlib.sha256(listing.entries[1].path.read_bytes()).hexdigest()
    assert check_listing(change(listing, 1, sha256=right.upper())).ok
    finding = only(change(listing, 2, sha256=right), "sha256", "error")
    assert finding.items[0].where == ("2.png",)
    assert right in finding.items[0].detail


@pytest.mark.parametrize("confined", [True, False])
def test_a_link_out_of_a_confined_root_is_not_opened(confined: bool, tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, confined=confined)
    outside = listing.entries[3].path.rename(tmp_path / "outside.png")
    listing.entries[3].path.symlink_to(outside)
    kinds = found(check_listing(listing))
    assert set(kinds) == ({"unreadable"} if confined else set())
    if confined:
        assert kinds["unreadable"].items[0].where == ("3.png",)
        assert "leads out of the root" in kinds["unreadable"].items[0].detail


def test_a_patient_in_two_parts(tmp_path: Path, pictures: Picture) -> None:
    listing = change(save(tmp_path / "d", pictures), 22, group="p03")
    finding = only(listing, "patient_across_parts", "error")
    assert finding.items[0].where == ("p03",)
    assert finding.items[0].detail == "1 in train, 1 in test"


def test_a_patient_in_two_parts_does_not_hide_the_validation_part(tmp_path: Path, pictures: Picture) -> None:
    """Validation is carved once the overlap is mended: that it is not there yet is no finding of its own."""
    listing = save(tmp_path / "d", np.delete(pictures, slice(16, 20), axis=0))
    entries = tuple(dataclasses.replace(e, split="train" if i < 16 else "test") for i, e in enumerate(listing.entries))
    listing = dataclasses.replace(listing, entries=entries, validation=0.3)
    assert check_listing(listing).division == "carved"
    only(listing := change(listing, 18, group="p03"), "patient_across_parts", "error")
    assert {count.split: count.images for count in check_listing(listing).counts if not count.class_name}["val"] > 0
    # Where no validation is carved it is missing indeed.
    assert set(found(check_listing(dataclasses.replace(listing, validation=0.0)))) == {
        "patient_across_parts",
        "empty_part",
    }


def test_patients_that_are_spelt_in_two_ways(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    for i, name in {3: "P 22", 22: "p022", 5: "q7", 6: "q70"}.items():
        listing = change(listing, i, group=name)
    finding = only(listing, "similar_patients", "warning")
    assert [(item.where, item.detail) for item in finding.items] == [
        (("P 22", "p022"), "P 22: 1 in train; p022: 1 in test")
    ]
    # Without official parts nobody knows yet where they come.
    assert only(unsplit(listing), "similar_patients", "warning").items[0].detail == ""
    # A picture that counts as its own patient is called by its file.
    for i, name in {3: "1.png", 22: "01.png", 5: "q7", 6: "q70"}.items():
        listing = change(listing, i, group=name, name=name)
    assert check_listing(listing).findings == ()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("p1", "P1", True),
        ("001", "1", True),
        ("study 01", "study 1", True),
        ("A 1", "A1", True),
        ("A-007-B", "a-7-b", True),
        ("0", "00", True),
        ("1", "10", False),
        ("1 12", "11 2", False),
        ("1.05", "1.5", False),
        ("p1", "p2", False),
        ("100", "10", False),
    ],
)
def test_what_is_a_similar_name(one: str, other: str, same: bool) -> None:
    assert similar(["x", one, "y", other]) == ([(one, other)] if same else [])


def test_a_long_list_of_patients_is_compared_at_once() -> None:
    names = [f"patient {i:05d}" for i in range(40_000)]
    assert similar([*names, "Patient 17"]) == [("patient 00017", "Patient 17")]


def test_a_manifest_whose_patients_are_spelt_in_two_ways(examples: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(examples["manifest"], tmp_path / "d")
    file = root / "manifest.csv"
    rows = file.read_text().splitlines()
    place = rows[0].split(",").index("patient")
    first, last = rows[1].split(","), rows[-1].split(",")
    last[place] = first[place].lower()
    rows[-1] = ",".join(last)
    file.write_text("\n".join(rows) + "\n")
    finding = found(check_dataset("manifest", root))["similar_patients"]
    assert [item.where for item in finding.items] == [(f"patient {first[place]}", f"patient {last[place]}")]


@pytest.mark.parametrize("same_file", [True, False])
def test_copies_across_parts(same_file: bool, tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    shutil.copy(listing.entries[2].path, listing.entries[22].path)
    if not same_file:
        Image.fromarray(pictures[2]).save(listing.entries[22].path, "BMP")
    finding = only(listing, "duplicate_across_parts", "error")
    assert finding.items[0].where == ("2.png", "22.png")
    assert finding.items[0].detail == ("the same file" if same_file else "the same pixels")


def test_copies_in_one_part_count_double(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    shutil.copy(listing.entries[2].path, listing.entries[4].path)
    assert only(listing, "duplicate", "warning").items[0].where == ("2.png", "4.png")


def test_copies_of_two_patients_that_are_dealt_out(tmp_path: Path, pictures: Picture) -> None:
    listing = unsplit(save(tmp_path / "d", pictures))
    shutil.copy(listing.entries[2].path, listing.entries[4].path)
    for seed in range(3):
        assert "duplicate_across_parts" in found(check_listing(listing, seed=seed))
    assert "duplicate" in found(check_listing(change(listing, 4, group="p02")))
    assert "duplicate_across_parts" not in found(check_listing(change(listing, 4, group="p02")))


def test_copies_where_validation_is_carved_from_train(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, validation=0.25)
    for i in range(16, 20):
        listing = change(listing, i, split="test")
    shutil.copy(listing.entries[2].path, listing.entries[4].path)
    shutil.copy(listing.entries[18].path, listing.entries[20].path)
    report = check_listing(listing)
    assert report.division == "carved"
    kinds = found(report)
    assert [item.where for item in kinds["duplicate_across_parts"].items] == [("2.png", "4.png")]
    assert [item.where for item in kinds["duplicate"].items] == [("18.png", "20.png")]


def test_one_picture_with_two_labels(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    shutil.copy(listing.entries[2].path, listing.entries[5].path)
    kinds = found(check_listing(listing))
    assert set(kinds) == {"label_conflict", "duplicate"}
    assert kinds["label_conflict"].severity == "error"
    assert kinds["label_conflict"].items[0].detail == "a, b"


def test_what_the_reader_groups_or_leaves_out_itself(tmp_path: Path, pictures: Picture) -> None:
    listing = unsplit(save(tmp_path / "d", pictures))
    shutil.copy(listing.entries[2].path, listing.entries[4].path)
    shutil.copy(listing.entries[6].path, listing.entries[8].path)
    n = len(listing.entries)
    groups = np.arange(n, dtype=np.int64)
    groups[8] = 6
    everything = ImageDataset(
        "mine", pictures[:, None], np.arange(n, dtype=np.int64) % 2, None, groups, ("a", "b"), tuple(
            entry.name for entry in listing.entries
        ),
    )  # fmt: skip
    kinds = found(check_listing(listing, loaded=everything.subset(groups != 4)))
    assert set(kinds) - {"few_images"} == {"duplicate", "duplicate_left_out", "left_out"}
    assert kinds["duplicate"].items[0].where == ("6.png", "8.png")
    # One of two that is played counts once.
    assert kinds["duplicate_left_out"].items[0].where == ("2.png", "4.png")
    assert [item.where for item in kinds["left_out"].items] == [("4.png",)]
    assert found(check_listing(listing, loaded=everything))["duplicate_across_parts"].items[0].where[0] == "2.png"
    failed = check_listing(listing, loaded=DatasetError("no pixels"))
    assert found(failed)["loading"].items[0].detail == "no pixels"


def test_near_copies(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures)
    # In one part a hint; across the parts of the data set's own an error.
    Image.fromarray(pictures[2]).resize((70, 60)).save(listing.entries[4].path)
    assert only(listing, "near_duplicate", "warning").items[0].where == ("2.png", "4.png")
    Image.fromarray(np.clip(pictures[8] * 1.1 + 9, 0, 255).astype(np.uint8)).save(listing.entries[23].path)
    finding = found(check_listing(listing))["near_duplicate_across_parts"]
    assert finding.severity == "error"
    assert finding.items[0].where == ("8.png", "23.png")
    assert finding.items[0].detail == "a, b"
    # Of one patient they may look the same; without official parts it is a hint again.
    kinds = found(check_listing(unsplit(change(listing, 4, group="p02"))))
    assert [item.where for item in kinds["near_duplicate"].items] == [("8.png", "23.png")]


def test_blank_pictures_are_no_copies_of_one_another(tmp_path: Path, pictures: Picture) -> None:
    blank = pictures.copy()
    blank[[3, 20]] = 0
    finding = only(save(tmp_path / "d", blank), "blank", "warning")
    assert [item.where for item in finding.items] == [("3.png",), ("20.png",)]


def test_parts_and_classes_without_images(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, class_names=("a", "b", "c"))
    kinds = found(check_listing(listing))
    assert [(i.where, i.detail) for i in kinds["empty_class"].items] == [(("c",), "none in train")]
    assert [(i.where, i.detail) for i in kinds["few_images"].items] == [(("c",), "0 in val"), (("c",), "0 in test")]
    assert (kinds["empty_class"].severity, kinds["few_images"].severity) == ("error", "warning")
    first = save(tmp_path / "d", pictures[:17])
    kinds = found(check_listing(first))
    assert [item.where for item in kinds["empty_part"].items] == [("test",)]
    assert [(i.where, i.detail) for i in kinds["few_images"].items] == [(("a",), "1 in val"), (("b",), "0 in val")]


def test_one_class_alone_is_what_the_games_say_it_is(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, class_names=("x",))
    listing = dataclasses.replace(listing, entries=tuple(dataclasses.replace(e, label=0) for e in listing.entries))
    finding = only(listing, "one_class", "error")
    assert [item.where for item in finding.items] == [("x",)]
    data = load_listing(listing, Reading(64)).part("train")
    with pytest.raises(ConfigurationError, match="one class alone"):
        gym.make("MaskAug-Manifest-v0", dataset=data)
    gym.make("MaskAug-Manifest-v0", dataset=data, objective="reconstruction").close()


def test_what_the_reader_says_keeps_its_severity(tmp_path: Path, pictures: Picture) -> None:
    problems = (
        Problem("note", "count", "here", "few"),
        Problem("error", "row", "row 7", "no path"),
        Problem("warning", "row", "row 8", "odd"),
        Problem("error", "row", "row 9", "no label"),
    )
    report = check_listing(save(tmp_path / "d", pictures, problems=problems))
    assert [(f.severity, f.kind, len(f.items)) for f in report.findings] == [
        ("error", "row", 2),
        ("warning", "row", 1),
        ("note", "count", 1),
    ]
    assert report.findings[0].items[1].where == ("row 9",)
    assert report.findings[0].items[1].detail == "no label"
    assert not report.ok


def test_without_labels(tmp_path: Path, pictures: Picture) -> None:
    entries = tuple(dataclasses.replace(e, label=None) for e in save(tmp_path / "d", pictures).entries)
    report = check_listing(Listing("mine", "mine", tmp_path / "d", entries, ()))
    assert report.findings == ()
    assert [count.class_name for count in report.counts] == [None] * 4


def test_images_that_were_not_chosen_are_not_looked_at(tmp_path: Path, pictures: Picture) -> None:
    listing = save(tmp_path / "d", pictures, chosen=tuple(range(2, 24)))
    listing.entries[0].path.write_bytes(b"no picture")
    listing.entries[1].path.unlink()
    report = check_listing(listing)
    assert report.findings == ()
    assert report.images == 22


def test_every_kind_is_in_the_table() -> None:
    assert table is not None
    for kind, (severity, _) in KINDS.items():
        assert f"| {kind} | {severity} |" in table
