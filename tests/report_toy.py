"""A small folder of everything that `maskaug report` shows, hostile names included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskaug.benchmarks.gallery import write_gallery
from maskaug.benchmarks.tables import Table, write_tables

#: what would run, were it not escaped; no "/", so that it can be a file's name.
EVIL = "<script>document.title='owned'<img src=x onerror=alert(1)>\"'&amp;"
VERSIONS = {"maskaug": "0.1.0", "torch": "2.13.0", "commit": "0123abc"}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def picture(path: Path, width: int = 60, height: int = 40, noisy: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((height, width, 3), np.uint8)
    if noisy:
        values = np.random.default_rng(0).integers(0, 256, values.shape).astype(np.uint8)
    Image.fromarray(values).save(path)


def trained(folder: Path, seed: int = 0, agent: str = "APGA", env_id: str = "MaskAug-BUSI-v0", **data: Any) -> Path:
    """What `maskaug train` leaves: by default on a stand-in for BUSI."""
    about = {"name": "synthetic-ultrasound", "source": "synthetic", "images": 42, "digest": "d1g35t", **data}
    asked = {"agent": agent, "env_id": env_id, "seed": seed, "env": {"area": 0.25}, "settings": {}}
    resolved = {"data": about, "env": {"dataset": "busi", "objective": "adversarial"}}
    write(folder / "config.json", {"asked": asked, "resolved": resolved, "versions": VERSIONS})
    steps = np.arange(1, 41) * 16
    rewards = np.log(steps) / 10 + 0.03 * np.sin(steps + seed) + 0.05 * seed
    rows = [f"{t},{r!r},{'nan' if t < 100 else 1 / t}" for t, r in zip(steps.tolist(), rewards.tolist(), strict=True)]
    write(folder / "metrics.csv", "\n".join(["timesteps,rollout/ep_rew_mean,train/judge_loss", *rows, "640,0.7"]))
    write(folder / "results.json", {"timesteps": 640.0, "val.retention.agent": 0.5 + seed / 10, "judge.val.auroc": 0.9})
    picture(folder / "masks.png")
    return folder


def cell(folder: Path, results: Mapping[str, float] | None = None, data: Any = None, **asked: Any) -> Path:
    """A cell of a grid; unfinished without results."""
    write(folder / "config.json", {"asked": asked, "work": "maskaug.benchmarks.cells:arm_cell", "versions": VERSIONS})
    if results is not None:
        write(folder / "results.json", results)
    if data is not None:
        write(folder / "data.json", data)
    return folder


def gallery(path: Path, images: int = 4, side: int = 32, channels: int = 1, **more: Any) -> None:
    """Squares as regions; the arm "hit" selects them, "half" their left half, `EVIL` everything."""
    rng = np.random.default_rng(3)
    shown = rng.integers(40, 120, (images, channels, side, side)).astype(np.uint8)
    regions = np.zeros((images, side, side), np.bool_)
    for i in range(images):
        top = 2 + 3 * i
        regions[i, top : top + 8, 8:16] = True
        shown[i][:, regions[i]] = 230
    half = regions.copy()
    half[:, :, 12:] = False
    masks = {"hit": regions, "half": half, EVIL: np.ones_like(regions)}
    write_gallery(path, shown, masks, regions, names=[f"image {i} {EVIL}" for i in range(images)], **more)


def everything(root: Path) -> Path:
    """Runs, cells, tables, figures and a gallery below `root`."""
    for seed in (0, 1, 10):
        trained(root / f"apga/seed{seed}", seed)
    trained(root / "dqn/seed1", 1, "DQN", source="busi", name="busi")
    for i, (arm, auroc) in enumerate({"none": 0.8, "random": 0.79, "apga": 0.861, EVIL: -1.5e-7}.items()):
        data = {"name": "mura", "source": "mura", "digest": "m1"}
        cell(root / f"grid/cell{i}", {"test.auroc": auroc, "test.f1": auroc / 2}, data, arm=arm, seed=i, k_shot=25 * i)
    broken = cell(root / "grid" / EVIL, arm="cutout", seed=0, k_shot=25)
    trace = f'Traceback (most recent call last):\n  File "x.py"\nRuntimeError: {EVIL}'
    write(broken / "error.json", {"type": "RuntimeError", "message": f"out of memory {EVIL}", "traceback": trace})
    cell(root / "grid/left", arm="oracle", seed=0, k_shot=25)
    rows: list[list[float | str | None]] = [
        ["none", 0.812, "0.812 [0.790, 0.830]", "3 of 10"], ["apga", 0.861, "0.861 [0.842, 0.880]", "12 of 10"],
        ["random", None, None, "–"], [EVIL, -2, "−0.3 %", "no"],
    ]  # fmt: skip
    tables = [
        Table("AUROC by arm", ["arm", "AUROC", "with interval", "words"], rows, "95 % intervals, clustered by patient"),
        Table(EVIL, [EVIL, "n"], [[EVIL, 1]], EVIL, "3 of 20 runs are left", stand_in=True),
    ]
    (root / "analysis").mkdir()
    write_tables(root / "analysis/tables.json", tables)
    picture(root / "analysis" / f"forest {EVIL}.png")
    gallery(root / "analysis/gallery.safetensors", title="Hard radiographs", note=f"25 % of the image {EVIL}")
    return root
