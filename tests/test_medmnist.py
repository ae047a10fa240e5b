"""The reader of MedMNIST: which file is read, colours, official parts, and files that are damaged or hostile."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import maskaug  # noqa: F401 (registers the ids)
from maskaug.envs import medmnist, npz
from maskaug.envs.cache import cached_array
from maskaug.envs.dataset_registry import find_root, load_dataset
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.images import read_grey, resize
from maskaug.envs.medmnist import MULTI_LABEL, SETS, VOLUMES, load_medmnist, write_example

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("medmnist")).parent


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of its own, so that a test may break it."""
    return Path(shutil.copytree(made, tmp_path / made.name))


def load(root: Path, size: int = 36, channels: int = 1, **options: Any) -> ImageDataset:
    return load_medmnist(root, image_size=size, channels=channels, seed=0, **options)


def arrays(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as held:
        return dict(held)


def known(values: Any) -> Any:
    assert values is not None
    return values


def rewrite(root: Path, name: str = "pneumoniamnist", save: Any = np.savez, **changed: Any) -> Path:
    """The set again under `name`, with some arrays changed; None leaves one out."""
    held: Arrays = {**arrays(root / "pneumoniamnist.npz"), **changed}
    file = root / f"{name}.npz"
    save(file, **{key: value for key, value in held.items() if value is not None})
    return file


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_all_parts_are_read_with_their_labels(root: Path) -> None:
    data, held = load(root), arrays(root / "pneumoniamnist.npz")
    images = np.concatenate([held[f"{split}_images"] for split in SPLITS])
    labels = np.concatenate([held[f"{split}_labels"] for split in SPLITS])
    assert images.shape == (40, 28, 28)
    assert data.images.shape == (40, 1, 36, 36)
    np.testing.assert_array_equal(data.images[:, 0], np.stack([resize(image, 36) for image in images]))
    np.testing.assert_array_equal(known(data.labels), labels[:, 0])
    assert known(data.official).tolist() == [0] * 24 + [1] * 8 + [2] * 8
    assert data.names[0] == "pneumoniamnist.npz/train/0"
    assert data.names[-1] == "pneumoniamnist.npz/test/7"
    assert data.class_names == ("normal", "pneumonia")
    assert len(set(data.groups)) == 40
    assert (data.name, data.source, data.licence, data.regions) == ("pneumoniamnist", "medmnist", "CC BY 4.0", None)
    assert "Yang" in data.citation


def test_the_official_parts_are_the_splits_and_n_shot_is_drawn_from_train(root: Path) -> None:
    data, parts = (
        load(root),
        {split: load_dataset("medmnist", root=root, image_size=36, split=split) for split in SPLITS},
    )
    for i, (split, part) in enumerate(parts.items()):
        assert part.names == tuple(name for name in data.names if f"/{split}/" in name)
        np.testing.assert_array_equal(part.images, data.images[known(data.official) == i])
        assert set(known(part.labels)) == {0, 1}
    few = load_dataset("medmnist", root=root, image_size=36, n_shot=3)
    assert np.bincount(known(few.labels)).tolist() == [3, 3]
    assert set(few.names) <= set(parts["train"].names)


@pytest.mark.parametrize("flag", sorted(SETS))
def test_every_published_set_has_its_classes(tmp_path: Path, flag: str) -> None:
    classes = SETS[flag].classes
    file = write_example(tmp_path, flag, n=5 * len(classes))
    data = load(tmp_path, 36, 3, flag=flag)
    assert data.class_names == classes
    assert len(set(classes)) == len(classes) > 1
    for part in range(3):
        assert set(known(data.labels)[known(data.official) == part]) == set(range(len(classes)))
    assert (arrays(file)["train_images"].ndim == 4) is SETS[flag].colour
    assert (data.images[:, 0] != data.images[:, 1]).any() == SETS[flag].colour


def test_there_are_twelve_flat_sets_and_six_of_volumes() -> None:
    assert len(SETS) + len(MULTI_LABEL) == 12
    assert len(VOLUMES) == 6
    assert [len(SETS[flag].classes) for flag in ("pathmnist", "dermamnist", "octmnist", "bloodmnist")] == [9, 7, 4, 8]
    assert [len(SETS[flag].classes) for flag in ("tissuemnist", "organamnist", "retinamnist")] == [8, 11, 5]
    assert SETS["breastmnist"].classes == ("malignant", "normal, benign")
    assert {flag for flag, one in SETS.items() if one.colour} == {
        "pathmnist",
        "dermamnist",
        "retinamnist",
        "bloodmnist",
    }


def test_colours_are_kept_or_become_the_luma_that_files_have(root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    labels = np.array([[0], [1], [0]], np.uint8)
    both: dict[str, Any] = {"images": colours, "labels": labels}
    changed: dict[str, Any] = {f"{split}_{what}": values for split in SPLITS for what, values in both.items()}
    rewrite(root, **changed)
    same = load(root, 40, 3)
    np.testing.assert_array_equal(same.images[:3], np.moveaxis(colours, -1, 1))
    small = load(root, 36, 3)
    np.testing.assert_array_equal(small.images[1, 2], resize(np.ascontiguousarray(colours[1, ..., 2]), 36))
    Image.fromarray(colours[1]).save(tmp_path / "one.png")
    grey = read_grey(tmp_path / "one.png")
    np.testing.assert_array_equal(load(root, 40).images[1, 0], grey)
    np.testing.assert_array_equal(load(root, 36).images[1, 0], resize(grey, 36))


def test_grey_images_are_repeated_for_three_channels(root: Path) -> None:
    np.testing.assert_array_equal(load(root, channels=3).images, np.repeat(load(root).images, 3, axis=1))


def test_a_set_that_nobody_published_has_numbered_classes(root: Path, tmp_path: Path) -> None:
    rewrite(root, "mine", train_labels=np.arange(24, dtype=np.int64) % 5)
    data = load(root, flag="mine")
    assert data.class_names == tuple(f"class {i}" for i in range(5))
    assert (data.name, data.licence, data.citation) == ("mine", "unknown", "")
    assert load(write_example(tmp_path / "more", "my_own-set").parent, flag="my_own-set").class_names[3] == "class 3"


# ---- which file ------------------------------------------------------------------------------------------------------


def test_the_smallest_file_that_is_large_enough_is_taken(root: Path) -> None:
    for size in (64, 128):
        write_example(root.parent, size=size, n=10)
    taken = {size: load(root, size).name for size in (36, 64, 65, 128, 224)}
    assert taken == {
        36: "pneumoniamnist_64",
        64: "pneumoniamnist_64",
        65: "pneumoniamnist_128",
        128: "pneumoniamnist_128",
        224: "pneumoniamnist_128",
    }
    held = arrays(root / "pneumoniamnist_64.npz")
    np.testing.assert_array_equal(load(root, 64).images[:6, 0], held["train_images"])
    # With its size a file is chosen whatever is asked of it.
    assert load(root, 36, flag="pneumoniamnist_128").name == "pneumoniamnist_128"
    assert load(root, 200, flag="pneumoniamnist_28").name == "pneumoniamnist"
    (root / "pneumoniamnist.npz").unlink()
    (root / "pneumoniamnist_64.npz").unlink()
    assert load(root, 36).name == "pneumoniamnist_128"
    with pytest.raises(DatasetError, match=r"no file of 'pneumoniamnist_64' \(but pneumoniamnist_128.npz\)"):
        load(root, flag="pneumoniamnist_64")


def test_a_file_that_is_not_there_is_told_what_is(root: Path, tmp_path: Path) -> None:
    write_example(root.parent, "breastmnist", 64)
    (root / "._hidden.npz").write_bytes(b"")
    words = r"'octmnist' \(but breastmnist_64.npz, pneumoniamnist.npz\); expected\n  medmnist/pneumoniamnist.npz"
    with pytest.raises(DatasetError, match=words + r"[\s\S]*https://zenodo"):
        load(root, flag="octmnist")
    empty = tmp_path / "empty"
    with pytest.raises(DatasetError, match="is not a folder"):
        load(empty)
    empty.mkdir()
    with pytest.raises(DatasetError, match=r"no file of 'pneumoniamnist' \(but no npz file at all\)"):
        load(empty)


@pytest.mark.parametrize("flag", ["../pneumoniamnist", "/etc/x", "", "a.npz", "a b", "medmnist/pneumoniamnist", 3])
def test_a_flag_is_no_path(root: Path, flag: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no set's name; use one of pathmnist"):
        load(root, flag=flag)


def test_sets_that_no_game_can_play_are_refused_by_name(root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"flag='chestmnist_64' has several labels .* use one of pathmnist"):
        load(root, flag="chestmnist_64")
    for flag in VOLUMES:
        with pytest.raises(ConfigurationError, match=rf"flag='{flag}' holds volumes"):
            load(root, flag=flag)


# ---- wrong arrays ----------------------------------------------------------------------------------------------------

IMAGES = np.zeros((24, 28, 28), np.uint8)
LABELS = np.zeros((24, 1), np.uint8)
WRONG = [
    ({"val_images": None}, "holds no val_images (but test_images"),
    ({"test_labels": None}, "holds no test_labels"),
    ({"train_images": IMAGES.astype(np.float32)}, "train_images is float32, not uint8"),
    ({"train_images": IMAGES.astype(np.uint16)}, "train_images is uint16, not uint8"),
    ({"train_images": IMAGES[:, :7]}, "at least 8 pixels a side"),
    ({"train_images": IMAGES[..., None].repeat(2, 3)}, "not (N, H, W) or (N, H, W, 3)"),
    ({"train_images": IMAGES[:, None].repeat(28, 1)}, "not (N, H, W) or (N, H, W, 3)"),
    ({"train_images": IMAGES[0]}, "not (N, H, W) or (N, H, W, 3)"),
    ({"train_images": np.uint8(3)}, "not what its shape () takes"),
    ({"train_images": np.asfortranarray(IMAGES)}, "column by column"),
    ({"train_images": IMAGES[..., None].repeat(3, 3)}, "holds images of 2 shapes"),
    ({"train_images": IMAGES[:20]}, "train_labels has 24 rows, but there are 20 images"),
    ({"train_labels": LABELS.repeat(14, 1)}, "several labels for each image"),
    ({"train_labels": LABELS.astype(np.float32)}, "train_labels is float32 of shape (24, 1), not uint8"),
    ({"train_labels": LABELS.astype(bool)}, "train_labels is bool"),
    ({"train_labels": LABELS + 2}, "labels run up to 2, but pneumoniamnist has 2 classes (normal, pneumonia"),
    ({"train_labels": LABELS.astype(np.int64) - 1}, "runs from -1 to -1"),
    ({"train_labels": LABELS.astype(np.uint64) + np.uint64(2**63)}, "runs from 9223372036854775808"),
    ({f"{split}_{what}": np.zeros((0, *tail), np.uint8) for split in SPLITS for what, tail in
      (("images", (28, 28)), ("labels", (1,)))}, "holds no images"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_array_is_named_with_its_cause_and_the_layout(root: Path, changed: Any, words: str) -> None:
    file = rewrite(root, **changed)
    with pytest.raises(DatasetError, match=rf"^{re.escape(str(file))}[\s\S]*{re.escape(words)}"):
        load(root)


def test_labels_may_be_flat_and_of_any_whole_type(root: Path) -> None:
    before = load(root).digest
    held = arrays(root / "pneumoniamnist.npz")
    changed: Any = {f"{split}_labels": held[f"{split}_labels"].ravel().astype(">i4") for split in SPLITS}
    rewrite(root, **changed)
    assert load(root).digest == before


def test_a_part_may_be_empty(root: Path) -> None:
    rewrite(root, val_images=IMAGES[:0], val_labels=LABELS[:0])
    assert len(load_dataset("medmnist", root=root, split="all", image_size=36)) == 32
    with pytest.raises(DatasetError, match="has no val images"):
        load_dataset("medmnist", root=root, split="val", image_size=36)


class Evil:
    """What happens when it is unpickled leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["train_images", "test_labels"])
def test_nothing_is_ever_unpickled(root: Path, tmp_path: Path, name: str) -> None:
    trap = tmp_path / "trap"
    evil: Any = np.empty((24,), object)
    evil[:] = [Evil(trap)] * 24
    changed: Any = {name: evil}
    file = rewrite(root, **changed)
    with pytest.raises(DatasetError, match=rf"{name} holds Python objects, which are never unpickled"):
        load(root)
    assert not trap.exists()
    # A bare pickle under an npz file's name.
    file.write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(DatasetError, match="is no npz file"):
        load(root)
    assert not trap.exists()


def test_a_file_that_is_no_archive_or_half_of_one_is_named(root: Path) -> None:
    file = root / "pneumoniamnist.npz"
    whole = file.read_bytes()
    for damaged in (b"", b"not a zip", whole[: len(whole) // 2], whole[:-30]):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"^{re.escape(str(file))}"):
            load(root)


def test_every_single_damaged_byte_is_noticed_or_harmless(root: Path) -> None:
    file = root / "pneumoniamnist.npz"
    digest = load(root).digest
    whole = file.read_bytes()
    refused = 0
    for i, place in enumerate(np.random.default_rng(0).integers(0, len(whole), 150)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        os.utime(file, ns=(i, i))
        try:
            assert load(root).digest == digest
        except DatasetError as error:
            refused += str(file) in str(error)
    assert refused > 130


def npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def replace_member(file: Path, name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    held = arrays(file)
    del held[name]
    np.savez(file, allow_pickle=False, **held)
    with zipfile.ZipFile(file, "a", method) as archive:
        archive.writestr(f"{name}.npy", content)


def test_an_archive_that_claims_too_much_is_refused_unread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "pneumoniamnist.npz"
    # Little to store, much to unpack.
    replace_member(file, "train_images", npy((24, 3000, 3000), bytes(24 * 3000 * 3000)))
    assert file.stat().st_size < 1_000_000
    opened: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(npz, "MAX_BYTES", 10**8)
        patch.setattr(zipfile.ZipFile, "open", lambda self, member, *_: opened.append(member.filename))
        with pytest.raises(
            DatasetError, match=r"train_images claims to unpack to 216000128 bytes, more than 100000000"
        ):
            load(root)
    assert opened == []
    replace_member(file, "train_images", npy((10**12, 28, 28), bytes(100)))
    with pytest.raises(DatasetError, match=r"train_images has \d+ bytes, which is not what its shape"):
        load(root)


def test_more_images_than_any_set_has_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medmnist, "MOST_IMAGES", 24)
    assert len(load(root)) == 40
    monkeypatch.setattr(medmnist, "MOST_IMAGES", 23)
    with pytest.raises(DatasetError, match="at most 23 images"):
        load(root)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16,
        b"\x93NUMPY\x01\x00\x10\x00__import__('os')",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000,
        npy((-24, 28, 28), bytes(24 * 28 * 28)),
        npy((24, 28, 28), bytes(24 * 28 * 28 - 1)),
        npy((24, 28, 28), bytes(24 * 28 * 28 + 1)),
    ],
    ids=range(9),
)
def test_a_damaged_header_is_refused(root: Path, content: bytes) -> None:
    file = root / "pneumoniamnist.npz"
    replace_member(file, "train_images", content)
    with pytest.raises(DatasetError, match=rf"^{re.escape(str(file))}: train_images"):
        load(root)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_way_to_pack_is_read(root: Path, method: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)
    replace_member(root / "pneumoniamnist.npz", "train_images", npy(images.shape, images.tobytes()), method)
    np.testing.assert_array_equal(load(root).images[23, 0], resize(images[23], 36))


# ---- memory, cache, workers ------------------------------------------------------------------------------------------


def test_batches_change_nothing_and_bound_what_is_read_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(root)
    wanted: list[int] = []
    read = npz.Member.read

    def spy(rows: npz.Member, count: int) -> Any:
        wanted.append(count)
        return read(rows, count)

    monkeypatch.setattr(npz.Member, "read", spy)
    monkeypatch.setattr(medmnist, "BATCH", 5 * 40 * 40)
    for workers in (1, 3):
        monkeypatch.setenv("MASKAUG_CACHE", str(root / f"cache{workers}"))
        wanted.clear()
        assert load(root, 40, workers=workers).digest != whole.digest
        # Labels are read whole: 24, 8 and 8; images by fives.
        assert sorted(wanted) == [5] * 9 + [8, 8, 24]
    monkeypatch.setenv("MASKAUG_CACHE", str(root / "other"))
    monkeypatch.setattr(medmnist, "BATCH", 1)
    assert load(root).digest == whole.digest


def test_batches_may_be_asked_for_out_of_order(made: Path) -> None:
    with npz.Npz(made / "pneumoniamnist.npz", "") as file:
        batches = medmnist._Batches(file.rows("train_images"), 5)
        assert len(batches) == 5
        taken = {number: batches.take(number) for number in (2, 0, 1, 4, 3)}
    held = arrays(made / "pneumoniamnist.npz")["train_images"]
    np.testing.assert_array_equal(np.concatenate([taken[number] for number in range(5)]), held)


def test_the_second_time_no_image_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def spy(*args: Any, **keywords: Any) -> Any:
        given.append(keywords["workers"])
        return cached_array(*args, **keywords)

    monkeypatch.setattr(medmnist, "cached_array", spy)
    first = load(root, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(medmnist, "_fit", None)
        assert load(root, workers=1).digest == first.digest
    assert given == [2, 1]
    # Another file under the name is another set.
    rewrite(root, train_images=IMAGES)
    assert load(root).digest != first.digest


# ---- playing and the example -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["pneumoniamnist", "bloodmnist"])
def test_the_environment_plays_it(root: Path, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if flag != "pneumoniamnist":
        write_example(root.parent, flag, 64)
    channels = 3 if SETS[flag].colour else 1
    for split in (*SPLITS, "all"):
        env: Any = gym.make("MaskAug-MedMNIST-v0", root=root, flag=flag, split=split, image_size=40, channels=channels)
        observation, info = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        assert observation.shape == (channels, 40, 40)
        assert 0 <= info["label"] < len(SETS[flag].classes)
        assert np.isfinite(env.step(env.action_space.sample())[1])
        assert env.unwrapped.dataset.source == "medmnist"
    monkeypatch.setenv("MASKAUG_DATA", str(root.parent))
    assert find_root("medmnist", None) == root
    assert load_dataset("medmnist", flag=flag, image_size=36, workers=1).class_names == SETS[flag].classes
    assert load(root.parent).digest == load(root).digest
    with pytest.raises(DatasetError, match="is not a folder"):
        load_dataset("medmnist", root=root / "pneumoniamnist.npz")


def test_the_example_is_the_same_again_and_spoils_nothing(made: Path, tmp_path: Path) -> None:
    file = write_example(tmp_path / "a")
    assert file.name == "pneumoniamnist.npz"
    held = arrays(file)
    assert {key: (value.shape, str(value.dtype)) for key, value in held.items()} == {
        "train_images": ((24, 28, 28), "uint8"),
        "train_labels": ((24, 1), "uint8"),
        "val_images": ((8, 28, 28), "uint8"),
        "val_labels": ((8, 1), "uint8"),
        "test_images": ((8, 28, 28), "uint8"),
        "test_labels": ((8, 1), "uint8"),
    }
    assert load(file.parent).digest == load(made).digest
    assert load(write_example(tmp_path / "b", seed=1).parent).digest != load(made).digest
    assert len(load(write_example(tmp_path / "c", n=13).parent)) == 13
    assert arrays(write_example(tmp_path / "d", "pathmnist", 64, n=45))["train_images"].shape == (27, 64, 64, 3)
    with pytest.raises(ConfigurationError, match="exists already"):
        write_example(tmp_path / "a")
    for wrong in ({"n": 9}, {"size": 32}, {"flag": "pneumoniamnist_64"}, {"flag": "chestmnist"}):
        with pytest.raises(ConfigurationError, match="use "):
            write_example(tmp_path / "e", **wrong)
    assert not (tmp_path / "e").exists()
