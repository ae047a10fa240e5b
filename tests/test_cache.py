import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from maskaug.envs.cache import cache_folder, cached_array
from maskaug.envs.cache_entry import Cached
from maskaug.envs.errors import DatasetError


class Reader:
    """A data set of text files: image i is filled with the number that stands in file i."""

    def __init__(self, root: Path, slow: float = 0.0) -> None:
        self.root, self.slow, self.builds = root, slow, 0

    def sources(self) -> list[Path]:
        return sorted(self.root.glob("*.txt"))

    def decode(self, path: Path) -> tuple[npt.NDArray[np.uint8], str]:
        return np.full((1, 3, 4), int(path.read_text()), np.uint8), path.name

    def finish(self, notes: list[str]) -> dict[str, Any]:
        self.builds += 1
        with (self.root / "builds.log").open("a") as log:
            log.write("built\n")
        time.sleep(self.slow)
        return {"names": tuple(notes)}

    def load(self, **parameters: Any) -> Cached:
        sources = self.sources()
        return cached_array(
            "toy",
            root=self.root,
            sources=reversed(sources),
            parameters=parameters,
            items=sources,
            decode=self.decode,
            finish=self.finish,
        )


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setenv("MASKAUG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.txt").write_text(str(i + 5))
    return Reader(root)


def entries() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir() if path.suffix != ".lock")


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


@pytest.mark.parametrize("change", ["content", "time", "added", "removed"])
def test_a_changed_source_rebuilds_and_sweeps_the_old_entry(reader: Reader, change: str) -> None:
    reader.load()
    file = reader.root / "1.txt"
    if change == "content":
        file.write_text("99")
    elif change == "time":
        os.utime(file, ns=(1, 1))
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


@pytest.mark.parametrize("damage", ["half array", "flipped byte", "no array", "half index", "wrong index", "list"])
def test_a_damaged_entry_is_built_anew(reader: Reader, damage: str) -> None:
    reader.load()
    index, array = (cache_folder() / name for name in sorted(entries(), key=lambda name: Path(name).suffix))
    raw = array.read_bytes()
    if damage == "half array":
        array.write_bytes(raw[: len(raw) - 9])
    elif damage == "flipped byte":
        array.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
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
    digest = hashlib.sha256(array.read_bytes()).hexdigest()
    index.write_text(json.dumps({**json.loads(index.read_text()), "sha256": digest}))
    assert reader.load().array.dtype == np.uint8
    assert reader.builds == 2


def test_what_a_killed_writer_left_is_swept(reader: Reader) -> None:
    reader.load()
    array = next(cache_folder().glob("*.npy"))
    (cache_folder() / f".{array.name}.abc.part").write_bytes(b"half")
    (reader.root / "1.txt").write_text("99")
    reader.load()
    assert not list(cache_folder().glob(".*"))


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
    cached = Reader(root, slow=0.5).load()
    results.put(cached.array[:, 0, 0].tolist())


def test_two_processes_at_once_build_it_once(reader: Reader) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_load, args=(reader.root, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers == [[5, 6, 7]] * 2
    assert (reader.root / "builds.log").read_text() == "built\n"


def test_the_folder_is_the_users_cache_unless_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKAUG_CACHE", raising=False)
    assert "maskaug" in str(cache_folder())
    monkeypatch.setenv("MASKAUG_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
