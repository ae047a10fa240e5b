"""`maskaug bench throughput`: how many images a second are stepped, chosen for and learnt from, against the bare judge.

What is measured stands in `throughput_settings`, how in `throughput_games`, `throughput_agents` and `timing`; here are
the table and its file.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maskaug.benchmarks import throughput_agents, throughput_games
from maskaug.benchmarks.throughput_games import FIGURES
from maskaug.benchmarks.throughput_settings import Game, ThroughputSettings
from maskaug.benchmarks.timing import Spread
from maskaug.envs.devices import resolve_device
from maskaug.envs.files import atomic_write

_AXES = tuple(field.name for field in dataclasses.fields(Game))
#: of the CSV file; each figure has two more, _p10 and _p90. What a row does not measure is empty.
COLUMNS = (
    "figure", "device", "threads", "seconds", *_AXES,
    *(name + part for name in FIGURES for part in ("", "_p10", "_p90")),
    "images_s", "judge_images_s", "memory_mb", "cuda_mb",
)  # fmt: skip


def throughput(
    settings: ThroughputSettings, out: Path | None = None, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure and print every row; a row is a dict with some of `COLUMNS`.

    Args:
        settings: what is measured.
        out: a CSV file to write beside the table, anew after every row.
        say: where lines for people go.
    """
    device = resolve_device(settings.device)
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    say(f"{name}; median of {settings.rounds} rounds; images a second ÷ the bare judge's, and native ÷ this row's")
    say(_line("", ("step", "+policy", "+training", "native ×", "÷ passes", "MB")))
    jobs: list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = [
        (_about(game), functools.partial(throughput_games.measured, game, settings, device)) for game in settings.games
    ]
    for agent, count in settings.agents:
        about: dict[str, Any] = {"figure": f"{SAID[agent]}, N={count}", "num_envs": count}
        jobs.append((about, functools.partial(throughput_agents.measured, agent, count, settings, device)))
    rows: list[dict[str, Any]] = []
    for about, measure in jobs:
        found = measure()
        spreads = [found.get(figure) for figure in FIGURES]
        cells = ["" if one is None else f"{one.median:.3f}" for one in spreads]
        say(_line(about["figure"], (*cells, f"{found['memory_mb']:.0f}")))
        rows.append({"device": name, "threads": threads, **about, **_flat(found)})
        if out is not None:
            atomic_write(out, lambda path: _write(path, rows))
    if out is not None:
        say(f"wrote {out}")
    return rows


SAID = {
    "apga": "APGA's training step, frozen judge, repeat=4",
    "apga_joint": "APGA's training step, joint, repeat=4",
    "apga_published": "APGA's training step, preset published",
    "intelligent_masking": "Intelligent Masking's training step",
    "intelligent_masking_published": "Intelligent Masking's training step, published",
    "ppo": "Stable-Baselines3's PPO collecting, patch",
}


def _about(game: Game) -> dict[str, Any]:
    usual = Game()
    axes = {name: getattr(game, name) for name in _AXES}
    told = [f"{k}={v}" for k, v in axes.items() if v != getattr(usual, k) and k not in ("num_envs", "vectorization")]
    return {"figure": ", ".join([f"{game.vectorization}, N={game.num_envs}", *told]), **axes}


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Spread):
            flat |= {name: value.median, f"{name}_p10": value.low, f"{name}_p90": value.high}
        else:
            flat[name] = value
    return flat


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<66}" + "".join(f"{cell:>10}" for cell in cells)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
