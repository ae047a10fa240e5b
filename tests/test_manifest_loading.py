"""Manifests that are loaded and played: pictures, regions, digests, many rows, the environments, the example."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pickle
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from manifest_files import SIZE, errors, folder, known, load, picture
from PIL import Image

from maskaug.envs.dataset_registry import dataset_options, find_root, load_dataset
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.manifest import (
    HIP_CLASSES,
    list_hip_fracture,
    list_manifest,
    load_hip_fracture,
    load_manifest,
    write_example,
    write_hip_example,
)
from maskaug.envs.mura import write_example as write_mura

# ---- pictures and regions --------------------------------------------------------------------------------------------


def test_pictures_in_the_manifests_order(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,label\nc.png,x\na.png,y\nb.png,x\n")
    data = load(root)
    assert data.images[:, 0, 0, 0].tolist() == [30, 10, 20]
    assert known(data.labels).tolist() == [0, 1, 0]
    assert (data.names, data.source, data.name) == (("c.png", "a.png", "b.png"), "manifest", "manifest")
    assert data.regions is None
    # The files are the same, so that only the order of the rows can tell that the cache has another one.
    (root / "manifest.csv").write_text("path,label\na.png,y\nb.png,x\nc.png,x\n")
    assert load(root).images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_regions_are_masks_and_boxes(tmp_path: Path) -> None:
    text = "path,region\na.png,m1.png\nb.png,m1.png|sub\\m2.png\nc.png,10 10 20 30|30.2 30.6 39.5 40\nd.png,\n"
    root = folder(tmp_path, text)
    first, second = np.zeros((2, 40, 40), np.uint8)
    first[:10, :10] = second[20:, 20:] = 255
    (root / "sub").mkdir()
    for name, mask in (("m1.png", first), ("sub/m2.png", second)):
        Image.fromarray(mask).save(root / name)
    boxes = np.zeros((40, 40), np.bool_)
    boxes[10:30, 10:20] = boxes[30:40, 30:40] = True
    expected = [first > 0, (first | second) > 0, boxes, np.zeros_like(boxes)]
    np.testing.assert_array_equal(known(load(root).regions), expected)
    # The same files with their masks changed about are other data.
    swapped = text.replace("a.png,m1.png\n", "a.png,sub/m2.png\n")
    (root / "manifest.csv").write_text(swapped)
    np.testing.assert_array_equal(known(load(root).regions)[0], second > 0)
    (root / "manifest.csv").write_text(swapped.replace("10 10 20 30|", ""))
    assert known(load(root).regions)[2].sum() == 100


def test_regions_that_do_not_fit_their_picture(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,region\na.png,0 0 41 40\nb.png,-1 0 20 41\n")
    assert known(load(root).regions)[0].all()
    root = folder(tmp_path, "path,region\na.png,0 0 80 40\n")
    with pytest.raises(DatasetError, match=r"a.png is \(40, 40\) pixels, and its box .* was it drawn on a larger copy"):
        load(root)
    root = folder(tmp_path, "path,region\na.png,m.png\n")
    picture(root / "m.png", 255, (40, 41))
    with pytest.raises(DatasetError, match=r"m.png is \(40, 41\) pixels, but its image \(40, 40\)"):
        load(root)


def test_colours_are_kept_with_three_channels(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,label\nred.png,x\na.png,y\n")
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 0] = 200
    Image.fromarray(pixels).save(root / "red.png")
    assert list_manifest(root).colour
    assert load(root, channels=3).images[:, :, 5, 5].tolist() == [[200, 0, 0], [10, 10, 10]]
    assert load(root).images[:, 0, 0, 0].tolist() == [60, 10]


def test_missing_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,label,region\na.png,0,\ngone.png,1,\nb.png,1,lost.png\nc.png,1,1 1 5 5\n")
    with pytest.warns(UserWarning, match="2 of the 4 listed images are left out, .*gone.png, lost.png"):
        data = load(root)
    assert (data.names, data.images[:, 0, 0, 0].tolist()) == (("a.png", "c.png"), [10, 30])
    (root / "manifest.csv").write_text("path\nno.png\n")
    with pytest.raises(DatasetError, match="none of the 1 listed images"):
        load(root)


def test_a_sha256_is_verified_before_a_picture_is_used(tmp_path: Path) -> None:
    root = folder(tmp_path, "path\na.png\nb.png\n")
    digest = hashlib.sha256((root / "a.png").read_bytes()).hexdigest()
    plain = load(root).digest
    (root / "manifest.csv").write_text(f"path,sha256\na.png,{digest.upper()}\nb.png,\n")
    assert load(root).digest == plain
    # A picture that was cached without it is looked at again.
    (root / "manifest.csv").write_text(f"path,sha256\na.png,\nb.png,{digest}\n")
    with pytest.raises(ImageError, match=f"b.png: its SHA-256 is .*, but {digest} is given for it"):
        load(root)


def test_options_reach_the_reading(tmp_path: Path) -> None:
    root = folder(tmp_path, "path\nwide.png\ndeep.png\n")
    wide = np.zeros((40, 80), np.uint8)
    wide[:, :20] = 100
    Image.fromarray(wide).save(root / "wide.png")
    Image.fromarray(np.full((40, 40), 1000, np.uint16)).save(root / "deep.png")
    pages = [Image.fromarray(np.full((40, 40), value, np.uint8)) for value in (50, 60)]
    pages[0].save(root / "pages.tif", save_all=True, append_images=pages[1:])
    (root / "pages.csv").write_text("path\npages.tif\n")

    for loader in (load_manifest, load_hip_fracture):
        read = functools.partial(loader, root, image_size=SIZE, channels=1, seed=0)
        assert read(window=(0, 2000)).images[:, 0, 20, 30].tolist() == [0, 128]
        assert read(window="0,4000").images[:, 0, 20, 30].tolist() == [0, 64]
        with pytest.raises(ImageError, match="window"):
            read()
        for fit, corner, left in (("stretch", 100, 100), ("letterbox", 0, 100), ("crop", 0, 0)):
            image = read(window="minmax", fit=fit).images[0, 0]
            assert (image[0, 0], image[20, 0]) == (corner, left)
        with pytest.raises(ImageError, match="max_pixels"):
            read(window="minmax", max_pixels=100)
        assert len(read(window="minmax", workers=1)) == 2
        with pytest.raises(ConfigurationError, match="workers"):
            read(window="minmax", workers=0)
        assert [read(manifest="pages.csv", frame=i).images[0, 0, 0, 0] for i in (0, 1)] == [50, 60]
        with pytest.raises(ImageError, match="frame"):
            read(manifest="pages.csv")
    options = {"manifest", "fit", "window", "frame", "max_pixels", "workers"}
    assert dataset_options("hip_fracture") == options
    assert dataset_options("manifest") == {*options, "class_names"}


def test_boxes_follow_the_fit(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,region\nwide.png,0 0 40 40\n")
    picture(root / "wide.png", 9, (40, 80))
    for fit, columns, rows in (
        ("stretch", (0, 20), (0, 40)),
        ("letterbox", (0, 20), (10, 30)),
        ("crop", (0, 20), (0, 40)),
    ):
        ys, xs = np.nonzero(known(load(root, fit=fit).regions)[0])
        assert ((xs.min(), xs.max() + 1), (ys.min(), ys.max() + 1)) == (columns, rows)


# ---- many rows -------------------------------------------------------------------------------------------------------


def test_many_rows_are_listed_in_little_memory(tmp_path: Path) -> None:
    n = 10_000
    rows = "".join(f"images/{i % 7}/{i:06d}.png,{i % 2},P{i // 3},{'train' if i % 9 else 'test'}\n" for i in range(n))
    root = folder(tmp_path, f"path,label,study,split\n{rows}", 0)
    assert len(list_manifest(root).entries) == n
    tracemalloc.start()
    try:
        list_manifest(root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A million take about 1 GB.
    assert peak < 2500 * n


# ---- the environments ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("manifest"))


@pytest.fixture(scope="module")
def hips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hip_example(tmp_path_factory.mktemp("hips"), n=30)


def test_the_environment_plays(made: Path) -> None:
    keywords: Any = {"root": str(made), "class_names": ["normal", "fracture"], "n_shot": 5}
    env: Any = gym.make("MaskAug-Manifest-v0", **keywords)
    data = env.unwrapped.dataset
    assert (data.source, data.split, data.class_names, len(data)) == ("manifest", "train", ("normal", "fracture"), 10)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert np.isfinite(reward)
    assert info["label"] in (0, 1)
    twin = pickle.loads(pickle.dumps(env))  # noqa: S301
    np.testing.assert_array_equal(twin.reset(seed=1)[0], env.reset(seed=1)[0])
    several: Any = gym.make_vec("MaskAug-Manifest-v0", num_envs=2, **keywords)
    held_out = several.unwrapped.evaluation("test").dataset
    assert not set(held_out.names) & set(data.names)


def test_without_labels_the_reconstruction_game_is_played(tmp_path: Path) -> None:
    root = folder(tmp_path, "path,split\na.png,train\nb.png,train\nc.png,val\nd.png,test\n")
    keywords: Any = {"root": str(root), "image_size": 48}
    env: Any = gym.make("MaskAug-Manifest-v0", objective="reconstruction", action="patch", **keywords)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert np.isfinite(reward)
    assert info["label"] == -1
    with pytest.raises(ConfigurationError, match="has no labels"):
        gym.make("MaskAug-Manifest-v0", **keywords)
    with pytest.raises(ConfigurationError, match="manifest has no labels; leave it out"):
        gym.make("MaskAug-Manifest-v0", objective="reconstruction", action="patch", n_shot=1, **keywords)


def test_hip_fractures_have_their_classes(tmp_path: Path, hips: Path) -> None:
    env: Any = gym.make_vec("MaskAug-HipFracture-v0", num_envs=2, root=str(hips), image_size=64, n_shot=3)
    data = env.unwrapped.dataset
    assert (data.source, data.name, data.class_names) == ("hip_fracture", "hip_fracture", HIP_CLASSES)
    assert np.bincount(known(data.labels)).tolist() == [3, 3]
    env.reset(seed=0)
    assert np.isfinite(env.step(env.action_space.sample())[1]).all()
    assert load_dataset("hip_fracture", root=hips).shape == (1, 224, 224)
    spelt = folder(tmp_path, "path,label\na.png,1\nb.png,No Fracture\nc.png,fracture\nd.png,0\n")
    data = load_hip_fracture(spelt, image_size=SIZE, channels=1, seed=0)
    assert known(data.labels).tolist() == [1, 0, 1, 0]
    (spelt / "manifest.csv").write_text("path,label\na.png,2\n")
    (problem,) = errors(list_hip_fracture(spelt))
    assert problem.message == "the label '2' is none of the classes; known are no fracture, fracture"


def test_it_is_found_below_maskaug_data(made: Path, hips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root, name in ((made, "manifest"), (hips, "hip_fracture")):
        monkeypatch.setenv("MASKAUG_DATA", str(root.parent))
        assert find_root(name, None) == root
        assert load_dataset(name, image_size=36).source == name


# ---- the example -----------------------------------------------------------------------------------------------------


def test_the_example_uses_everything(made: Path, hips: Path, tmp_path: Path) -> None:
    listing = list_manifest(made)
    assert listing.problems == ()
    assert len(listing.entries) == 60
    assert {entry.path.suffix for entry in listing.entries} == {".png", ".jpg", ".tif"}
    assert {len(entry.masks) + len(entry.boxes) for entry in listing.entries if entry.label == 0} == {1}
    assert {len(entry.masks) for entry in listing.entries} == {len(entry.boxes) for entry in listing.entries} == {0, 1}
    assert len({entry.study for entry in listing.entries}) > len({entry.group for entry in listing.entries}) > 20
    for root, name, count in ((made, "manifest", 60), (hips, "hip_fracture", 30)):
        parts = [load_dataset(name, root=root, split=s, image_size=SIZE) for s in ("train", "val", "test")]
        assert sum(map(len, parts)) == count
        for part in parts:
            assert set(known(part.labels)) == {0, 1}
            broken = known(part.labels) == part.class_names.index("fracture")
            assert (known(part.regions).any((1, 2)) == broken).all()
    one, again, other = (load(write_example(tmp_path / str(i), n=30, seed=s)) for i, s in enumerate((2, 2, 3)))
    assert one.digest == again.digest != other.digest


def test_an_example_that_cannot_be_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="at least 30"):
        write_example(tmp_path, n=29)
    with pytest.raises(ConfigurationError, match="exists already"):
        write_example(made.parent)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigurationError, match=r"needs pydicom; pip install 'maskaug\[dicom\]'"):
        write_example(tmp_path, dicom=True)
    assert not (tmp_path / "manifest").exists()


@pytest.mark.skipif(importlib.util.find_spec("pydicom") is None, reason="needs pydicom")
def test_an_example_with_dicom_files(tmp_path: Path) -> None:
    root = write_example(tmp_path, n=30, dicom=True)
    listing = list_manifest(root)
    assert sum(entry.path.suffix == ".dcm" for entry in listing.entries) == 6
    # Twelve bits and their own window, and the same pictures as without.
    plain = load(write_example(tmp_path / "plain", n=30))
    assert np.abs(np.subtract(load(root).images[:], plain.images[:], dtype=int)).max() <= 32
    again = write_example(tmp_path / "again", n=30, dicom=True)
    assert (again / "manifest.csv").read_bytes() == (root / "manifest.csv").read_bytes()


def test_a_list_that_was_mended_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    root = write_example(tmp_path)
    lines = (root / "manifest.csv").read_text().splitlines()
    before = load_dataset("manifest", root=root, split="all", image_size=SIZE)
    assert load_dataset("manifest", root=root, split="all", image_size=SIZE) is before
    (root / "manifest.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert len(load_dataset("manifest", root=root, split="all", image_size=SIZE)) == len(before) - 1


def test_a_list_one_folder_further_down_and_links_to_nowhere(tmp_path: Path) -> None:
    root = write_mura(tmp_path, 24, side=(40, 48))
    (tmp_path / "nowhere.csv").symlink_to(tmp_path / "gone")
    (root / "nowhere.npz").symlink_to(tmp_path / "gone")

    def images() -> int:
        return len(load_dataset("mura", root=tmp_path, split="all", image_size=SIZE))

    before = images()
    for name in ("train_image_paths.csv", "train_labeled_studies.csv"):
        lines = (root / name).read_text().splitlines()
        keep = [line for line in lines if "patient00001/" not in line]
        assert len(keep) < len(lines)
        (root / name).write_text("\n".join(keep) + "\n")
    assert images() < before


def test_a_folder_that_cannot_be_looked_through_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_example(tmp_path)

    def refused(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(DatasetError, match=r"manifest cannot be looked at .Permission denied.; let this user read it"):
        load_dataset("manifest", root=root, split="all", image_size=SIZE)
