"""The benchmark of the data: that it measures what it says, at a size that takes seconds."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskaug.benchmarks import data_throughput as module
from maskaug.benchmarks.data_throughput import DataSettings, data_throughput, random_batches, stand_in
from maskaug.benchmarks.timing import in_turn
from maskaug.cli import main
from maskaug.envs import rows
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.images import read_grey
from maskaug.envs.mura import list_mura

TINY = DataSettings(
    pictures=6, source_size=64, image_size=40, rounds=2, batch=4, batches=2, images=72, link_size=48, starts=1
)  # fmt: skip


def test_the_stand_in_is_a_data_set_of_real_files(tmp_path: Path) -> None:
    listing = list_mura(stand_in(tmp_path, 72, 6, 48))
    assert len(listing.entries) == 72
    assert {entry.split for entry in listing.entries} == {"train", "test"}
    for split in ("train", "test"):
        assert {entry.label for entry in listing.entries if entry.split == split} == {0, 1}
    assert len({entry.path for entry in listing.entries}) == 72
    assert len({entry.path.stat().st_ino for entry in listing.entries}) == 6
    pictures = {read_grey(entry.path).tobytes() for entry in listing.entries}
    assert len(pictures) == 6
    assert read_grey(listing.entries[0].path).shape == (48, 48)


def test_everything_is_measured_said_and_written_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--pictures", "6", "--source-size", "64", "--image-size", "40", "--rounds", "2", "--images", "72",
        "--link-size", "48", "--starts", "1", "--folder", str(tmp_path), "--out", str(tmp_path / "data.json"),
    ]  # fmt: skip
    cache = os.environ["MASKAUG_CACHE"]
    assert main(["bench", "data", *words]) == 0
    # Nothing stays, and nobody's own cache was touched.
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
    assert os.environ["MASKAUG_CACHE"] == cache
    found = json.loads((tmp_path / "data.json").read_text())
    assert found["settings"]["images"] == 72
    assert str(tmp_path) not in json.dumps(found)
    caching, batches, start = (found[name] for name in ("first_caching", "random_batches", "second_start"))
    assert caching["ratio"] > 0.9
    assert caching["decode_images_cpu_s"] > 0
    assert batches["ratio"] > 1
    assert batches["in_file"] is False
    assert start["cache_mb"] == (72 * 40 * 40 + 128) / 2**20
    assert 0 < start["first_batch_s"] < start["process_s"]
    assert start["peak_mb"] >= start["imports_mb"] > 50
    printed = capsys.readouterr().out
    for number in (f"ratio {caching['ratio']:.3f}", f"{batches['ratio']:.0f} times", f"{start['first_batch_s']:.2f} s"):
        assert number in printed


def test_the_second_start_decodes_nothing(tmp_path: Path) -> None:
    root = stand_in(tmp_path, 72, 6, 48)
    with module.cache_at(tmp_path / "cache"):
        random_batches(root, root, TINY)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.npy")}
        module.second_starts(root, TINY)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.npy")} == before
        assert len(before) == 1
    with pytest.raises(ConfigurationError, match=r"the second start failed: .*nowhere"):
        module.second_starts(tmp_path / "nowhere", TINY)


def test_batches_of_a_large_cache_come_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    root = stand_in(tmp_path, 72, 6, 48)
    reads: list[int] = []
    original = rows.Rows._read

    def read(self: rows.Rows, numbers: Any) -> Any:
        reads.append(len(numbers))
        return original(self, numbers)

    monkeypatch.setattr(rows.Rows, "_read", read)
    assert random_batches(root, root, TINY)["in_file"] is True
    assert reads == [4] * (2 * 3)


def test_sides_take_turns_and_the_first_does_not_count() -> None:
    calls: list[str] = []

    def busy(name: str, seconds: float) -> None:
        calls.append(name)
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    a, b = in_turn((lambda: busy("a", 0.01), lambda: busy("b", 0.03)), 3)
    assert "".join(calls) == "abbaabba"
    assert a.shape == b.shape == (3,)
    assert 2 < float(np.median(b / a)) < 4


@pytest.mark.parametrize("change", [{"pictures": 0}, {"rounds": 0}, {"images": 39}, {"starts": 0}, {"link_size": 7}])
def test_bad_input_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value} must be at least"):
        data_throughput(dataclasses.replace(TINY, **change), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
