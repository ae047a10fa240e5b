"""The cache and its sources: known by content, hashed where something was touched, verified where asked."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import pytest
from cache_toy import Reader, entries, make_reader
from tqdm import tqdm

from maskaug.envs import cache, cache_entry, sources
from maskaug.envs.cache import cache_folder, cached_array
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.sources import check_workers, hash_file, in_order, stamp_of

Hashed = list[str]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return make_reader(tmp_path / "data")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    """The names of all sources that are hashed; files of the test are as good as old."""
    seen: Hashed = []
    original = sources.hash_file

    def counted(path: Any) -> str:
        seen.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(sources, "hash_file", counted)
    monkeypatch.setattr(sources, "YOUNG", 0)
    return seen


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def chmod(file: Path) -> None:
    file.chmod(0o600)


def copy(file: Path) -> None:
    shutil.copy2(file, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("change", [touch, chmod, copy])
def test_the_same_content_is_kept_and_gets_its_new_stamp(
    reader: Reader, hashed: Hashed, change: Callable[[Path], None]
) -> None:
    reader.load()
    assert sorted(hashed) == ["0.txt", "1.txt", "2.txt"]
    del hashed[:]
    reader.load()
    assert hashed == []
    change(reader.root / "1.txt")
    assert reader.load().array[:, 0, 0].tolist() == [5, 6, 7]
    assert hashed == ["1.txt"]
    reader.load()
    assert hashed == ["1.txt"]
    assert reader.builds == 1
    assert len(entries()) == 2


def test_a_source_as_young_as_the_clock_is_hashed_once_more(
    reader: Reader, hashed: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = reader.root / "1.txt"
    monkeypatch.setattr(sources, "YOUNG", 3600 * 10**9)
    assert stamp_of(file) == (-1, -1, -1, -1)
    reader.load()
    del hashed[:]
    monkeypatch.setattr(sources, "YOUNG", 0)
    reader.load()
    assert sorted(hashed) == ["0.txt", "1.txt", "2.txt"]
    reader.load()
    assert len(hashed) == 3
    assert reader.builds == 1


def test_stamps_that_are_given_are_not_asked_for_again(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    files = reader.sources()
    reader.load()
    stamps = {str(path): stamp_of(path) for path in files}
    looks: list[Any] = []
    original = os.stat

    def looked(path: Any, **more: Any) -> os.stat_result:
        looks.append(path)
        return original(path, **more)

    monkeypatch.setattr(os, "stat", looked)
    cached = cached_array(
        "toy", root=reader.root, sources=stamps, parameters={}, items=files, decode=reader.decode,
    )  # fmt: skip
    assert cached.array[:, 0, 0].tolist() == [5, 6, 7]
    assert not [path for path in looks if str(path).endswith(".txt")]
    assert reader.builds == 1


def test_an_array_that_was_copied_is_hashed_and_kept(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.load()
    (array,) = cache_folder().glob("*.npy")
    copy(array)
    checked: list[Any] = []
    original = cache_entry._hash_rows

    def counted(file: Any) -> str:
        checked.append(file)
        return original(file)

    monkeypatch.setattr(cache_entry, "_hash_rows", counted)
    for _ in range(2):
        assert reader.load().array[:, 0, 0].tolist() == [5, 6, 7]
    assert reader.builds == len(checked) == 1


def test_a_cache_that_cannot_be_written_is_used_as_it_is(
    reader: Reader, hashed: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.load()
    touch(reader.root / "1.txt")

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock, "FileLock", refused)
    for _ in range(2):
        assert reader.load().array[:, 0, 0].tolist() == [5, 6, 7]
    assert hashed.count("1.txt") == 3
    assert reader.builds == 1


def test_nothing_is_written_below_the_data(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.txt").write_text("3")
    root.chmod(0o555)
    before = os.stat(root).st_mtime_ns, sorted(root.rglob("*"))

    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], None]:
        return np.full((1, 2, 2), int(path.read_text()), np.uint8), None

    for _ in range(2):
        files = [root / "a.txt"]
        cached = cached_array("toy", root=root, sources=files, parameters={}, items=files, decode=decode)
        assert np.asarray(cached.array).tolist() == [[[3, 3], [3, 3]]]
        assert (os.stat(root).st_mtime_ns, sorted(root.rglob("*"))) == before
    root.chmod(0o755)


# ---- what a manifest expects -----------------------------------------------------------------------------------------


def test_a_hash_that_is_given_is_verified(reader: Reader) -> None:
    right = hash_file(reader.root / "1.txt")
    assert right == hashlib.sha256(b"6").hexdigest()
    wrong = right.replace(right[0], "0" if right[0] != "0" else "1")
    for _ in range(2):
        with pytest.raises(ImageError, match=f"its SHA-256 is {right}, but {wrong} is given") as caught:
            reader.load(sha={"1.txt": wrong})
        assert caught.value.path == str(reader.root / "1.txt")
        assert entries() == []
    reader.load(sha={"1.txt": right.upper() + " "})
    assert reader.builds == 1
    # It is the content that counts, not who asked first.
    with pytest.raises(ImageError, match=r"1\.txt: its SHA-256"):
        reader.load(sha={"1.txt": wrong})
    (reader.root / "1.txt").write_text("8")
    with pytest.raises(ImageError, match=r"1\.txt: its SHA-256"):
        reader.load(sha={"1.txt": right})


# ---- while it is built -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["same", "other"])
def test_a_source_that_changes_while_it_is_read_is_refused(reader: Reader, hashed: Hashed, size: str) -> None:
    original = reader.decode

    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
        if path.name == "2.txt":
            (reader.root / "0.txt").write_text("9" if size == "same" else "99")
        return original(path)

    reader.decode = decode  # type: ignore[method-assign]
    with pytest.raises(DatasetError, match=r"0\.txt changed while it was read; load the data set again"):
        reader.load(workers=1)
    assert entries() == []
    reader.decode = original  # type: ignore[method-assign]
    assert reader.load().array[0, 0, 0] == (9 if size == "same" else 99)


def test_a_source_that_is_touched_while_it_is_read_is_the_same(reader: Reader, hashed: Hashed) -> None:
    original = reader.decode

    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
        touch(reader.root / "0.txt")
        return original(path)

    reader.decode = decode  # type: ignore[method-assign]
    reader.load()
    del hashed[:]
    reader.load()
    # The stamp from before is on record, so that it is looked at once more.
    assert hashed == ["0.txt"]
    reader.load()
    assert hashed == ["0.txt"]
    assert reader.builds == 1


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "2"])
def test_workers_are_a_number_of_threads(reader: Reader, workers: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"workers={workers!r} must be a whole number of threads"):
        reader.load(workers=workers)
    assert not cache_folder().exists()


def test_one_worker_is_no_thread_and_none_is_one_a_core(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    original = reader.decode

    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        return original(path)

    reader.decode = decode  # type: ignore[method-assign]
    reader.load(workers=1)
    assert threads == {threading.current_thread().name}
    threads.clear()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert check_workers(None) == 3
    reader.load(state="again")
    assert len(threads) == 3
    assert reader.load().array[:, 0, 0].tolist() == [5, 6, 7]


def test_few_are_in_flight_and_all_in_order() -> None:
    begun: list[int] = []

    def slow_first(i: int) -> int:
        begun.append(i)
        time.sleep(0.05 if i == 0 else 0)
        return i

    found = in_order(slow_first, range(100), 3)
    assert next(found) == 0
    assert len(begun) <= 8
    assert list(found) == list(range(1, 100))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_ends_it_soon_and_leaves_nothing(tmp_path: Path, workers: int) -> None:
    files = [tmp_path / f"{i:03}.txt" for i in range(200)]
    for file in files:
        file.write_text("1")
    decoded: list[Path] = []

    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], None]:
        decoded.append(path)
        if path == files[4]:
            raise ImageError(path, "is damaged")
        return np.zeros((1, 2, 2), np.uint8), None

    with pytest.raises(ImageError, match="is damaged"):
        cached_array(
            "toy", root=tmp_path, sources=files, parameters={}, items=files, decode=decode, workers=workers
        )  # fmt: skip
    assert len(decoded) < 20
    assert entries() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maskaug-decode")]


def test_the_bar_is_for_a_terminal_alone(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader.load()
    assert capsys.readouterr().err == ""
    bars: list[dict[str, Any]] = []
    original = tqdm

    def seen(**options: Any) -> Any:
        bars.append(options)
        return original(**options)

    monkeypatch.setattr(cache, "tqdm", seen)
    reader.load(state="again")
    assert bars == [{"total": 3, "desc": "decoding toy", "unit": "image", "disable": None, "leave": False}]
    files = reader.sources()
    cached_array(
        "toy", root=reader.root, sources=files, parameters={"b": 1}, items=files, decode=reader.decode, unit="batch"
    )
    assert bars[1]["unit"] == "batch"


def test_a_folder_or_nothing_is_no_source(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "not a file"), (tmp_path / "gone", "No such file")):
        with pytest.raises(OSError, match=words):
            stamp_of(path)
    with pytest.raises(DatasetError, match="gone cannot be looked at"):
        hash_file(tmp_path / "gone")


def test_folders_that_change_their_names_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKAUG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    for name, value in (("a", 3), ("b", 4)):
        (root / name).mkdir(parents=True)
        (root / name / "i.txt").write_text(str(value))
    # As old as it takes for their stamps to say something; all times alike, as an archive leaves them.
    monkeypatch.setattr(sources, "YOUNG", 0)
    stat = os.stat
    alike = stat(root / "a" / "i.txt")

    def same_times(path: Any, *more: Any, **options: Any) -> Any:
        found = stat(path, *more, **options)
        if not str(path).endswith(".txt"):
            return found
        return types.SimpleNamespace(
            st_mode=found.st_mode, st_size=found.st_size, st_ino=found.st_ino,
            st_mtime_ns=alike.st_mtime_ns, st_ctime_ns=alike.st_ctime_ns,
        )  # fmt: skip

    monkeypatch.setattr(os, "stat", same_times)

    def load() -> list[int]:
        files = [root / "a" / "i.txt", root / "b" / "i.txt"]
        read = Reader(root)
        cached = cached_array("toy", root=root, sources=files, parameters={}, items=files, decode=read.decode)
        return [int(row[0, 0]) for row in np.asarray(cached.array)]

    assert load() == load() == [3, 4]
    (root / "a").rename(root / "t")
    (root / "b").rename(root / "a")
    (root / "t").rename(root / "b")
    assert load() == [4, 3]


def test_who_may_read_the_cache_is_up_to_the_umask(reader: Reader) -> None:
    before = os.umask(0o077)
    try:
        reader.load()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in cache_folder().iterdir() if path.suffix != ".lock"} == {0o600}
