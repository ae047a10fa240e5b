"""`maskaug bench throughput`: how many images a second are stepped, chosen for and learnt from, against the bare judge.

What is measured stands in `throughput_settings`, how in `throughput_games`, `throughput_agents` and `timing`; here are
the table and its files.
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
from maskaug.benchmarks.tables import TABLES, Cell, Table, write_tables
from maskaug.benchmarks.throughput_games import FIGURES
from maskaug.benchmarks.throughput_settings import Game, ThroughputSettings
from maskaug.benchmarks.timing import Spread
from maskaug.envs.devices import resolve_device
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import atomic_write, write_text

_AXES = tuple(field.name for field in dataclasses.fields(Game))
#: of results.csv; each figure has two more, _p10 and _p90. What a row does not measure is empty.
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
        out: a folder for results.csv, tables.json and tables.md, which are written anew after every row.
        say: where lines for people go.

    Raises:
        ConfigurationError: `out` is a file, or the device is not there.
    """
    device = resolve_device(settings.device)
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ConfigurationError(f"out={str(out)!r} is a file, and must be a folder: its results.csv is the file")
        out.mkdir(parents=True, exist_ok=True)
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
            _write(out, rows, settings.rounds, len(jobs))
    if out is not None:
        say(f"wrote {out}/")
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


def _write(out: Path, rows: Sequence[Mapping[str, Any]], rounds: int, wanted: int) -> None:
    def as_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(out / "results.csv", as_csv)
    shown = table(rows, rounds)
    if len(rows) < wanted:
        shown = dataclasses.replace(shown, unfinished=f"{len(rows)} of {wanted} rows are measured")
    write_tables(out / TABLES, [shown])
    write_text(out / "tables.md", shown.markdown() + "\n")


def table(rows: Sequence[Mapping[str, Any]], rounds: int) -> Table:
    """The rows of `throughput` for people: medians, with 10 and 90 % of the rounds behind them.

    Args:
        rows: at least one.
        rounds: how often each was measured.
    """

    def shown(row: Mapping[str, Any], name: str) -> Cell:
        if row.get(name) is None:
            return None
        return f"{row[name]:.3f} ({row[f'{name}_p10']:.3f} … {row[f'{name}_p90']:.3f})"

    columns = [
        "row", "step", "step + policy", "step + policy + training", "native ÷ this", "training ÷ its passes",
        "images a second", "MB", "MB of the GPU",
    ]  # fmt: skip
    cells: list[list[Cell]] = [
        [
            row["figure"], *(shown(row, name) for name in FIGURES), round(row["images_s"]),
            round(row["memory_mb"]), None if row.get("cuda_mb") is None else round(row["cuda_mb"]),
        ]
        for row in rows
    ]  # fmt: skip
    empty = {i for i in range(len(columns)) if all(row[i] is None for row in cells)}
    seconds = " and ".join(sorted({f"{row['seconds']} seconds" for row in rows}))
    note = (
        f"{rows[0]['device']}. Images a second ÷ those of the bare judge, more is better; native ÷ this: how many "
        "times as many a native environment plays; training ÷ its passes: seconds of a training step ÷ those of the "
        f"passes that nobody can avoid, less is better. Medians of {rounds} rounds with 10 and 90 % of them, all sides "
        f"of a row in turn, {seconds}."
    )
    return Table(
        "Throughput", [c for i, c in enumerate(columns) if i not in empty],
        [[cell for i, cell in enumerate(row) if i not in empty] for row in cells], note,
    )  # fmt: skip
