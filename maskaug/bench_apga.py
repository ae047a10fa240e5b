"""`maskaug bench apga`: its flags, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def bench_apga(
    out: Path,
    preset: Literal["smoke", "cpu", "paper"] = "cpu",
    data: Literal["synthetic", "busi", "mura"] = "synthetic",
    root: Path | None = None,
    jobs: int = 1,
    seeds: int | None = None,
    arms: tuple[str, ...] | None = None,
    split: Literal["val", "test"] = "test",
    cluster: bool = False,
    retries: int = 0,
    gpus: float = 0.0,
) -> int:
    """Does training with masks help? New classifiers on every arm's masks, with all controls and paired intervals.

    Args:
        out: a folder: runs/ for every run, and tables.md, tables.json, results.csv and pictures of what is done so far;
            what it holds is not run again.
        preset: smoke (whether everything runs, three minutes), cpu (100 minutes at most with --jobs 2) or paper.
        data: synthetic (radiographs at three difficulties), busi (both tasks) or mura (seven body parts, with the
            published figures beside).
        root: the folder of busi or mura.
        jobs: runs at a time.
        seeds: how many, from 0; the preset's, if left out.
        arms: none, none_twice, random, cutout, random_erasing, centre, mean_region, brightness, grad_cam,
            input_gradient, end_to_end, apga_published, apga, ppo, distilled, oracle; each where the preset has
            it, or else in its first block; the preset's, if left out.
        split: the held-out images that are scored; val, one half of the validation images, while choices are still
            made.
        cluster: run on a Ray cluster.
        retries: how often a run that fails is tried again.
        gpus: share of a GPU that a run takes, on a cluster.

    Returns:
        The exit status: 1 where a run has failed or is left, and the tables say so.
    """
    from maskaug.benchmarks.augmentation import cells
    from maskaug.benchmarks.augmentation_output import write_analysis
    from maskaug.benchmarks.augmentation_presets import preset_of
    from maskaug.benchmarks.grid import Grid
    from maskaug.benchmarks.tasks import Task, check_source, divided_for

    chosen = preset_of(data, preset, None if root is None else root.expanduser().resolve(), seeds, arms)
    grid = Grid(out / "runs", cells(chosen.sweeps, chosen.training, split))
    check_source(grid.root, grid.cells.values(), lambda c: divided_for(Task(**c["task"]), c["shots"], c["seed"], split))
    print(grid.say())
    state = grid.run(jobs=jobs, cluster=cluster, retries=retries, gpus=gpus)
    for table in write_analysis(grid, out):
        print(table.markdown(), end="\n\n")
    print(f"wrote {out}/")
    return int(set(state.values()) != {"done"})
