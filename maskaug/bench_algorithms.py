"""`maskaug bench algorithms`: its flags, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def bench_algorithms(
    out: Path,
    preset: Literal["smoke", "cpu", "paper"] = "cpu",
    jobs: int = 1,
    seeds: int | None = None,
    games: tuple[Literal["reconstruction", "classification"], ...] | None = None,
    arms: tuple[str, ...] | None = None,
    split: Literal["val", "test"] = "test",
    cluster: bool = False,
    retries: int = 0,
    gpus: float = 0.0,
) -> int:
    """Our agents and Stable-Baselines3's algorithms on two frozen games: reward against judged masks and CPU seconds.

    Args:
        out: a folder: runs/ for every run, and tables.md, tables.json, table.csv, curves.csv and pictures; what it
            holds is not run again.
        preset: smoke (whether everything runs, two minutes), cpu (five seeds, without TRPO, 30 minutes with --jobs 2)
            or paper (twenty seeds, eight times as many masks, all arms, TRPO and those that are set up as
            Stable-Baselines3 does among them, on a GPU where there is one).
        jobs: runs at a time.
        seeds: how many, from 0; each draws its own images and judge. The preset's, if left out.
        games: reconstruction (one patch, an exact scale), classification (a quarter of the cells), or both.
        arms: intelligent_masking, apga, apga_random, published, end_to_end, distilled, an algorithm (ppo, dqn, …), or
            one as Stable-Baselines3 has it (ppo_default, …); the others are compared with the first. The preset's, if
            left out.
        split: the held-out images that are scored; val while choices are still made.
        cluster: run on a Ray cluster.
        retries: how often a run that fails is tried again.
        gpus: share of a GPU that a run takes, on a cluster.

    Returns:
        The exit status: 1 where a run has failed or is left, and the table and the pictures say so.
    """
    from maskaug.benchmarks.algorithm_analysis import markdown, unfinished, write_analysis
    from maskaug.benchmarks.algorithms import settings_of
    from maskaug.benchmarks.grid import Grid

    settings, skipped = settings_of(preset, seeds=seeds, games=games, arms=arms, split=split)
    grid = Grid(out / "runs", settings.cells())
    if skipped:
        print(f"skipped: {', '.join(skipped)} (sb3-contrib is not installed; pip install 'maskaug[contrib]')")
    grid.run(jobs=jobs, cluster=cluster, retries=retries, gpus=gpus)
    results = grid.results()
    print(markdown(settings, results, skipped, grid.besides()))
    write_analysis(settings, results, out, skipped, grid.besides())
    print(f"wrote {out}/")
    return int(bool(unfinished(settings, results)))
