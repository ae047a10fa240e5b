"""The reader of LGG: layout, copies, sequences, labels from masks, splits by patient, what a wrong folder is told."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import maskaug  # noqa: F401 (registers the ids)
from maskaug.envs import loading
from maskaug.envs.cache import cached_array
from maskaug.envs.dataset_registry import find_root, load_dataset
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.images import read_grey, read_mask, resize, resize_mask
from maskaug.envs.lgg import CHANNELS, list_lgg, load_lgg, write_example

PATIENTS, SLICES, SIDE = 12, 11, 48
N = PATIENTS * SLICES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("lgg"), PATIENTS, SLICES, side=SIDE)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of its own, so that a test may break it."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def load(root: Path, size: int = 36, channels: int = 1, **options: Any) -> ImageDataset:
    return load_lgg(root, image_size=size, channels=channels, seed=0, **options)


def known(values: Any) -> Any:
    assert values is not None
    return values


def patients(root: Path) -> list[Path]:
    return sorted(root.glob("TCGA_*"))


def file(root: Path, patient: int, number: int, mask: bool = False) -> Path:
    folder = patients(root)[patient]
    return folder / f"{folder.name}_{number}{'_mask' if mask else ''}.tif"


def problems(root: Path) -> list[tuple[str, str]]:
    return [(problem.severity, problem.kind) for problem in list_lgg(root).problems]


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_everything_is_read_in_order_with_its_label_and_region(root: Path) -> None:
    data = load(root)
    listed = [
        f"{folder.name}/{folder.name}_{number}.tif"
        for folder in patients(root)
        for number in range(1, len(list(folder.glob("*_mask.tif"))) + 1)
    ]
    assert list(data.names) == listed
    assert len(listed) == N
    assert any(name.endswith("_10.tif") for name in listed)
    assert data.images.shape == (N, 1, 36, 36)
    assert data.class_names == ("no tumour", "tumour")
    ids = [name[: len("TCGA_CS_4941")] for name in listed]
    assert data.groups.tolist() == np.unique(ids, return_inverse=True)[1].tolist()
    masks = [read_mask(root / name.replace(".tif", "_mask.tif")) for name in listed]
    assert known(data.labels).tolist() == [int(mask.any()) for mask in masks]
    assert 0.3 < known(data.labels).mean() < 0.7
    np.testing.assert_array_equal(known(data.regions), np.stack([resize_mask(mask, 36) for mask in masks]))
    assert (data.name, data.source, data.licence) == ("lgg", "lgg", "CC BY-NC-SA 4.0")
    assert "Buda" in data.citation
    assert data.studies is None
    assert data.official is None


def test_each_sequence_is_its_plane_to_the_bit(root: Path) -> None:
    listed = load(root).names
    pixels = np.stack([np.asarray(Image.open(root / name)) for name in listed])
    assert pixels.shape == (N, SIDE, SIDE, 3)
    for channel, plane in CHANNELS.items():
        data = load(root, SIDE, channel=channel)
        np.testing.assert_array_equal(data.images[:, 0], pixels[..., plane])
        repeated = load(root, SIDE, channels=3, channel=channel)
        np.testing.assert_array_equal(repeated.images, np.repeat(data.images, 3, axis=1))
        assert data.name == ("lgg" if channel == "flair" else f"lgg-{channel}")
    assert CHANNELS == {"pre": 0, "flair": 1, "post": 2}
    np.testing.assert_array_equal(load(root, SIDE).images[:, 0], pixels[..., 1])
    everything = load(root, SIDE, channels=3, channel="all")
    np.testing.assert_array_equal(everything.images, np.moveaxis(pixels, -1, 1))
    assert everything.name == "lgg-all"
    np.testing.assert_array_equal(load(root, 36).images[5, 0], resize(pixels[5, :, :, 1], 36))


def test_all_sequences_need_three_channels(root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"channel='all' .* got channels=1; give channels=3, or choose one"):
        load(root, channel="all")
    with pytest.raises(ConfigurationError, match=r"channel='t2' is unknown; use one of pre, flair, post, or 'all'"):
        load(root, channel="t2")


def test_a_label_is_the_masks_however_little_it_marks(root: Path) -> None:
    labels = known(load(root).labels)
    number = int(np.flatnonzero(labels == 0)[0])
    name = load(root).names[number]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[0, SIDE - 1] = 255
    Image.fromarray(mask).save(root / name.replace(".tif", "_mask.tif"))
    data = load(root)
    assert known(data.labels)[number] == 1
    assert known(data.regions)[number].any()
    assert (known(data.labels) != labels).sum() == 1


def test_slices_that_are_not_square_are_fitted(root: Path) -> None:
    labels = known(load(root).labels)
    wide, number = SIDE * 2, int(np.flatnonzero(labels)[0])
    name = load(root).names[number]
    pixels = np.zeros((SIDE, wide, 3), np.uint8)
    pixels[:, : SIDE // 2] = 200
    Image.fromarray(pixels).save(root / name)
    # The tumour lies where a crop cuts.
    Image.fromarray(pixels[..., 0]).save(root / name.replace(".tif", "_mask.tif"))
    fitted = {fit: load(root, SIDE, fit=fit) for fit in ("stretch", "letterbox", "crop")}
    marked = {fit: float(known(data.regions)[number].mean()) for fit, data in fitted.items()}
    bright = {fit: float((data.images[number] == 200).mean()) for fit, data in fitted.items()}
    assert marked == bright == {"stretch": 0.25, "letterbox": 0.125, "crop": 0.0}
    for data in fitted.values():
        np.testing.assert_array_equal(known(data.labels), labels)
    # From the cache, too.
    np.testing.assert_array_equal(known(load(root, SIDE, fit="crop").labels), labels)
    with pytest.raises(ConfigurationError, match="fit='squeeze' is unknown"):
        load(root, fit="squeeze")


def test_two_examinations_of_a_patient_are_one_group(root: Path) -> None:
    first, second = patients(root)[:2]
    again = first.with_name(f"{first.name[:-8]}20010101")
    again.mkdir()
    for path in second.iterdir():
        shutil.copy(path, again / path.name.replace(second.name, again.name))
    data = load(root)
    inside = [name.startswith(first.name[:-8]) for name in data.names]
    assert len(set(data.groups[inside])) == 1
    assert len(set(data.groups)) == PATIENTS
    assert sum(inside) == len(list(first.glob("*_mask.tif"))) + len(list(second.glob("*_mask.tif")))


def test_splits_are_by_patient_and_hold_both_classes(root: Path) -> None:
    parts = {split: load_dataset("lgg", root=root, image_size=36, split=split) for split in SPLITS}
    groups = [set(part.groups.tolist()) for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == PATIENTS
    assert all(set(known(part.labels)) == {0, 1} for part in parts.values())
    few = load_dataset("lgg", root=root, image_size=36, n_shot=3)
    assert np.bincount(known(few.labels)).tolist() == [3, 3]
    assert set(few.groups) <= groups[0]


def test_one_patient_can_be_played_whole_but_not_split(root: Path) -> None:
    for folder in patients(root)[1:]:
        shutil.rmtree(folder)
    count = len(list(root.rglob("*_mask.tif")))
    assert len(load_dataset("lgg", root=root, split="all", image_size=36)) == count < N
    with pytest.raises(DatasetError, match=r"too few groups \(1\) for a .* use split='all'"):
        load_dataset("lgg", root=root, image_size=36)


# ---- where it lies ---------------------------------------------------------------------------------------------------


def test_the_folder_its_parent_and_archives_unpacked_twice_are_the_same(root: Path, tmp_path: Path) -> None:
    digest = load(root).digest
    assert load(root.parent).digest == digest
    twice = Path(shutil.copytree(root, tmp_path / "a" / "kaggle_3m" / "kaggle_3m"))
    assert load(twice.parent).digest == load(twice.parent.parent).digest == digest
    archive = Path(shutil.copytree(root, tmp_path / "b" / "lgg-mri-segmentation" / "kaggle_3m"))
    assert load(archive.parent).digest == load(archive.parent.parent).digest == digest
    assert problems(archive.parent.parent) == []


@pytest.mark.parametrize("second", ["lgg-mri-segmentation/kaggle_3m", "kaggle_3m/kaggle_3m"])
def test_of_two_copies_side_by_side_each_patient_is_loaded_once(root: Path, tmp_path: Path, second: str) -> None:
    digest = load(root).digest
    top = tmp_path / "both"
    shutil.copytree(root, top / "kaggle_3m")
    shutil.copytree(root, top / second)
    assert load(top).digest == digest
    assert problems(top) == [("note", "copy")] * PATIENTS
    # Half of one copy was never unpacked.
    shutil.rmtree(patients(top / "kaggle_3m")[-1])
    for number in (1, 2, 3):
        file(top / "kaggle_3m", 0, number).unlink()
        file(top / "kaggle_3m", 0, number, mask=True).unlink()
    data = load(top)
    assert data.digest == digest
    assert {name.rpartition("/TCGA_")[0].partition("/TCGA_")[0] for name in data.names} == {"kaggle_3m", second}
    assert problems(top) == [("note", "copy")] * (PATIENTS - 1)


def test_what_systems_leave_behind_is_passed_over(root: Path) -> None:
    digest = load(root).digest
    first = file(root, 0, 1)
    for name in (f"._{first.name}", ".DS_Store", "Thumbs.db", "readme.txt"):
        (first.parent / name).write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "._slice.tif").write_bytes(b"x")
    (root / "notes").mkdir()
    first.rename(first.with_suffix(".TIF"))
    assert load(root).digest == digest
    assert problems(root) == []


@pytest.mark.parametrize("place", ["{first}/scan.tif", "{first}/{second}_3.tif", "stray.tif", "patient7/a_1.tif"])
def test_a_slice_that_is_nobodys_is_an_error_with_the_layout(root: Path, place: str) -> None:
    first, second = (folder.name for folder in patients(root)[:2])
    path = root / place.format(first=first, second=second)
    path.parent.mkdir(exist_ok=True)
    shutil.copy(file(root, 0, 1), path)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))}: [\s\S]*kaggle_3m/TCGA_CS_4941_19960909/"):
        load(root)
    assert problems(root) == [("error", "path")]


def test_a_number_twice_is_an_error(root: Path) -> None:
    path = file(root, 0, 1)
    shutil.copy(path, path.with_name(path.name.replace("_1.tif", "_01.tif")))
    with pytest.raises(DatasetError, match=r"_1.tif: has the number of .*_01.tif; remove one"):
        load(root)


def test_a_folder_without_patients_is_told_the_layout(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=rf"{re.escape(str(tmp_path))} holds no images of lgg; expected\n  kaggle_3m/"
    ):
        load(tmp_path)
    with pytest.raises(DatasetError, match=r"nowhere is not a folder; expected\n  kaggle_3m/TCGA"):
        load(tmp_path / "nowhere")


# ---- what is missing -------------------------------------------------------------------------------------------------


def test_gaps_in_the_numbers_are_told_and_the_rest_is_loaded(root: Path) -> None:
    for number in (2, 5):
        file(root, 3, number).unlink()
        file(root, 3, number, mask=True).unlink()
    words = rf"{patients(root)[3].name}: lacks 2 of the slices 1 to \d+ \(2, 5\)"
    with pytest.warns(UserWarning, match=words):
        assert len(load(root)) == N - 2
    assert problems(root) == [("warning", "missing")]
    (root / "TCGA_CS_9999_20000101").mkdir()
    with pytest.warns(UserWarning, match=rf"{words}.*and 1 more"):
        load(root)


@pytest.mark.parametrize("mask", [False, True])
def test_halves_of_a_pair_are_left_out_with_a_warning(root: Path, mask: bool) -> None:
    whole = load(root)
    gone = file(root, 3, 4, mask=mask)
    gone.unlink()
    with pytest.warns(UserWarning, match=rf"1 of the {N} listed images are left out.*{gone.name}"):
        data = load(root)
    assert set(whole.names) - set(data.names) == {f"{gone.parent.name}/{gone.parent.name}_4.tif"}
    assert set(data.groups) == set(whole.groups)
    entry = next(entry for entry in list_lgg(root).entries if entry.name not in data.names)
    assert gone in (entry.path, *entry.masks)


def test_the_csv_file_only_tells_who_is_missing(root: Path) -> None:
    digest = load(root).digest
    csv = root / "data.csv"
    text = csv.read_text()
    assert len(text.splitlines()) == PATIENTS + 1
    for form in (
        text.replace(",", ";"),
        "\ufeff" + text,
        text.replace("\n", "\r\n") + ",,,,\r\n\r\n",
        text.replace("Patient", '"Patient"'),
    ):
        csv.write_text(form)
        assert problems(root) == []
    csv.write_text(text + "TCGA_HT_A61B,,5,,\nTCGA_HT_A61C\n")
    problem = list_lgg(root).problems[0]
    assert problem.severity == "note"
    assert "2 of the 14 patients that it lists have no folder (TCGA_HT_A61B, TCGA_HT_A61C)" in problem.message
    csv.write_text("\n".join(text.splitlines()[:-2]))
    assert "does not list 2 patients with folders (TCGA_" in list_lgg(root).problems[0].message
    for damaged in (b"Patient,a\n\xff\xfe\n", b"", b"name,a\nx,y\n", b'Patient\n"' + b"x" * 200_000 + b'"\n'):
        csv.write_bytes(damaged)
        assert problems(root) == [("note", "list")]
        assert "cannot be read" in list_lgg(root).problems[0].message
    # Not a word of it when loading.
    assert load(root).digest == digest
    csv.unlink()
    assert problems(root) == []


# ---- what is wrong with a file ---------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named(root: Path) -> None:
    path = file(root, 1, 2)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=re.escape(path.name)):
            load(root)
    path.write_bytes(whole)
    mask = file(root, 1, 2, mask=True)
    mask.write_bytes(mask.read_bytes()[:-100])
    with pytest.raises(ImageError, match=re.escape(mask.name)):
        load(root)


def test_files_that_were_copied_as_text_are_refused_even_where_their_header_survives(root: Path) -> None:
    # As found in the wild: every byte that is no UTF-8 became three others.
    changed = 0
    for path in sorted(root.rglob("*.tif")):
        read = read_mask if "mask" in path.name else read_grey
        whole = read(path)
        damaged = path.read_bytes().decode(errors="replace").encode()
        if damaged == path.read_bytes():
            continue
        changed += 1
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=rf"{path.name}: was copied as text.*; copy it again as binary"):
            read(path)
        # Not a picture that merely has such bytes in it.
        pixels = whole.astype(np.uint8) * 1
        pixels[0, :4] = (0xEF, 0xBF, 0xBD, 0xFF)
        Image.fromarray(pixels).save(path)
        np.testing.assert_array_equal(read_grey(path), pixels)
    assert changed > N


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    Image.new("L", (SIDE, SIDE + 1)).save(file(root, 0, 1, mask=True))
    with pytest.raises(DatasetError, match=r"_1_mask.tif is \(49, 48\) pixels, but its image \(48, 48\)"):
        load(root)


def test_larger_slices_than_allowed_are_refused(root: Path) -> None:
    assert len(load(root, max_pixels=SIDE**2)) == N
    with pytest.raises(ImageError, match=f"more than {SIDE**2 - 1}"):
        load(root, max_pixels=SIDE**2 - 1)


def test_a_changed_mask_is_read_again(root: Path) -> None:
    before = known(load(root).labels).copy()
    path = file(root, 0, 1, mask=True)
    Image.new("L", (SIDE, SIDE), 255).save(path)
    os.utime(path, ns=(5, 5))
    after = known(load(root).labels)
    assert np.flatnonzero(before != after).tolist() == [0]


def test_listing_opens_no_picture(root: Path) -> None:
    listing = list_lgg(root)
    for path in root.rglob("*.tif"):
        path.write_bytes(b"")
    assert list_lgg(root) == listing
    assert listing.label_from_region
    assert {entry.label for entry in listing.entries} == {None}


def test_workers_are_those_that_decode(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def spy(*args: Any, **keywords: Any) -> Any:
        given.append(keywords["workers"])
        return cached_array(*args, **keywords)

    monkeypatch.setattr(loading, "cached_array", spy)
    assert load(root, workers=1).digest == load(root, 36, workers=3).digest
    assert given == [1, 3]


# ---- playing and the example -----------------------------------------------------------------------------------------


def test_the_environment_plays_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for keywords in ({}, {"split": "all"}, {"channel": "all", "channels": 3}):
        env: Any = gym.make("MaskAug-LGG-v0", root=root, image_size=48, **keywords)
        observation, info = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        assert observation.shape[0] == keywords.get("channels", 1)
        assert info["label"] in (0, 1)
        assert np.isfinite(env.step(env.action_space.sample())[1])
        assert env.unwrapped.dataset.source == "lgg"
    with pytest.raises(ConfigurationError, match="give channels=3"):
        gym.make("MaskAug-LGG-v0", root=root, channel="all")
    monkeypatch.setenv("MASKAUG_DATA", str(root.parent))
    assert find_root("lgg", None) == root
    assert load_dataset("lgg", split="all", image_size=36, channel="post").name == "lgg-post"


def test_the_example_is_the_same_again_and_spoils_nothing(made: Path, tmp_path: Path) -> None:
    first = write_example(tmp_path / "a", 2, 3, seed=1)
    with Image.open(file(first, 0, 1)) as image:
        assert (image.format, image.mode, image.size) == ("TIFF", "RGB", (256, 256))
    with Image.open(file(first, 0, 1, mask=True)) as image:
        assert (image.format, image.mode, image.size) == ("TIFF", "L", (256, 256))
    digest = load(first).digest
    assert load(write_example(tmp_path / "b", 2, 3, seed=1)).digest == digest
    assert load(write_example(tmp_path / "c", 2, 3, seed=2)).digest != digest
    assert len(load(write_example(tmp_path / "d", 3, 3, side=40))) == 9
    assert problems(made) == []
    with pytest.raises(ConfigurationError, match="exists already"):
        write_example(tmp_path / "a")
    for patients, slices in ((1, 8), (2, 1)):
        with pytest.raises(ConfigurationError, match="at least 2 of each"):
            write_example(tmp_path / "e", patients, slices)
