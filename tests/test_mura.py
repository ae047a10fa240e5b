"""The reader of MURA: layout, lists, parts of the body, splits by patient, and what a wrong folder is told."""

from __future__ import annotations

import itertools
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import maskaug  # noqa: F401 (registers the ids)
from maskaug.envs import dataset_registry, mura
from maskaug.envs.checking import check_dataset
from maskaug.envs.dataset_registry import find_root, load_dataset
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.images import Reading, read_grey, resize
from maskaug.envs.listing import Listing
from maskaug.envs.loading import load_listing
from maskaug.envs.mura import list_mura, load_mura, write_example
from maskaug.envs.mura_lists import BODY_PARTS

N = 84


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("mura"), n=N)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of its own, so that a test may break it."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def load(root: Path, size: int = 36, channels: int = 1, seed: int = 0, **options: Any) -> ImageDataset:
    return load_mura(root, image_size=size, channels=channels, seed=seed, **options)


def rewrite(file: Path, change: Any) -> None:
    """Replace the lines of a list by what `change` makes of them."""
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


def known(values: Any) -> Any:
    assert values is not None
    return values


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_everything_is_read_in_order(root: Path) -> None:
    data = load(root)
    listed = [
        line.removeprefix("MURA-v1.1/")
        for part in ("train", "valid")
        for line in (root / f"{part}_image_paths.csv").read_text().splitlines()
    ]
    assert len(listed) == N
    assert sorted(data.names) == sorted(listed)
    assert data.images.shape == (N, 1, 36, 36)
    assert data.class_names == ("normal", "abnormal")
    assert known(data.labels).tolist() == ["positive" in name for name in data.names]
    assert data.regions is None
    patients = [int(re.findall(r"patient(\d+)", name)[0]) for name in data.names]
    assert data.groups.tolist() == np.unique(patients, return_inverse=True)[1].tolist()
    assert (data.name, data.source) == ("mura", "mura")
    assert "Stanford" in data.licence
    assert "1712.06957" in data.citation
    for i in (0, 40, N - 1):
        np.testing.assert_array_equal(data.images[i, 0], resize(read_grey(root / data.names[i]), 36))


def test_numbers_are_ordered_as_numbers(root: Path) -> None:
    study = next((root / "train").glob("XR_*/patient*/study*"))
    shutil.copy(study / "image1.png", study / "image10.png")
    shutil.copy(study / "image1.png", study / "image2.png")
    for file in root.glob("*.csv"):
        file.unlink()
    names = [name for name in load(root).names if name.startswith(f"{study.relative_to(root).as_posix()}/")]
    assert names[0].endswith("image1.png")
    assert names[1].endswith("image2.png")
    assert names[-1].endswith("image10.png")


def test_studies_are_those_of_the_folders(root: Path) -> None:
    data = load(root)
    folders = [name.rpartition("/")[0] for name in data.names]
    numbers = known(data.studies)
    assert [data.study_names[number] for number in numbers] == folders
    assert len(set(numbers)) == len(set(folders)) == len(set(zip(numbers, folders, strict=True))) < N
    # Two body parts of one patient may both have a study1.
    hand = load(root, body_part="hand")
    by_name = dict(zip(data.names, numbers, strict=True))
    assert hand.study_names == data.study_names
    assert known(hand.studies).tolist() == [by_name[name] for name in hand.names]


def test_grey_and_rgb_files_and_three_channels_give_the_same_pixels(root: Path) -> None:
    modes = set()
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            modes.add(image.mode)
    assert modes == {"L", "RGB"}
    grey, colour = load(root), load(root, channels=3)
    assert colour.images.shape == (N, 3, 36, 36)
    for channel in range(3):
        np.testing.assert_array_equal(colour.images[:, channel], grey.images[:, 0])


def test_the_digest_is_stable_and_a_changed_file_is_read_again(root: Path) -> None:
    before = load(root)
    assert load(root).digest == before.digest == load(root.parent).digest
    assert load(root, seed=3).digest == before.digest
    assert load(root, size=40).digest != before.digest
    rewrite(root / "train_image_paths.csv", lambda lines: [*reversed(lines), lines[0]])
    assert load(root).digest == before.digest
    pixels = np.asarray(before.images).copy()
    path = root / before.names[5]
    Image.fromarray(255 - read_grey(path)).save(path)
    os.utime(path, ns=(5, 5))
    after = load(root)
    assert [i for i in range(N) if (pixels[i] != after.images[i]).any()] == [5]


def test_how_pictures_are_read_is_passed_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = min(read_grey(root / name).size for name in load(root).names)
    with pytest.raises(ImageError, match="pixels, more than"):
        load(root, max_pixels=smallest - 1)
    asked: list[Reading] = []

    def spy(listing: Listing, reading: Reading, **others: Any) -> ImageDataset:
        asked.append(reading)
        return load_listing(listing, Reading(reading.size), **others)

    monkeypatch.setattr(mura, "load_listing", spy)
    load(root)
    load(root, channels=3, fit="letterbox", max_pixels=10**9)
    assert asked == [Reading(36), Reading(36, 3, fit="letterbox", max_pixels=10**9)]
    data = load_dataset("mura", root=root, image_size=36, fit="crop", workers=1)
    assert (data.source, asked[-1].fit) == ("mura", "crop")


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_lists_may_have_a_header_a_bom_and_other_line_ends(root: Path) -> None:
    before = load(root).digest
    for file, header in (("train_image_paths.csv", "path"), ("valid_labeled_studies.csv", "study,label")):
        lines = (root / file).read_text().splitlines()
        (root / file).write_bytes("\r\n".join(["\ufeff" + header, "", *lines, ""]).encode())
    for file in ("valid_image_paths.csv", "train_labeled_studies.csv"):
        rewrite(root / file, lambda lines: [line.replace("/", "\\") for line in lines])
    assert load(root).digest == before


def test_the_list_decides_and_without_one_the_tree_is_walked(root: Path) -> None:
    whole = load(root)
    rewrite(root / "train_image_paths.csv", lambda lines: lines[2:])
    assert len(load(root)) == N - 2
    # The studies' list has the same images in its folders; so has the tree.
    for part in ("train", "valid"):
        (root / f"{part}_image_paths.csv").unlink()
    assert load(root).digest == whole.digest
    rewrite(root / "train_labeled_studies.csv", lambda lines: lines[1:])
    assert len(load(root)) < N
    for part in ("train", "valid"):
        (root / f"{part}_labeled_studies.csv").unlink()
    assert load(root).digest == whole.digest


def test_what_macos_leaves_behind_is_no_image(root: Path) -> None:
    whole = load(root)
    path = root / whole.names[0]
    path.with_name(f"._{path.name}").write_bytes(b"junk")
    path.with_name("Thumbs.db").write_bytes(b"junk")
    (root / "train" / "._XR_HAND").write_bytes(b"junk")
    name = f"MURA-v1.1/{whole.names[0].rpartition('/')[0]}/._{path.name}"
    rewrite(root / "train_image_paths.csv", lambda lines: [name, *lines])
    assert load(root).digest == whole.digest
    for file in root.glob("*_image_paths.csv"):
        file.unlink()
    assert load(root).digest == whole.digest
    for file in root.glob("*.csv"):
        file.unlink()
    assert load(root).digest == whole.digest


STUDY = "MURA-v1.1/train/XR_HAND/patient00001/study1_positive"


@pytest.mark.parametrize(
    ("file", "row", "words"),
    [
        ("train_image_paths.csv", "MURA-v1.1/train/XR_HAND/patient00001/study1/image1.png", "is no path of the train"),
        ("train_image_paths.csv", "MURA-v1.1/train/XR_FOOT/patient00001/study1_positive/image1.png", "is no path of"),
        ("train_image_paths.csv", f"{STUDY.replace('train', 'valid')}/image1.png", "is no path of the train part"),
        ("train_image_paths.csv", f"{STUDY}/../../../../../secret.png", "is no path of the train part"),
        ("train_image_paths.csv", f"{STUDY}/image1.txt", r"is no image \(.png"),
        ("train_image_paths.csv", f"{STUDY}/", "is no image"),
        ("train_image_paths.csv", f"{STUDY}/image1.png,1", "2 columns where 1 should be"),
        ("train_labeled_studies.csv", STUDY, "1 columns where 2 should be"),
        ("train_labeled_studies.csv", f"{STUDY}/,0", r"label '0' for .*whose folder says 1 \(positive\)"),
        ("train_labeled_studies.csv", f"{STUDY}/,yes", "label 'yes'"),
    ],
)
def test_a_wrong_row_is_named_by_its_number(root: Path, file: str, row: str, words: str) -> None:
    rewrite(root / file, lambda lines: [*lines[:2], row, *lines[2:]])
    with pytest.raises(DatasetError, match=rf"{file}, row 3: .*{words}"):
        load(root)


def test_all_wrong_rows_are_listed_and_loading_counts_them(root: Path) -> None:
    whole = list_mura(root).entries
    rewrite(root / "train_image_paths.csv", lambda lines: ["nothing/of/this.png", *lines, f"{STUDY}/image1.png,1"])
    rewrite(root / "valid_labeled_studies.csv", lambda lines: [lines[0][:-1] + "7", *lines[1:]])
    listing = list_mura(root)
    assert listing.entries == whole
    errors = [problem for problem in listing.problems if problem.severity == "error"]
    assert [(problem.kind, Path(problem.where).name) for problem in errors] == [
        ("row", "train_image_paths.csv, row 1"),
        ("row", f"train_image_paths.csv, row {len(whole) - sum('valid/' in e.name for e in whole) + 2}"),
        ("row", "valid_labeled_studies.csv, row 1"),
    ]
    assert "label '7' for valid/" in errors[2].message
    with pytest.raises(
        DatasetError, match=r"row 1: 'nothing/of/this.png' is no path .*\(and 2 more: `maskaug data check"
    ):
        load(root)
    # Nothing but wrong rows is still listed, as every row has a cause of its own.
    for file in root.glob("*_image_paths.csv"):
        file.write_text("a/b.png\n")
    assert (list_mura(root, body_part="hand").entries, len(list_mura(root).problems) > 2) == ((), True)


def notes(root: Path) -> dict[str, str]:
    """{file: message} of what is told by `data check` alone, but for the published counts."""
    told = [problem for problem in list_mura(root).problems if problem.kind != "count"]
    assert {problem.severity for problem in told} <= {"note"}
    return {Path(problem.where).name: problem.message for problem in told}


def test_rows_that_are_there_twice_and_lists_that_differ_are_noted(root: Path) -> None:
    whole = load(root).digest
    assert notes(root) == {}
    rewrite(root / "train_image_paths.csv", lambda lines: [*lines, lines[3], lines[0], lines[0]])
    assert notes(root) == {"train_image_paths.csv": "3 of its rows are there more than once; each counts once"}
    assert load(root).digest == whole
    # Nothing is lost where the images' list has more.
    rewrite(root / "valid_labeled_studies.csv", lambda lines: lines[1:])
    told = notes(root)["valid_image_paths.csv"]
    assert told.startswith("1 studies are not in valid_labeled_studies.csv (valid/XR_")
    assert load(root).digest == whole


def test_a_list_of_images_that_was_cut_off_warns(root: Path) -> None:
    whole = load(root)
    rewrite(root / "train_image_paths.csv", lambda lines: lines[:20])
    lost = len(whole.study_names) - len({entry.study for entry in list_mura(root).entries})
    assert lost > 3
    words = rf"train_labeled_studies.csv: {lost} studies are not in train_image_paths.csv \(train/.*…\), so that"
    with pytest.warns(UserWarning, match=words):
        assert len(load(root)) < len(whole)
    (warning,) = [problem for problem in list_mura(root).problems if problem.severity == "warning"]
    assert (warning.kind, Path(warning.where).name) == ("study", "train_labeled_studies.csv")
    report = check_dataset("mura", root)
    assert ("warning", "study") in {(finding.severity, finding.kind) for finding in report.findings}
    # A body part that is not there is told as ever.
    for name in ("train_image_paths.csv", "train_labeled_studies.csv"):
        rewrite(root / name, lambda lines: [line for line in lines if "XR_HAND" not in line])
    for file in root.glob("valid*.csv"):
        rewrite(file, lambda lines: [line for line in lines if "XR_HAND" not in line])
    with pytest.raises(DatasetError, match="holds no images of hand; it has elbow"):
        list_mura(root, body_part="hand")


@pytest.mark.parametrize("text", ["", "\n\n", "path\n"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_list_without_rows_is_an_error(root: Path, text: str, alone: bool) -> None:
    whole = load(root)
    (root / "train_image_paths.csv").write_text(text)
    if alone:
        (root / "train_labeled_studies.csv").unlink()
    with pytest.raises(DatasetError, match=r"train_image_paths.csv: it lists no images; .*or remove it: what no list"):
        load(root)
    assert not check_dataset("mura", root).ok
    (root / "train_image_paths.csv").unlink()
    assert load(root).digest == whole.digest
    (root / "train_labeled_studies.csv").write_text(text and "study,label")
    with pytest.raises(DatasetError, match=r"train_labeled_studies.csv: it lists no studies"):
        load(root)


@pytest.mark.parametrize("row", ["a,b,c", "path,", "image1.png", "study1_positive"])
def test_a_first_row_that_names_no_column_is_a_wrong_row(root: Path, row: str) -> None:
    rewrite(root / "train_image_paths.csv", lambda lines: [row, *lines])
    with pytest.raises(DatasetError, match=r"train_image_paths.csv, row 1: "):
        load(root)
    rewrite(root / "train_image_paths.csv", lambda lines: ["0", *lines[1:]])
    assert len(load(root)) == N


def test_what_was_published_and_is_not_there_is_noted(root: Path) -> None:
    def counts() -> dict[str, str]:
        told = [problem for problem in list_mura(root).problems if problem.kind == "count"]
        return {Path(problem.where).name: problem.message for problem in told}

    train = sum("train/" in name for name in load(root).names)
    assert counts() == {
        "train": f"{train} of the 36808 images that were published",
        "valid": f"{N - train} of the 3197 images that were published",
    }
    shutil.rmtree(root / "train")
    for file in root.glob("train*"):
        file.unlink()
    assert counts()["train"] == "0 of the 36808 images that were published, and none to train on"
    assert set(known(load(root).official)) == {SPLITS.index("test")}
    with pytest.raises(DatasetError, match="mura has no train images"):
        load_dataset("mura", root=root, image_size=36)


def test_a_list_that_is_no_text_is_named(root: Path) -> None:
    (root / "valid_image_paths.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DatasetError, match=r"valid_image_paths.csv cannot be read as a CSV file"):
        load(root)


# ---- what is not there -----------------------------------------------------------------------------------------------


def test_missing_files_are_counted_and_named_and_move_nobody(root: Path) -> None:
    whole = load(root)
    gone = [0, 5, 9, 20, N - 1]
    for i in gone:
        (root / whole.names[i]).unlink()
    named = f"{whole.names[0]}, {whole.names[5]}, {whole.names[9]}, …"
    words = f"5 of the {N} listed images are left out, as files are not in .*{named}"
    with pytest.warns(UserWarning, match=words):
        data = load(root)
    left = [i for i in range(N) if i not in gone]
    assert data.names == tuple(whole.names[i] for i in left)
    np.testing.assert_array_equal(data.images, whole.images[left])
    np.testing.assert_array_equal(known(data.official), known(whole.official)[left])
    np.testing.assert_array_equal(known(data.studies), known(whole.studies)[left])


def test_missing_studies_of_the_studies_list_are_named(root: Path) -> None:
    for part in ("train", "valid"):
        (root / f"{part}_image_paths.csv").unlink()
    study = Path(load(root).names[0]).parent.as_posix()
    shutil.rmtree(root / study)
    with pytest.warns(UserWarning, match=f"1 of the .* listed images are left out, as files are not in .*: {study}$"):
        data = load(root)
    assert not any(name.startswith(f"{study}/") for name in data.names)


def test_what_is_missing_of_another_body_part_is_not_asked_for(root: Path) -> None:
    for part in ("train", "valid"):
        shutil.rmtree(root / part / "XR_HAND")
    assert len(load(root, body_part=["elbow", "wrist"])) > 5
    with pytest.raises(DatasetError, match=r"none of the \d+ listed images .*XR_HAND.* is in"):
        load(root, body_part="hand")
    with pytest.warns(UserWarning, match="are left out"):
        assert not any("XR_HAND" in name for name in load(root).names)


def test_lists_alone_are_no_data_set(root: Path) -> None:
    for part in ("train", "valid"):
        shutil.rmtree(root / part)
    with pytest.raises(DatasetError, match=rf"none of the {N} listed images[\s\S]*XR_ELBOW/patient00011"):
        load(root)


def test_one_part_alone_will_do_for_its_splits(root: Path) -> None:
    shutil.rmtree(root / "valid")
    for file in root.glob("valid*"):
        file.unlink()
    options: dict[str, Any] = {"root": root, "image_size": 36}
    assert set(known(load_dataset("mura", split="val", **options).labels)) == {0, 1}
    with pytest.raises(DatasetError, match=r"mura has no test images.*complete the folder"):
        load_dataset("mura", split="test", **options)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_wrong_folder_shows_the_expected_tree(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    words = rf"{re.escape(str(tmp_path / name))}[\s\S]*MURA-v1.1/train/XR_ELBOW/patient00011/study1_negative/image1.png"
    with pytest.raises(DatasetError, match=words):
        load(tmp_path / name)


def test_a_study_without_a_label_and_a_damaged_picture_are_named(root: Path) -> None:
    path = root / load(root).names[3]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match=rf"{path}: is truncated"):
        load(root)
    for file in root.glob("*.csv"):
        file.unlink()
    path.parent.rename(path.parent.with_name("study7"))
    with pytest.raises(DatasetError, match=r"study7/.* does not lie where"):
        load(root)


# ---- parts of the body, and splits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body_part", "expected"),
    [
        ("elbow", {"elbow"}),
        ("XR_ELBOW", {"elbow"}),
        ("wrist, hand", {"hand", "wrist"}),
        (["hand", "wrist", "hand"], {"hand", "wrist"}),
        (("shoulder",), {"shoulder"}),
        ("all", set(BODY_PARTS)),
        (BODY_PARTS, set(BODY_PARTS)),
    ],
)
def test_body_parts(made: Path, body_part: Any, expected: set[str]) -> None:
    data = load(made, body_part=body_part)
    assert {name.split("/")[1].removeprefix("XR_").lower() for name in data.names} == expected
    assert data.name == ("mura" if len(expected) == 7 else f"mura-{'+'.join(sorted(expected))}")
    assert set(known(data.labels)) == {0, 1}
    # The cache keeps every selection beside the others.
    assert load(made).names != data.names or len(expected) == 7


@pytest.mark.parametrize("body_part", ["foot", "", [], "all,hand", "hand;wrist", ["hand", 3], None, 3])
def test_unknown_body_parts_are_refused(made: Path, body_part: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is unknown; use one or several .* of elbow, finger"):
        load(made, body_part=body_part)


def test_a_body_part_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    root = write_example(tmp_path, n=12, body_parts="hand,wrist")
    with pytest.raises(DatasetError, match="holds no images of elbow; it has hand, wrist"):
        load(root, body_part="elbow")


def split_of(root: Path, seed: int = 0, **options: Any) -> dict[str, set[str]]:
    return {
        split: set(load_dataset("mura", root=root, split=split, image_size=36, seed=seed, **options).names)
        for split in ("train", "val", "test")
    }


def patients(names: set[str]) -> set[str]:
    return {name.split("/")[2] for name in names}


def test_valid_is_the_test_split_and_validation_is_carved_by_patient(made: Path) -> None:
    parts = split_of(made)
    assert parts["test"] == {name for name in load(made).names if name.startswith("valid/")}
    assert parts["train"] | parts["val"] == {name for name in load(made).names if name.startswith("train/")}
    assert not patients(parts["train"]) & patients(parts["val"])
    assert 0.05 < len(parts["val"]) / (len(parts["train"]) + len(parts["val"])) < 0.2
    assert len(load_dataset("mura", root=made, split="all", image_size=36)) == N
    for names in parts.values():
        assert {"positive" in name for name in names} == {True, False}


def test_the_seed_moves_validation_and_nothing_else(made: Path) -> None:
    one, again, other = split_of(made), split_of(made), split_of(made, seed=1)
    assert one == again
    assert one["val"] != other["val"]
    assert one["test"] == other["test"]


def test_a_patient_is_in_one_split_whatever_the_body_part(made: Path) -> None:
    whole = load(made)
    where = dict(zip(whole.names, known(whole.official).tolist(), strict=True))
    several = 0
    for part in BODY_PARTS:
        data = load(made, body_part=part)
        assert known(data.official).tolist() == [where[name] for name in data.names]
        several += len(np.unique(data.groups))
    # Some patients have two parts of the body, or this would be no test.
    assert several > len(np.unique(whole.groups))


def test_a_patient_in_both_parts_is_an_error_whatever_the_body_part(root: Path) -> None:
    study = next((root / "train").glob("XR_*/patient*/study*"))
    twin = root / "valid" / "XR_WRIST" / study.parent.name / study.name
    shutil.copytree(study, twin)
    line = f"MURA-v1.1/{twin.relative_to(root).as_posix()}/image1.png"
    rewrite(root / "valid_image_paths.csv", lambda lines: [*lines, line])
    for body_part in ("all", "shoulder"):
        with pytest.raises(DatasetError, match=rf"1 patients of .* are in more than one part \({study.parent.name}\)"):
            load(root, body_part=body_part)


# ---- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_plays(made: Path) -> None:
    env: Any = gym.make_vec("MaskAug-MURA-v0", num_envs=3, root=str(made), image_size=48, body_part=["hand", "wrist"])
    data = env.unwrapped.dataset
    assert (data.source, data.name, data.split) == ("mura", "mura-hand+wrist", "train")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert np.isfinite(reward).all()
    assert set(info["label"]) <= {0, 1}
    held_out = env.unwrapped.evaluation("test").dataset
    assert held_out.name == data.name
    assert all(name.startswith("valid/") for name in held_out.names)
    single: Any = gym.make("MaskAug-MURA-v0", root=made, image_size=48, body_part="hand,wrist")
    assert single.unwrapped.dataset.digest == data.digest
    twin = pickle.loads(pickle.dumps(single))  # noqa: S301
    np.testing.assert_array_equal(twin.reset(seed=1)[0], single.reset(seed=1)[0])


def test_it_is_found_below_maskaug_data_and_read_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKAUG_DATA", str(made.parent))
    assert find_root("mura", None) == made
    dataset_registry._load_parts.cache_clear()
    for split in ("train", "test"):
        assert load_dataset("mura", split=split, image_size=36, body_part=["hand"]).source == "mura"
    assert dataset_registry._load_parts.cache_info().misses == 1
    monkeypatch.delenv("MASKAUG_DATA")
    with pytest.raises(DatasetError, match=r"body_part chooses among the real images of 'mura'.*'MURA-v1.1'"):
        load_dataset("mura", body_part="hand")


# ---- the example -----------------------------------------------------------------------------------------------------


def test_the_example_is_what_was_asked_for(made: Path, tmp_path: Path) -> None:
    one, again, other = (load(write_example(tmp_path / str(i), n=30, seed=s)) for i, s in enumerate((2, 2, 3)))
    assert len(one) == len(other) == 30
    assert one.digest == again.digest != other.digest
    assert {name.split("/")[1] for name in one.names} == {f"XR_{part.upper()}" for part in BODY_PARTS}
    counted = write_example(tmp_path / "studies", studies=18, side=(40, 50), body_parts="hand")
    assert len(load(counted).study_names) == 18
    assert all(set(known(load_dataset("mura", root=counted, split=s).labels)) == {0, 1} for s in ("train", "test"))
    for path in counted.rglob("*.png"):
        with Image.open(path) as image:
            assert all(40 <= length <= 50 for length in image.size)
    hands = load(write_example(tmp_path / "hands", n=13, body_parts=("hand",)))
    assert len(hands) == 13
    assert {name.split("/")[1] for name in hands.names} == {"XR_HAND"}
    sizes = set()
    for path in made.rglob("*.png"):
        with Image.open(path) as image:
            sizes |= set(image.size)
    assert min(sizes) >= 300
    assert max(sizes) <= 500
    assert len(sizes) > 20
    # What was known of where the break is has not been written.
    assert {path.suffix for path in made.rglob("*") if path.is_file()} == {".png", ".csv"}
    assert len(list(made.rglob("*.png"))) == N


def test_two_thousand_studies(tmp_path: Path) -> None:
    root = write_example(tmp_path, studies=2000, side=(36, 48))
    # As copies from mirrors are: a header, Windows' line ends, a byte-order mark, rows twice, and what macOS leaves.
    rewrite(root / "train_image_paths.csv", lambda lines: ["path", *lines, *lines[:5]])
    file = root / "valid_image_paths.csv"
    lines = file.read_text().replace("/", "\\").splitlines()
    junk = lines[0].replace("image1.png", "._image1.png")
    (root / junk.replace("\\", "/").removeprefix("MURA-v1.1/")).write_bytes(b"junk")
    file.write_bytes("\r\n".join(["\ufeffimages", junk, *lines, ""]).encode())
    whole = load(root)
    studies, labels = known(whole.studies), known(whole.labels)
    assert len(np.unique(studies)) == len(whole.study_names) == 2000
    assert len({*zip(studies.tolist(), labels.tolist(), strict=True)}) == 2000
    assert sum(name.startswith("valid/") for name in whole.study_names) == 333
    # The traps: patients with several body parts, and with both labels.
    by_patient = [
        len({(patient, value) for patient, value in zip(whole.groups.tolist(), values, strict=True)})
        for values in ([name.split("/")[1] for name in whole.names], labels.tolist())
    ]
    assert min(by_patient) > len(np.unique(whole.groups)) + 100
    options: dict[str, Any] = {"root": root, "image_size": 36}
    parts = {split: load_dataset("mura", split=split, **options) for split in SPLITS}
    assert sum(len(part) for part in parts.values()) == len(whole)
    for one, other in itertools.combinations(parts.values(), 2):
        assert not set(one.groups) & set(other.groups)
        assert not set(known(one.studies)) & set(known(other.studies))
    assert 0.08 < len(parts["val"]) / (len(parts["val"]) + len(parts["train"])) < 0.12
    for k in (1, 100, 500):
        few = load_dataset("mura", n_shot=k, **options)
        assert np.bincount(known(few.labels)).tolist() == [k, k]
        assert set(few.names) <= set(parts["train"].names)
        assert few.digest == load_dataset("mura", n_shot=k, **options).digest
    # The patients of one body part are where they are for all.
    hands = load_dataset("mura", split="val", body_part="hand", **options)
    assert set(hands.names) == {name for name in parts["val"].names if "/XR_HAND/" in name}
    assert set(load_dataset("mura", split="val", **{**options, "seed": 1}).names) != set(parts["val"].names)


def test_an_example_that_cannot_be_is_refused(made: Path, tmp_path: Path) -> None:
    for words, options in (
        ("give one of them", {"n": 30, "studies": 30}),
        ("at least 18", {"studies": 17}),
        ("least and the greatest side", {"side": (80, 60)}),
        ("least and the greatest side", {"side": (20, 60)}),
    ):
        with pytest.raises(ConfigurationError, match=words):
            write_example(tmp_path, **options)
    with pytest.raises(ConfigurationError, match="at least 12"):
        write_example(tmp_path, n=11)
    with pytest.raises(ConfigurationError, match="foot"):
        write_example(tmp_path, body_parts=("foot",))
    with pytest.raises(ConfigurationError, match="exists already"):
        write_example(made.parent)
    assert not (tmp_path / "MURA-v1.1").exists()
