"""The proof that learning works at the size that the README reports; `make slow` runs it."""

from __future__ import annotations

import pytest

from maskaug.benchmarks.retention import RetentionSettings, retention


@pytest.mark.slow
def test_apga_finds_the_break_on_medium_radiographs() -> None:
    play = {"action": "grid", "repeat": 4, "fill": "blur", "n": 3000}
    summary = retention(RetentionSettings("MaskAug-Synthetic-v0", play), seeds=2)
    assert summary["retention.apga.mean"] >= 0.90
    assert summary["paired_difference.min"] >= -0.01  # against |input × gradient| of the same judge
    assert summary["retention.swapped.mean"] < 0.40  # image-specific, not a favourite place
    assert summary["cpu_ratio.mean"] <= 2
