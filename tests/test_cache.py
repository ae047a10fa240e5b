import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import pytest
from cache_toy import Reader, entries, make_reader

from maskaug.envs import cache_entry
from maskaug.envs import rows as rows_module
from maskaug.envs.cache import cache_folder, cached_array
from maskaug.envs.errors import DatasetError
from maskaug.envs.rows import Rows


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return make_reader(tmp_path / "data")


def test_the_second_time_nothing_is_decoded(reader: Reader) -> None:
    first, second = reader.load(), reader.load()
    assert reader.builds == 1
    for cached in (first, second):
        assert cached.array[:, 0, 0].tolist() == [5, 6, 7]
        assert cached.details == {"names": ["0.txt", "1.txt", "2.txt"]}
        assert isinstance(cached.array, np.ndarray)
        assert not cached.array.flags.writeable
    assert {Path(name).suffix for name in entries()} == {".json", ".npy"}
    assert len(entries()) == 2


def test_parameters_have_entries_of_their_own(reader: Reader) -> None:
    reader.load(size=1)
    reader.load(size=2)
    reader.load(size=1)
    assert reader.builds == 2
    assert len(entries()) == 4


def forge(index: Path, **changes: Any) -> None:
    """Change an index as somebody would who also puts its own hash right."""
    body = json.dumps({**json.loads(index.read_text())["entry"], **changes}, separators=(",", ":"))
    index.write_text(f'{{"check": "{hashlib.sha256(body.encode()).hexdigest()}", "entry": {body}}}\n')


def test_another_state_replaces_the_entry(reader: Reader) -> None:
    reader.load(state=["a", "b"])
    reader.load(state=["a", "b"])
    assert reader.builds == 1
    reader.load(state=["b", "a"])
    assert reader.builds == 2
    assert len(entries()) == 2


@pytest.mark.parametrize("change", ["content", "same size", "added", "removed"])
def test_a_changed_source_rebuilds_and_sweeps_the_old_entry(reader: Reader, change: str) -> None:
    reader.load()
    file = reader.root / "1.txt"
    if change == "content":
        file.write_text("99")
    elif change == "same size":
        before = file.stat()
        file.write_text("9")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "added":
        (reader.root / "9.txt").write_text("9")
    else:
        file.unlink()
    expected = [int(path.read_text()) for path in reader.sources()]
    assert reader.load().array[:, 0, 0].tolist() == expected
    assert reader.builds == 2
    assert len(entries()) == 2


def test_the_order_of_the_sources_does_not_matter(reader: Reader) -> None:
    reader.load()
    again = cached_array(
        "toy", root=reader.root, sources=reader.sources(), parameters={}, items=reader.sources(), decode=reader.decode
    )
    assert len(again.array) == 3
    assert len(entries()) == 2


@pytest.mark.parametrize(
    "damage",
    ["half array", "longer array", "flipped byte", "flipped byte, old time", "header", "no array", "half index",
     "flipped index", "wrong index", "forged shape", "old format", "list"],
)  # fmt: skip
def test_a_damaged_entry_is_built_anew(reader: Reader, damage: str) -> None:
    reader.load()
    index, array = (cache_folder() / name for name in sorted(entries(), key=lambda name: Path(name).suffix))
    raw = array.read_bytes()
    if damage == "half array":
        array.write_bytes(raw[: len(raw) - 9])
    elif damage == "longer array":
        array.write_bytes(raw + b"x")
    elif damage.startswith("flipped byte"):
        before = array.stat()
        array.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        if damage.endswith("old time"):
            os.utime(array, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif damage == "header":
        array.write_bytes(raw.replace(b"(3, 3, 4)", b"(3, 4, 3)"))
    elif damage == "flipped index":
        index.write_bytes(index.read_bytes().replace(b"0.txt", b"2.txt"))
    elif damage == "forged shape":
        forge(index, shape=[36])
    elif damage == "old format":
        index.write_text(
            json.dumps({"format": 1, "fingerprint": "x", "sha256": "x", "shape": [3, 3, 4], "details": {}})
        )
    elif damage == "no array":
        array.unlink()
    elif damage == "half index":
        index.write_bytes(index.read_bytes()[:20])
    elif damage == "list":
        index.write_text("[1]")
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "shape": [36]}))
    assert reader.load().array[:, 0, 0].tolist() == [5, 6, 7]
    assert reader.builds == 2
    reader.load()
    assert reader.builds == 2


def test_pickles_are_never_opened(reader: Reader) -> None:
    reader.load()
    array = next(cache_folder().glob("*.npy"))
    with array.open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    index = next(cache_folder().glob("*.json"))
    found = array.stat()
    forge(index, array=[found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])
    assert reader.load().array.dtype == np.uint8
    assert reader.builds == 2


def test_what_a_killed_writer_left_is_swept(reader: Reader) -> None:
    reader.load()
    array = next(cache_folder().glob("*.npy"))
    half = cache_folder() / f".{array.stem.rpartition('-')[0]}.abc.part"
    for change in (False, True):
        half.write_bytes(b"half")
        if change:
            (reader.root / "1.txt").write_text("99")
        reader.load()
        assert not list(cache_folder().glob(".*"))


def test_what_a_killed_writer_of_another_entry_left_is_swept_unless_he_is_alive(reader: Reader) -> None:
    reader.load()
    stem = f"other-{'0123456789abcdef'}"
    half, foreign = cache_folder() / f".{stem}.xyz.part", cache_folder() / ".somebody else's.part"
    half.write_bytes(b"half")
    foreign.write_bytes(b"mine")
    with filelock.FileLock(cache_folder() / f"{stem}.lock"):
        reader.load()
        assert half.exists()
    reader.load()
    assert not half.exists()
    assert foreign.exists()


def test_an_unusable_folder_keeps_the_images_in_memory(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKAUG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="stay in memory; set MASKAUG_CACHE"):
        cached = reader.load()
    assert cached.array[:, 0, 0].tolist() == [5, 6, 7]
    assert cached.details == {"names": ["0.txt", "1.txt", "2.txt"]}
    assert isinstance(cached.array, np.ndarray)
    assert not cached.array.flags.writeable


def test_a_full_disk_keeps_the_images_in_memory(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        cached = reader.load()
    assert cached.array[:, 0, 0].tolist() == [5, 6, 7]
    assert reader.builds == 1
    assert entries() == []


def test_a_disk_that_fills_up_on_the_way_costs_nothing_twice(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = os.write, 128 + 12 + 5

    def write(descriptor: int, data: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(28, "No space left on device")
        done = original(descriptor, data[:left])
        left -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with pytest.warns(UserWarning, match="No space left on device"):
        cached = reader.load(workers=1)
    monkeypatch.setattr(os, "write", original)
    assert np.asarray(cached.array).tolist() == [[[value] * 4] * 3 for value in (5, 6, 7)]
    assert sorted(reader.decoded) == ["0.txt", "1.txt", "2.txt"]
    assert entries() == []
    assert np.array_equal(reader.load().array, cached.array)


def test_an_index_that_cannot_be_written_keeps_the_images_in_memory(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(cache_entry, "atomic_write", full)
    with pytest.warns(UserWarning, match="Disk quota exceeded"):
        cached = reader.load()
    assert cached.array[:, 0, 0].tolist() == [5, 6, 7]
    assert entries() == []


def test_a_file_system_without_locks_keeps_the_images_in_memory(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    with pytest.warns(UserWarning, match="does not appear to support flock"):
        assert reader.load().array[:, 0, 0].tolist() == [5, 6, 7]
    assert entries() == []


def test_rows_must_be_bytes_of_one_shape(reader: Reader) -> None:
    files = reader.sources()
    shapes = {path: (1, 2, 2 + i // 2) for i, path in enumerate(files)}
    wrong: list[tuple[Any, str]] = [
        (lambda path: (np.zeros(shapes[path], np.uint8), None), "of one shape"),
        (lambda path: (np.zeros((1, 2)), None), "float64"),
        (lambda path: (np.zeros((0, 2), np.uint8), None), "at least one value"),
    ]
    for decode, words in wrong:
        with pytest.raises(TypeError, match=words):
            cached_array("toy", root=reader.root, sources=files, parameters={}, items=files, decode=decode)
        assert entries() == []


def test_large_arrays_stay_in_their_file(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, kind in ((36, np.ndarray), (35, Rows)):
        monkeypatch.setattr(rows_module, "IN_MEMORY", limit)
        cached = reader.load()
        assert isinstance(cached.array, kind)
        assert np.array_equal(cached.array, np.repeat([5, 6, 7], 12).reshape(3, 3, 4))
    assert reader.builds == 1


def test_errors_of_the_decoder_pass_through(reader: Reader) -> None:
    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], None]:
        raise DatasetError("no good")

    files = reader.sources()
    with pytest.raises(DatasetError, match="no good"):
        cached_array("toy", root=reader.root, sources=files, parameters={}, items=files, decode=decode)
    assert entries() == []
    gone = reader.root / "gone.txt"
    with pytest.raises(DatasetError, match=r"gone\.txt"):
        cached_array("toy", root=reader.root, sources=[gone], parameters={}, items=files, decode=reader.decode)


def _load(root: Path, results: Any) -> None:
    results.put(np.asarray(Reader(root, slow=0.3).load().array)[:, 0, 0].tolist())


def test_eight_processes_at_once_build_it_once(reader: Reader) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskaug.envs.cache"])
    results = context.Queue()
    workers = [context.Process(target=_load, args=(reader.root, results)) for _ in range(8)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers == [[5, 6, 7]] * 8
    assert (reader.root / "builds.log").read_text() == "built\n"
    assert len(entries()) == 2


def test_the_folder_is_the_users_cache_unless_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKAUG_CACHE", raising=False)
    assert "maskaug" in str(cache_folder())
    monkeypatch.setenv("MASKAUG_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
