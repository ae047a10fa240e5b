"""The demo end to end at a size that says nothing, and the README's code as written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from maskaug.benchmarks.demo import DemoSettings, demo
from maskaug.envs.registration import TABLE

README = Path(__file__).resolve().parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_demo_leaves_what_the_issue_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = DemoSettings(
        images=160, judge_updates=10, timesteps=512, labels=40, classifier_updates=4, classifier_seeds=2
    )
    returned = demo(tmp_path / "demo", settings)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results == returned
    for name in ("random", "swapped", "input_gradient", "published", "apga"):
        assert 0 <= results[f"retention_at_25.{name}"] <= 1
    assert abs(results["retention_at_25.random"] - 0.25) < 0.1
    assert 0 <= results["auroc.clean"] <= 1
    assert 0 <= results["auroc.masked"] <= 1
    for name in ("masks.png", "masker.safetensors", "judge.safetensors"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert "APGA as published" in capsys.readouterr().out


def test_the_readme_has_the_three_uses() -> None:
    assert len(SNIPPETS) >= 3


def test_the_readme_lists_every_id() -> None:
    text = README.read_text(encoding="utf-8")
    assert [row.id for row in TABLE if f"| `{row.id}` |" not in text] == []


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.splitlines()[-1][:40])
def test_readme_code_runs_as_written(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
