"""The benchmark for a GPU, as far as a CPU can run it."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from maskaug.benchmarks import device_throughput as module
from maskaug.benchmarks.device_throughput import WAYS, DeviceSettings, device_throughput
from maskaug.envs.acceleration import Acceleration
from maskaug.envs.errors import ConfigurationError
from maskaug.options import Way

TINY = DeviceSettings("small", 40, 12, ("eager", "bf16"), rounds=2, steps=1)


def test_every_row_is_measured_said_and_written(tmp_path: Path) -> None:
    said: list[str] = []
    rows = device_throughput(TINY, (2, 3), "cpu", tmp_path / "rows.csv", said.append)
    seen = [(row["num_envs"], row["way"], row["tensors"]) for row in rows]
    assert seen == [(n, way, tensors) for n in (2, 3) for way in ("eager", "bf16") for tensors in (True, False)]
    for row in rows:
        assert row["device"].startswith("CPU")
        assert row["ratio"] > 0
        assert row["environment_images_s"] > 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in written] == [row["ratio"] for row in rows]
    assert len([line for line in said if "tensors" in line]) == 4
    assert set(WAYS) == set(get_args(Way))


def test_both_sides_are_computed_alike_and_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[str, int]] = []
    original = Acceleration.forward

    def counted(self: Acceleration, network: Any, images: Any) -> Any:
        passes.append((self.precision, len(images)))
        return original(self, network, images)

    monkeypatch.setattr(Acceleration, "forward", counted)
    settings = DeviceSettings("small", 40, 12, ("bf16",), rounds=3, steps=2)
    module.one_row(settings, 4, "bf16", True, torch.device("cpu"))
    assert {precision for precision, _ in passes} == {"bf16"}
    # Warm-up and three rounds of two steps on both sides; the first pass over the data asks for clean losses too.
    assert passes[-6 * 2 :] == [("bf16", 4)] * 12


@pytest.mark.parametrize(
    ("changes", "num_envs", "words"),
    [({"ways": ("fast",)}, (2,), "some of"), ({"ways": ()}, (2,), "some of"), ({}, (), "at least 1"),
     ({}, (0,), "at least 1"), ({"rounds": 0}, (2,), "rounds"), ({"steps": 0}, (2,), "steps")],
)  # fmt: skip
def test_bad_input_is_refused(changes: dict[str, Any], num_envs: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        device_throughput(dataclasses.replace(TINY, **changes), num_envs, "cpu")
