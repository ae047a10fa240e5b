"""`maskaug bench NAME`: each benchmark's flags, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from maskaug.bench_algorithms import bench_algorithms
from maskaug.bench_apga import bench_apga
from maskaug.bench_intelligent_masking import bench_intelligent_masking
from maskaug.bench_throughput import bench_throughput
from maskaug.benchmarks.presets import apga_play, pictures_of
from maskaug.options import (
    APGAOptions,
    EnvOptions,
    IntelligentMaskingOptions,
    MaskerArm,
    Split,
)


def bench_retention(
    env_id: str = "MaskAug-Synthetic-v0",
    seeds: int = 5,
    judge_updates: int = 1500,
    total_timesteps: int = 12_800,
    num_envs: int = 32,
    out: Path | None = None,
    env: EnvOptions = EnvOptions(),
    agent: APGAOptions = APGAOptions(),
) -> None:
    """Retention of the known region at equal area, with all controls, over seeds: judge, APGA, held-out test split.

    Args:
        env_id: whose images and grid.
        seeds: how many, from 0; each draws or splits the data anew and trains its own judge and agent.
        judge_updates: of the judge's training.
        total_timesteps: masks that APGA has judged.
        num_envs: images a batch.
        out: a JSON file for every figure of every seed.
        env: the environment; played like `maskaug train apga`, with a frozen judge.
        agent: the agent.
    """
    from maskaug.benchmarks.retention import RetentionSettings, retention

    settings = agent.given()
    play = {**apga_play(settings), **env.given()}
    retention(RetentionSettings(env_id, play, judge_updates, total_timesteps, num_envs, settings), seeds, out)


def bench_regret(
    seeds: int = 5,
    judge_updates: int = 800,
    total_timesteps: int = 8192,
    num_envs: int = 32,
    split: Split = "test",
    out: Path | None = None,
    env_id: str = "MaskAug-Synthetic-v0",
    env: EnvOptions = EnvOptions(),
    agent: IntelligentMaskingOptions = IntelligentMaskingOptions(),
) -> None:
    """How near Intelligent Masking comes to the best patch: a frozen reconstructor, every patch of every image judged.

    Args:
        seeds: how many, from 0; each draws its own images, reconstructor and agent.
        judge_updates: of the reconstructor on random patches.
        total_timesteps: patches that the agent has judged.
        num_envs: images a batch.
        split: the images that are scored.
        out: a JSON file for every figure of every seed.
        env_id: whose images; on built-in ones, 3 000 of ultrasound unless --env.… says otherwise.
        env: the environment.
        agent: the agent.
    """
    from maskaug.benchmarks.regret import RegretSettings, regret

    settings = RegretSettings(
        env_id, pictures_of(env_id, env.given()), judge_updates, timesteps=total_timesteps, num_envs=num_envs,
        split=split, agent=agent.given(),
    )  # fmt: skip
    regret(settings, seeds, out)


def bench_maskers(
    env_id: str = "MaskAug-BUSI-v0",
    arms: tuple[MaskerArm, ...] = get_args(MaskerArm),
    folds: int = 5,
    only: tuple[int, ...] | None = None,
    split: Literal["val", "test"] = "test",
    judge_updates: int = 600,
    judges: int = 8,
    bagged_updates: int = 300,
    distil_updates: int = 250,
    total_timesteps: int = 12_800,
    num_envs: int = 32,
    seed: int = 0,
    out: Path | None = None,
    env: EnvOptions = EnvOptions(),
) -> None:
    """Every way to a mask on disjoint test folds, at equal area, with all controls and paired intervals.

    Args:
        env_id: whose images.
        arms: which; what --out holds already is not run again.
        folds: how many parts of whole groups; each is the test set once.
        only: numbers of the folds to run now, from 0; all if left out.
        split: test, or val while choices are still made.
        judge_updates: of the one judge's training.
        judges: bagged for the arms that ask several.
        bagged_updates: of each one's training.
        distil_updates: of the distilled network.
        total_timesteps: masks that APGA and the end-to-end mask learn from.
        num_envs: images a batch.
        seed: of the folds; fold i draws everything else from seed + i.
        out: a JSON file for every figure of every fold.
        env: the environment; grid, adversarial, fill="blur" unless --env.… says otherwise.
    """
    from maskaug.benchmarks.folds import FoldSettings, maskers

    play = {**{k: v for k, v in apga_play({}).items() if k != "repeat"}, **env.given()}
    settings = FoldSettings(
        env_id, play, arms, folds, judge_updates=judge_updates, judges=judges, bagged_updates=bagged_updates,
        distil_updates=distil_updates,
        timesteps=total_timesteps, num_envs=num_envs, seed=seed,
    )  # fmt: skip
    maskers(settings, range(folds) if only is None else only, out, split=split)


def bench_area(
    env_id: str = "MaskAug-Synthetic-v0",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    updates: int = 60,
    num_envs: int = 8,
    judge_updates: int = 600,
    learning_rate: float = 3e-4,
    held_out: int = 16,
    out: Path | None = None,
    device: str = "auto",
    env: EnvOptions = EnvOptions(),
) -> None:
    """The mask's area over training, the published loss against ours: TernausNet-11 on pixels, a frozen judge.

    Args:
        env_id: whose images.
        seeds: each draws or splits the data anew and trains its own judge and policies.
        updates: of every policy.
        num_envs: images an update.
        judge_updates: of the judge's training.
        learning_rate: of our loss, and of the published one's second run; its first has its own, 1e-5.
        held_out: test images that are looked at after every update.
        out: a folder for curves.json and area.png; seeds that it holds are not done again.
        device: where everything runs.
        env: the environment; its action, objective and judge are the benchmark's.
    """
    from maskaug.benchmarks.area_curves import AreaSettings, area

    settings = AreaSettings(env_id, env.given(), updates, num_envs, judge_updates, learning_rate, held_out)
    area(settings, seeds, out, device)


def bench_data(
    pictures: int = 200,
    source_size: int = 512,
    image_size: int = 224,
    rounds: int = 5,
    images: int = 40_000,
    link_size: int = 128,
    starts: int = 3,
    folder: Path | None = None,
    out: Path | None = None,
) -> None:
    """First caching against decoding alone, batches from the cache against decoding, and a second start.

    Args:
        pictures: different made-up pictures that are decoded.
        source_size: their sides in pixels.
        image_size: what they are resized to.
        rounds: how often both sides are measured in turn; the median is reported.
        images: files of the second start, hard links to so many different pictures.
        link_size: their sides in pixels; smaller ones are cached sooner, and the cache is the same size.
        starts: second starts, each a process of its own.
        folder: where all of it is made and removed again, images × image_size² bytes; the system's temporary folder.
        out: a JSON file for every figure.
    """
    from maskaug.benchmarks.data_throughput import DataSettings, data_throughput

    settings = DataSettings(
        pictures, source_size, image_size, rounds, images=images, link_size=link_size, starts=starts
    )  # fmt: skip
    data_throughput(settings, out, folder)


#: name → command; what it returns is the exit status, None being 0.
BENCHMARKS: dict[str, Callable[..., int | None]] = {
    "retention": bench_retention,
    "maskers": bench_maskers,
    "area": bench_area,
    "throughput": bench_throughput,
    "data": bench_data,
    "regret": bench_regret,
    "algorithms": bench_algorithms,
    "apga": bench_apga,
    "intelligent-masking": bench_intelligent_masking,
}
