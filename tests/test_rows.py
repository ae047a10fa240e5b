"""`Rows`: an array that stays in its file is what numpy makes of the same array in memory."""

from __future__ import annotations

import copy
import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskaug.envs import rows as module
from maskaug.envs.building import HEADER, header
from maskaug.envs.errors import DatasetError
from maskaug.envs.pictures import Pictures, upload
from maskaug.envs.rows import RowFile, Rows, as_images, as_regions, blocks, loaded

N, PLANES, H, W = 23, 4, 5, 6
WHOLE = np.random.default_rng(0).integers(0, 256, (N, PLANES, H, W), np.uint8)
WHOLE[:, -1] &= 1


def write(path: Path, array: npt.NDArray[np.uint8] = WHOLE) -> RowFile:
    path.write_bytes(header(array.shape) + array.tobytes())
    return RowFile(path, HEADER, array.shape)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(write(tmp_path_factory.mktemp("rows") / "rows.npy"))


def views(rows: Rows) -> list[tuple[Rows, npt.NDArray[Any]]]:
    order = np.random.default_rng(1).permutation(N)[:15]
    return [
        (rows, WHOLE),
        (rows.planes(0, 3), WHOLE[:, :3]),
        (rows.planes(1, 3), WHOLE[:, 1:3]),
        (rows.plane(0), WHOLE[:, :1]),
        (rows.plane(2, 3), np.repeat(WHOLE[:, 2:3], 3, 1)),
        (rows.region(3), WHOLE[:, 3].astype(np.bool_)),
        (rows.take(order), WHOLE[order]),
        (rows.take(order).take([2, 2, -1]), WHOLE[order][[2, 2, -1]]),
        (rows.take(np.arange(N) % 3 == 0).plane(1, 3), np.repeat(WHOLE[::3, 1:2], 3, 1)),
        (rows.region(3).take(order), WHOLE[order][:, 3].astype(np.bool_)),
    ]


def same(a: Any, b: npt.NDArray[Any]) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b))


@pytest.mark.parametrize("which", range(10))
def test_what_numpy_would_give(rows: Rows, which: int) -> None:
    view, array = views(rows)[which]
    assert isinstance(view, Rows)
    assert (view.shape, view.dtype, view.ndim, len(view)) == (array.shape, array.dtype, array.ndim, len(array))
    assert view.nbytes == array.nbytes
    n = len(array)
    keys: list[Any] = [
        0, -1, n - 1, np.int64(1), slice(None), slice(2, 9), slice(None, None, -2), slice(5, 2), [1, 1, 0],
        np.array([2, 0, 2, -1]), np.array([], np.int64), [], np.arange(n) % 2 == 0, np.zeros(n, np.bool_),
        np.array([1, 2], np.uint8),
        (0, 0), (slice(0, 2), 0), (slice(None), slice(1, 3)), ([2, 0], slice(None), 1), (np.arange(n) % 2 == 1, 0),
    ]  # fmt: skip
    for key in keys:
        found = view[key]
        assert isinstance(found, np.ndarray)
        assert same(found, array[key if not isinstance(key, list) or key else np.array([], np.int64)]), key
        assert found.flags.writeable
    assert same(np.asarray(view), array)
    assert same(np.array(view), array)
    assert np.asarray(view, np.int64).dtype == np.int64
    assert all(same(a, b) for a, b in zip(view, array, strict=True))
    assert torch.equal(torch.from_numpy(view[:3]), torch.from_numpy(array[:3].copy()))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_index_of_any_view(rows: Rows, data: st.DataObject) -> None:
    view, array = rows, WHOLE
    for _ in range(data.draw(st.integers(0, 3))):
        index = np.array(data.draw(st.lists(st.integers(-len(view), len(view) - 1), min_size=1, max_size=30)))
        view, array = view.take(index), array[index]
    key = np.array(data.draw(st.lists(st.integers(-len(view), len(view) - 1), max_size=30)), np.int64)
    assert same(view[key], array[key])
    ends = st.one_of(st.none(), st.integers(-30, 30))
    part = slice(data.draw(ends), data.draw(ends), data.draw(st.sampled_from([None, 1, 2, -1, -3])))
    assert same(view[part], array[part])


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (N, "there are 23 images"), (-N - 1, "there are 23 images"), ([0, N], "there are 23 images"),
        (np.zeros(3, np.bool_), "one value for each of the 23"), (1.5, r"\(M,\) integers"), ([1.5], r"\(M,\) integers"),
        ([[0, 1]], r"\(M,\) integers"), (True, r"\(M,\) integers"), (None, r"\(M,\) integers"),
        ("a", r"\(M,\) integers"),
        ((), "beyond their first axis"), ((0, [1]), "beyond their first axis"), ((0, None), "beyond their first axis"),
    ],
)  # fmt: skip
def test_a_wrong_index_says_so(rows: Rows, key: Any, words: str) -> None:
    with pytest.raises(IndexError, match=words):
        rows[key]


def test_what_cannot_be(rows: Rows) -> None:
    for first, last in ((4, 5), (2, 2), (-1, 2), (3, 2)):
        with pytest.raises(IndexError, match="are not among the 4"):
            rows.planes(first, last)
    with pytest.raises(IndexError, match="only one plane"):
        Rows(rows._file, None, (0, 2), 3)
    with pytest.raises(IndexError, match="only one plane"):
        Rows(rows._file, region=True)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(rows, copy=False)


def test_copies_and_pickles_hold_no_pixels(rows: Rows) -> None:
    for view, array in views(rows):
        packed = pickle.dumps(view)
        assert len(packed) < 1500
        for again in (pickle.loads(packed), copy.copy(view), copy.deepcopy(view)):  # noqa: S301 (our own)
            assert isinstance(again, Rows)
            assert same(again[:], array)
    assert copy.deepcopy(rows) is rows


def test_the_file_is_open_as_long_as_it_is_used(tmp_path: Path) -> None:
    view = Rows(write(tmp_path / "rows.npy")).take([3, 1])
    descriptor = view._file.descriptor
    (tmp_path / "rows.npy").unlink()
    # Another process may have replaced the entry: who has it open reads on.
    assert same(view[:], WHOLE[[3, 1]])
    packed = pickle.dumps(view)
    with pytest.raises(DatasetError, match=r"rows\.npy cannot be opened .*; start again to rebuild it"):
        pickle.loads(packed)  # noqa: S301
    del view
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    view = Rows(write(tmp_path / "rows.npy"))
    os.truncate(tmp_path / "rows.npy", HEADER + WHOLE[:4].size + 7)
    assert same(view[:4], WHOLE[:4])
    for key in (4, slice(0, 6), [22]):
        with pytest.raises(DatasetError, match=r"rows\.npy is shorter than its 23 images; start again to rebuild it"):
            view[key]
    with pytest.raises(DatasetError, match="is shorter than"):
        RowFile(tmp_path / "rows.npy", HEADER, WHOLE.shape)


@pytest.mark.parametrize("most", [1, 7, 100])
def test_reads_that_come_in_pieces_are_put_together(rows: Rows, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    original = os.preadv

    def piecewise(descriptor: int, buffers: Any, start: int) -> int:
        return original(descriptor, [buffers[0].reshape(-1)[:most]], start)

    monkeypatch.setattr(os, "preadv", piecewise)
    assert same(rows[2:6], WHOLE[2:6])
    monkeypatch.setattr(module, "_BUFFERS", 2)
    monkeypatch.setattr(os, "preadv", original)
    assert same(rows[:], WHOLE)


def test_a_disk_that_fails_is_named(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(DatasetError, match=r"cannot be read \(Input/output error\)"):
        rows[0]


def test_threads_may_share_one(rows: Rows) -> None:
    def look(seed: int) -> bool:
        index = np.random.default_rng(seed).integers(0, N, 64)
        return same(rows[index], WHOLE[index])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(200)))


def test_images_and_regions_are_the_same_in_memory_and_in_a_file(rows: Rows) -> None:
    for planes, channels in ((1, 1), (1, 3), (3, 3)):
        in_file, in_memory = as_images(rows, planes, channels), as_images(WHOLE, planes, channels)
        assert isinstance(in_file, Rows)
        assert isinstance(in_memory, np.ndarray)
        assert same(in_file[:], in_memory)
    assert same(as_regions(rows)[:], np.asarray(as_regions(WHOLE)))
    assert as_regions(rows).dtype == np.bool_


def test_blocks_are_all_of_it_a_few_at_a_time(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    for block, count in ((2**25, 1), (3 * WHOLE[0].size, 8), (1, N)):
        monkeypatch.setattr(module, "BLOCK", block)
        for array in (rows, WHOLE, WHOLE[:, ::2]):
            parts = list(blocks(array))
            assert len(parts) == (count if array is not WHOLE[:, ::2] and array.nbytes == WHOLE.nbytes else len(parts))
            assert all(part.flags.c_contiguous for part in parts)
            assert same(np.concatenate(parts), np.asarray(array))


def test_what_is_small_is_loaded(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", WHOLE.nbytes)
    small = loaded(rows._file)
    assert isinstance(small, np.ndarray)
    assert not small.flags.writeable
    assert same(small, WHOLE)
    monkeypatch.setattr(module, "IN_MEMORY", WHOLE.nbytes - 1)
    assert isinstance(loaded(rows._file), Rows)


def test_pictures_of_a_file_stay_there_on_a_cpu_and_go_to_a_device_in_pieces(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = rows.plane(0, 3)
    pictures = Pictures(images, torch.device("cpu"), resident=True)
    assert pictures.resident is None
    assert torch.equal(pictures.at(np.array([3, 3 + N])), torch.from_numpy(
        np.stack([images[3], images[3][..., ::-1]])
    ))  # fmt: skip
    monkeypatch.setattr(module, "BLOCK", 2 * images[0].nbytes)
    reads: list[int] = []
    original = Rows._read

    def read(self: Rows, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        reads.append(len(numbers))
        return original(self, numbers)

    monkeypatch.setattr(Rows, "_read", read)
    assert torch.equal(upload(images, torch.device("cpu")), torch.from_numpy(np.asarray(images)))
    assert max(reads[:-1]) == 2
