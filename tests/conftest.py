"""What every test gets: one thread, no real data, and a cache folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """How many cores a machine has must change neither a result's last bits nor how the tests share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nobodys_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's data nor the developer's cache may decide what a test sees."""
    monkeypatch.delenv("MASKAUG_DATA", raising=False)
    monkeypatch.setenv("MASKAUG_CACHE", str(tmp_path / "cache"))
