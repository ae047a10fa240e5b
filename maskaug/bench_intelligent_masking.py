"""`maskaug bench intelligent-masking`: its flags, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskaug.options import Arm


def bench_intelligent_masking(
    out: Path,
    preset: Literal["smoke", "cpu", "paper"] = "cpu",
    data: Literal["synthetic", "busi", "busi-presence", "lgg"] = "synthetic",
    root: Path | None = None,
    jobs: int = 1,
    seeds: int | None = None,
    arms: tuple[Arm, ...] | None = None,
    split: Literal["val", "test"] = "test",
    cluster: bool = False,
    retries: int = 0,
    gpus: float = 0.0,
) -> int:
    """Encoders pre-trained by different masks, read out with few labels: does the learned mask help?

    Args:
        out: a folder: runs/ for every run, and tables.md, tables.json, results.csv and pictures of what is done so far;
            what it holds is not run again.
        preset: smoke (whether everything runs, a minute), cpu (100 minutes at most with --jobs 2) or paper (the
            published sizes and networks, twenty seeds, on a GPU where there is one).
        data: synthetic (is there a mass in the ultrasound?), busi (three classes), busi-presence (is there a lesion in
            this crop?) or lgg (is there a tumour in the slice?). Of real images, or with the paper's preset, random
            cells, the centre and Intelligent Masking hide 5 to 60 % besides: a map of shares and labels.
        root: the folder of BUSI or LGG.
        jobs: runs at a time.
        seeds: how many, from 0; each draws its own synthetic images, or tests one of five folds of the real ones. The
            preset's, if left out.
        arms: which; all if left out.
        split: the held-out images that are scored; val, a half of them, while choices are still made.
        cluster: run on a Ray cluster.
        retries: how often a run that fails is tried again.
        gpus: share of a GPU that a run takes, on a cluster.

    Returns:
        The exit status: 1 where a run has failed or is left, and the tables say so.
    """
    from maskaug.benchmarks.encoder_output import run_encoding
    from maskaug.benchmarks.encoder_presets import encoding_of

    chosen = encoding_of(data, preset, None if root is None else root.expanduser().resolve(), seeds, arms, split)
    return int(not run_encoding(chosen, out, jobs=jobs, cluster=cluster, retries=retries, gpus=gpus))
