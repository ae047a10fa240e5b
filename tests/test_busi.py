import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from maskaug.envs import busi
from maskaug.envs.busi import list_busi, load_busi, write_example
from maskaug.envs.busi_files import CLASSES
from maskaug.envs.checking import check_dataset
from maskaug.envs.crops import choose_crops
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.fitting import fit_plane
from maskaug.envs.images import Reading, fit_region, read_grey, read_mask, resize
from maskaug.envs.near_duplicates import near_duplicates


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("busi"), n_per_class=5)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of its own, so that a test may break it."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def load(root: Path, size: int = 48, channels: int = 1, seed: int = 0, **options: Any) -> ImageDataset:
    return load_busi(root, image_size=size, channels=channels, seed=seed, **options)


def test_everything_is_read_in_order(root: Path) -> None:
    data = load(root, variant="raw")
    assert data.images.shape == (15, 1, 48, 48)
    assert data.class_names == ("benign", "malignant", "normal")
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.names[:2] == ("benign (1).png", "benign (2).png")
    assert data.regions is not None
    assert np.asarray(data.regions).any(axis=(1, 2)).tolist() == [True] * 10 + [False] * 5
    assert (data.name, data.source, data.licence) == ("busi", "busi", "CC BY 4.0")
    assert "104863" in data.citation


def test_numbers_are_ordered_as_numbers(root: Path) -> None:
    for suffix in (".png", "_mask.png"):
        (root / "malignant" / f"malignant (1){suffix}").rename(root / "malignant" / f"malignant (10){suffix}")
    assert load(root, variant="raw").names[5:10] == tuple(f"malignant ({i}).png" for i in (2, 3, 4, 5, 10))


def test_several_masks_are_joined(root: Path) -> None:
    first, second = (read_mask(root / "benign" / f"benign (2)_mask{i}.png") for i in ("", "_1"))
    regions = load(root, size=40, variant="raw").regions
    assert regions is not None
    h, w = first.shape
    for mask in (first, second):
        y, x = (int(axis.mean()) for axis in np.nonzero(mask))
        assert regions[1, y * 40 // h, x * 40 // w]
    assert regions[1].mean() == pytest.approx((first | second).mean(), rel=0.15)


def test_duplicates_share_a_group_and_clean_drops_them_and_conflicts(root: Path) -> None:
    raw, clean = load(root, variant="raw"), load(root)
    assert raw.groups.tolist() == [0, 1, 2, 3, 0, 5, 6, 7, 8, 1, 10, 11, 12, 13, 14]
    expected = [i for i in range(15) if i not in (4, 1, 9)]
    assert clean.names == tuple(raw.names[i] for i in expected)
    assert len(np.unique(clean.groups)) == len(clean) == 12


def test_groups_depend_neither_on_the_size_nor_on_the_variant(root: Path) -> None:
    small, large = load(root, size=36, variant="raw"), load(root, size=90, variant="raw")
    assert small.groups.tolist() == large.groups.tolist()
    assert set(load(root).groups) <= set(small.groups)


def test_no_split_cuts_a_group(root: Path) -> None:
    parts = load(root, variant="raw").split_by_group(seed=3, fractions=(0.6, 0.4))
    assert not set(parts["train"].groups) & set(parts["val"].groups)


def test_two_classes_leave_the_normals_out(root: Path) -> None:
    for classes in (2, "2"):
        data = load(root, variant="raw", classes=classes)
        assert data.class_names == ("benign", "malignant")
        assert len(data) == 10
    assert len(load(root, classes=2)) == 7


def test_grey_files_and_three_channels_give_the_same_pixels(root: Path) -> None:
    colour = load(root, channels=3)
    assert colour.images.shape == (12, 3, 48, 48)
    for path in root.rglob("*).png"):
        Image.fromarray(read_grey(path)).save(path)
    grey = load(root)
    for channel in range(3):
        np.testing.assert_array_equal(colour.images[:, channel], grey.images[:, 0])


def test_the_parent_folder_and_load_dataset_will_do(root: Path) -> None:
    assert load(root.parent).digest == load(root).digest
    data = load_dataset("busi", root=root, split="all", image_size=48, task="presence")
    assert data.name == "busi-presence"
    parts = [
        load_dataset("busi", root=root, split=s, image_size=48, variant="raw", classes=2) for s in ("train", "test")
    ]
    assert not set(parts[0].groups) & set(parts[1].groups)


def test_junk_is_ignored_and_a_cut_down_copy_will_do(root: Path) -> None:
    (root / "benign" / "._benign (1).png").write_bytes(b"junk")
    (root / "benign" / "Thumbs.db").write_bytes(b"junk")
    (root / ".DS_Store").write_bytes(b"junk")
    shutil.rmtree(root / "normal")
    (root / "malignant" / "malignant (3).png").unlink()
    (root / "malignant" / "malignant (3)_mask.png").unlink()
    data = load(root, variant="raw")
    assert len(data) == 9
    assert data.class_names == ("benign", "malignant", "normal")
    assert set(load(root, task="presence", variant="raw").class_names) == {"absent", "present"}


def test_a_changed_file_is_read_again(root: Path) -> None:
    before = np.asarray(load(root).images).copy()
    path = root / "normal" / "normal (1).png"
    Image.fromarray(255 - read_grey(path)).save(path)
    os.utime(path, ns=(5, 5))
    after = load(root).images
    assert [i for i in range(12) if (before[i] != after[i]).any()] == [7]


def fill(path: Path, value: int) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("L", size, value).save(path)


@pytest.mark.parametrize(
    ("name", "action", "message"),
    [
        (
            "benign (1)_mask.png",
            lambda p: Image.new("L", (50, 50), 255).save(p),
            r"benign \(1\)_mask.png is \(50, 50\)",
        ),
        (
            "benign (1)_mask.png",
            lambda p: fill(p, 0),
            r"benign \(1\)_mask.png outlines nothing",
        ),
        (
            "benign (1).png",
            lambda p: shutil.copy(p, p.with_name("BENIGN (1).PNG")),
            r"benign \(1\).png: the same picture as BENIGN \(1\).PNG; keep the one",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(root: Path, name: str, action: Any, message: str) -> None:
    action(root / "benign" / name)
    with pytest.raises(DatasetError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("missing", "left", "words"),
    [
        (
            ["benign (1)_mask.png", "benign (3)_mask.png", "benign (4)_mask.png"],
            ["benign (2).png", "benign (5).png"],
            "benign: left out are 3 pictures without their mask, or one of several: benign 1, 3–4",
        ),
        (
            ["benign (2)_mask.png"],
            [f"benign ({i}).png" for i in (1, 3, 4, 5)],
            "benign: left out are 1 pictures without their mask, or one of several: benign 2",
        ),
        (
            ["benign (1).png", "benign (5).png"],
            [f"benign ({i}).png" for i in (2, 3, 4)],
            "benign: left out are 2 pictures of which only masks are there: benign 1, 5",
        ),
    ],
)
@pytest.mark.parametrize("task", ["diagnosis", "presence"])
def test_what_has_no_partner_is_left_out_and_named(
    root: Path, missing: list[str], left: list[str], words: str, task: str
) -> None:
    whole = load(root, variant="raw", task=task)
    for name in missing:
        (root / "benign" / name).unlink()
    with pytest.warns(UserWarning, match=f"{re.escape(words)}$") as told:
        data = load(root, variant="raw", task=task)
    assert len(told) == 1
    assert {name.split("@")[0] for name in data.names if name.startswith("benign")} == set(left)
    kept = [i for i, name in enumerate(whole.names) if name in data.names]
    assert len(kept) == len(data) < len(whole)
    np.testing.assert_array_equal(data.images, whole.images[kept])


def test_png_files_of_other_names_are_left_out_and_named(root: Path) -> None:
    whole = load(root).digest
    for name in ("overlay.png", "malignant (1).png", "benign (0).png"):
        shutil.copy(root / "benign" / "benign (1).png", root / "benign" / name)
    with pytest.warns(UserWarning, match=r"left out are 3 PNG .*: benign \(0\).png, malignant \(1\).png, overlay"):
        assert load(root).digest == whole


@pytest.mark.parametrize("kind", ["folder", "dead link"])
def test_what_is_no_file_is_left_out_by_loading_and_by_the_check(kind: str, root: Path) -> None:
    before = check_dataset("busi", root, variant="raw")
    for name in ("benign (9).png", "benign (9)_mask.png"):
        path = root / "benign" / name
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(root / "gone")
    with pytest.warns(UserWarning, match=r"left out are 2 folders, dead links .*: benign \(9\).png, benign"):
        data = load(root, variant="raw")
    assert "benign (9).png" not in data.names
    report = check_dataset("busi", root, variant="raw")
    kinds = {finding.kind: finding.severity for finding in report.findings}
    assert kinds["file"] == "warning"
    assert kinds.keys() - {"file"} == {finding.kind for finding in before.findings}
    assert report.ok == before.ok
    assert report.images == len(data)


def test_a_long_list_of_what_is_left_out_is_cut_short(root: Path) -> None:
    for number in range(100, 300, 2):
        (root / "malignant" / f"malignant ({number})_mask.png").write_bytes(b"")
    (whole,) = (problem.message for problem in list_busi(root).problems if problem.severity == "warning")
    assert whole.startswith("left out are 100 pictures of which only masks are there: malignant 100, 102,")
    assert whole.endswith(", 298")
    with pytest.warns(UserWarning, match=r"left out are 100 .* … \(all of it: `maskaug data check busi`\)$") as told:
        load(root)
    assert len(str(told[0].message)) < len(whole) + len(str(root))


def test_every_cause_has_its_own_warning(root: Path) -> None:
    (root / "benign" / "benign (1)_mask.png").unlink()
    (root / "malignant" / "malignant (2).png").unlink()
    with pytest.warns(UserWarning, match="left out are") as told:
        load(root)
    assert [Path(str(one.message).split(":")[0]).name for one in told] == ["benign", "malignant"]
    assert {Path(one.filename).name for one in told} == {Path(__file__).name}


def test_nothing_but_pictures_without_masks_is_an_error_that_says_so(root: Path) -> None:
    for path in root.rglob("*_mask*"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"left out are 5 pictures without[\s\S]*only normal images can be used"):
        load(root)
    shutil.rmtree(root / "normal")
    with pytest.raises(DatasetError, match=r"left out are 5 pictures without[\s\S]*only no images can be used"):
        load(root)


def test_the_listing_has_what_lies_there(root: Path) -> None:
    listing = list_busi(root.parent)
    assert (listing.dataset, listing.root, listing.class_names, listing.regions) == ("busi", root, CLASSES, True)
    assert [entry.label for entry in listing.entries] == [0] * 5 + [1] * 5 + [2] * 5
    assert {len(entry.masks) for entry in listing.entries} == {1, 2}
    assert all(path.is_file() for entry in listing.entries for path in (entry.path, *entry.masks))
    assert [entry.group for entry in listing.entries] == [entry.name for entry in listing.entries]
    assert tuple(entry.name for entry in listing.entries) == load(root, variant="raw").names
    assert listing.chosen == tuple(range(15))
    assert list_busi(root, classes=2).chosen == tuple(range(10))
    assert list_busi(root, task="presence").chosen == listing.chosen
    for options in ({"task": "x"}, {"classes": 4}, {"task": "presence", "classes": 2}):
        with pytest.raises(ConfigurationError):
            list_busi(root, **options)


def test_numbers_that_are_missing_from_what_was_published_are_noted(root: Path) -> None:
    for suffix in (".png", "_mask.png"):
        (root / "malignant" / f"malignant (2){suffix}").unlink()
        (root / "benign" / f"benign (5){suffix}").rename(root / "benign" / f"benign (500){suffix}")
    shutil.rmtree(root / "normal")
    told = list_busi(root).problems
    assert {problem.severity for problem in told} == {"note"}
    assert [(Path(problem.where).name, problem.message) for problem in told] == [
        ("benign", "5 pictures, 437 were published; missing: 5–437"),
        ("benign", "5 pictures, 437 were published; never published: 500"),
        ("malignant", "4 pictures, 210 were published; missing: 2, 6–210"),
        ("normal", "0 pictures, 133 were published; missing: 1–133"),
    ]
    assert len(load(root, variant="raw")) == 9


# ---- files of other kinds, all of which copies of this data set have -------------------------------------------------


def rewrite(root: Path, picture: Any, mask: Any) -> None:
    """Save every picture and mask anew, as `picture` and `mask` make them."""
    for path in sorted(root.rglob("*.png")):
        with Image.open(path) as image:
            image.load()
        (mask if "_mask" in path.name else picture)(image).save(path)


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        (lambda i: i.convert("L"), lambda m: m.convert("1")),
        (lambda i: i.convert("RGBA"), lambda m: m.convert("RGB")),
        (lambda i: i.convert("L").convert("LA"), lambda m: m.convert("RGBA")),
        (lambda i: i.convert("L").convert("P"), lambda m: Image.fromarray((np.asarray(m) > 0).astype(np.uint8))),
        (lambda i: i.convert("RGB"), lambda m: m.convert("P")),
    ],
    ids=["grey and 1-bit", "RGBA and RGB", "grey with alpha and RGBA", "palette and 0/1", "RGB and palette"],
)
def test_all_kinds_of_files_give_the_same_data(root: Path, picture: Any, mask: Any) -> None:
    before, crops = load(root).digest, load(root, task="presence").digest
    rewrite(root, picture, mask)
    assert load(root).digest == before
    assert load(root, task="presence").digest == crops


def test_upper_case_names_give_the_same_data(root: Path) -> None:
    before = load(root).digest
    for path in root.rglob("*.png"):
        path.rename(path.with_name(path.name.replace(".png", ".PNG").replace("benign", "Benign")))
    assert load(root).digest == before
    assert list_busi(root).entries[0].name == "benign (1).png"


def test_very_different_sizes_fit(root: Path) -> None:
    sizes = [(310, 190), (719, 1048), (310, 1048), (719, 190)]
    for number, size in enumerate(sizes, start=1):
        for path in (root / "malignant").glob(f"malignant ({number})*.png"):
            with Image.open(path) as image:
                larger = image.resize(size, Image.Resampling.NEAREST)
            larger.save(path)
    data = load(root, variant="raw")
    assert data.images.shape == (15, 1, 48, 48)
    assert data.regions is not None
    assert data.regions[5:10].any(axis=(1, 2)).all()
    crops = load(root, task="presence", variant="raw")
    assert sum(name.startswith("malignant") for name in crops.names) >= 16


def test_how_pictures_are_read_is_passed_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("diagnosis", "presence"):
        with pytest.raises(ImageError, match="more than 9000"):
            load(root, task=task, max_pixels=9000)
    with pytest.raises(ConfigurationError, match=r"crops .* are square"):
        load(root, task="presence", fit="crop")
    asked: list[Reading] = []
    fits: list[tuple[str, int]] = []

    def fitted(image: Any, fit: str, size: int) -> Any:
        fits.append((fit, size))
        return fit_plane(image, "stretch", size)

    def region(mask: Any, reading: Reading) -> Any:
        asked.append(reading)
        return np.flip(fit_region(mask, Reading(reading.size)), axis=1)

    plain = load(root, variant="raw")
    monkeypatch.setattr(busi, "fit_plane", fitted)
    monkeypatch.setattr(busi, "fit_region", region)
    data = load(root, variant="raw", fit="crop", max_pixels=10**6, workers=1)
    assert set(asked) == {Reading(48, fit="crop", max_pixels=10**6)}
    assert fits == [("crop", 48)] * len(data)
    assert data.regions is not None
    assert plain.regions is not None
    # Regions go where the picture goes, and who shows the same does not depend on it.
    np.testing.assert_array_equal(data.regions, plain.regions[:, :, ::-1])
    np.testing.assert_array_equal(data.groups, plain.groups)


def test_a_lesion_in_a_normal_image_is_an_error(root: Path) -> None:
    path = root / "normal" / "normal (2)_mask.png"
    fill(path, 255)
    with pytest.raises(DatasetError, match=r"normal \(2\)_mask.png outlines something"):
        load(root)
    path.unlink()
    assert len(load(root)) == 12


def test_a_truncated_picture_is_named(root: Path) -> None:
    path = root / "benign" / "benign (3).png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"benign \(3\).png: is truncated"):
        load(root)


def test_a_wrong_folder_shows_the_expected_tree(root: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match=r"benign/benign \(1\).png"):
            load(wrong)
    shutil.rmtree(root / "malignant")
    with pytest.raises(DatasetError, match="two classes are needed"):
        load(root, classes=2)
    assert len(load(root)) == 9
    shutil.rmtree(root / "benign")
    with pytest.raises(DatasetError, match="only normal images can be used, and lesions are needed"):
        load(root, task="presence")


@pytest.mark.parametrize(
    "options", [{"variant": "dirty"}, {"task": "x"}, {"classes": 4}, {"classes": 0}, {"task": "presence", "classes": 2}]
)
def test_unknown_options_are_refused(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        load(root, **options)


def test_crops_show_what_their_label_says(root: Path) -> None:
    data, whole = load(root, task="presence", variant="raw"), load(root, variant="raw")
    assert data.class_names == ("absent", "present")
    assert data.labels is not None
    assert data.regions is not None
    assert data.labels.tolist() == np.asarray(data.regions).any(axis=(1, 2)).tolist()
    assert 0.4 < data.labels.mean() < 0.6
    for i, name in enumerate(data.names):
        source, box = name.split("@")
        x, y, side = (int(number) for number in box.split(","))
        assert data.groups[i] == whole.groups[whole.names.index(source)]
        with Image.open(root / source.split(" ")[0] / source) as image:
            assert 0 <= x <= image.width - side
            assert 0 <= y <= image.height - side
    shares = np.asarray(data.regions).mean(axis=(1, 2))[data.labels == 1]
    assert shares.max() < 0.55


def test_crops_depend_on_the_seed_and_the_name_alone(root: Path) -> None:
    one, again, other = (load(root, task="presence", seed=s, variant="raw") for s in (0, 0, 1))
    assert one.digest == again.digest
    assert one.names != other.names
    for path in (root / "benign").glob("benign (1)*"):
        path.unlink()
    shutil.rmtree(os.environ["MASKAUG_CACHE"])
    fewer = load(root, task="presence", seed=0, variant="raw")
    assert fewer.names == tuple(name for name in one.names if not name.startswith("benign (1)"))


def test_fixed_masks_learn_nothing_from_where_crops_are_cut() -> None:
    # Lesions as in the real set: near the upper border, of very different sizes.
    rng = np.random.default_rng(0)
    kept, maps = [], []
    y, x = np.mgrid[:256, :320]
    for _ in range(250):
        a = 256 * np.exp(rng.uniform(np.log(0.06), np.log(0.3)))
        cy, cx = rng.normal(0.33, 0.1) * 256, rng.normal(0.49, 0.13) * 320
        region = ((x - cx) / (1.4 * a)) ** 2 + ((y - cy) / (0.8 * a)) ** 2 < 1
        for left, top, side in choose_crops(region, rng):
            crop = resize(region[top : top + side, left : left + side].astype(np.float32), 8)
            if crop.any():
                kept.append(crop[2:6, 2:6].sum() / crop.sum())
                maps.append(crop / crop.sum())
            else:
                assert not region[top : top + side, left : left + side].any()
    assert np.mean(kept) < 0.35
    train, test = np.array(maps[::2]), np.array(maps[1::2])
    best = np.argsort(train.mean(axis=0).ravel())[-16:]
    assert test.reshape(len(test), -1)[:, best].sum(axis=1).mean() < 0.37


def test_near_duplicates_sees_through_brightness_shift_and_chains() -> None:
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.normal(size=(44, 44)).astype(np.float32), (0, 0), 1.2)
    others = [cv2.GaussianBlur(rng.normal(size=(32, 32)).astype(np.float32), (0, 0), 1.2) for _ in range(20)]
    first, moved, further = scene[4:36, 4:36], scene[6:38, 7:39], scene[8:40, 10:42]
    flat = np.zeros((32, 32), np.float32)
    groups = near_duplicates(np.stack([first, 2 * first + 1, *others, moved, further, flat]))
    assert groups.tolist() == [0, 0, *range(2, 22), 0, 0, 24]


def test_write_example_needs_room_for_its_special_cases(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 3"):
        write_example(tmp_path, n_per_class=2)
