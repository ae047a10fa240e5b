"""What `maskaug bench apga` runs: tables by data and preset. Chosen on seeds from 100 on, see benchmarks/results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from maskaug.benchmarks.augmentation import JOINT, LOOKING, PLAIN, TITLES, Sweep, Training
from maskaug.benchmarks.tasks import Task
from maskaug.envs.errors import ConfigurationError

DATA = ("synthetic", "busi", "mura")
PRESETS = ("smoke", "cpu", "paper")
#: body part → images of the official validation part, and the published accuracy in per cent, mean and SD, of
#: DenseNet, + Cutout, + Grad-CAM, + APGA (arXiv 1909.04108, Table 1).
PUBLISHED: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {
    part: (count, dict(zip(("none", "cutout", "grad_cam", "apga_published"), values, strict=True)))
    for part, count, *values in (
        ("elbow", 465, (82.80, 1.10), (83.05, 0.85), (83.18, 0.70), (83.26, 0.62)),
        ("finger", 461, (75.70, 1.11), (77.66, 1.69), (76.66, 0.83), (77.96, 0.19)),
        ("forearm", 301, (80.07, 1.98), (81.80, 1.47), (79.80, 1.70), (83.44, 0.53)),
        ("hand", 460, (78.35, 0.82), (78.13, 0.86), (77.35, 1.49), (79.09, 1.44)),
        ("humerus", 288, (85.69, 0.93), (85.69, 0.79), (86.39, 1.50), (86.53, 0.67)),
        ("shoulder", 563, (75.88, 0.93), (75.77, 0.78), (76.80, 1.18), (76.59, 0.48)),
        ("wrist", 659, (83.28, 0.46), (84.04, 0.97), (82.61, 1.19), (84.41, 0.54)),
    )
}
#: all arms but the distilled masker, whose several judges cost as much as all others together.
ARMS = tuple(arm for arm in TITLES if arm != "distilled")
#: the arms of a map of hidden shares and budgets.
MAP: tuple[str, ...] = ("none", "random", "apga", "oracle")
#: those of BUSI's, where fixed masks and the published loss must stand beside ours.
BESIDE = ("none", "random", "centre", "apga_published", "apga", "oracle")
#: what the claims of the synthetic table are about.
FEW: tuple[str, ...] = ("none", "none_twice", "random", "centre", "input_gradient", "apga", "oracle")
#: the arms that are told where the region is, in training images or in all.
TOLD = ("mean_region", "oracle")
#: the map of BUSI: labelled images of each class, and shares of the image that second views hide.
SHOTS: tuple[int | None, ...] = (12, 50, None)
HIDDEN = (0.05, 0.2, 0.4, 0.6)


@dataclasses.dataclass(frozen=True)
class Preset:
    """One table.

    Attributes:
        sweeps: what is run.
        training: how.
    """

    sweeps: Sequence[Sweep]
    training: Training


def preset_of(
    data: str, preset: str, root: Path | None = None, seeds: int | None = None, arms: Sequence[str] | None = None
) -> Preset:
    """The table of one data set.

    Args:
        data: "synthetic", "busi" or "mura".
        preset: "smoke" (whether everything runs), "cpu" (100 minutes at most on two cores) or "paper".
        root: the folder of busi or mura.
        seeds: how many, from 0; the preset's if None.
        arms: of `TITLES`, each where the preset has it, and what it has nowhere in its first block; the preset's if
            None.

    Raises:
        ConfigurationError: an unknown name, no root where one is needed, no seed, or no arm that the table has.
    """
    for name, value, known in (("data", data, DATA), ("preset", preset, PRESETS)):
        if value not in known:
            raise ConfigurationError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
    if (root is None) != (data == "synthetic"):
        cure = "leave it out" if root is not None else "name the data set's folder by --root"
        raise ConfigurationError(f"root={None if root is None else str(root)!r} does not go with data={data!r}; {cure}")
    if seeds is not None and seeds < 1:
        raise ConfigurationError(f"seeds={seeds} must be at least 1")
    made = {"synthetic": _synthetic, "busi": _busi, "mura": _mura}[data](preset, "" if root is None else str(root))
    sweeps = made.sweeps
    if seeds is not None:
        sweeps = [dataclasses.replace(s, seeds=range(seeds)) for s in sweeps]
    if arms is not None:
        if unknown := [arm for arm in arms if arm not in TITLES]:
            raise ConfigurationError(f"unknown arm {', '.join(unknown)}; use some of {', '.join(TITLES)}")
        if data == "mura" and (told := [arm for arm in arms if arm in TOLD]):
            raise ConfigurationError(f"{', '.join(told)} must be told regions, and MURA has none; leave it out")
        had = {arm for s in sweeps for arm in s.arms}
        chosen = [(s, [a for a in arms if a in s.arms or (i == 0 and a not in had)]) for i, s in enumerate(sweeps)]
        sweeps = [dataclasses.replace(s, arms=some) for s, some in chosen if some]
        if not sweeps:
            raise ConfigurationError(f"arms={list(arms)} names none; use some of {', '.join(TITLES)}")
    return Preset(list(sweeps), made.training)


def _synthetic(preset: str, root: str) -> Preset:
    def task(difficulty: str, n: int = 2000, **more: object) -> Task:
        env = {"n": n, "difficulty": difficulty, **more}
        return Task(f"radiographs-{difficulty}", "MaskAug-Synthetic-v0", env)

    if preset == "smoke":
        small = [task("easy", 150, image_size=40, grid=5)]
        training = Training(updates=6, timesteps=256, joint_updates=6)
        return Preset(
            [Sweep(small, [8], [0, 1], ARMS, [0.6]), Sweep(small, [8], [0, 1], JOINT, [0.6], joint=True)], training
        )
    easy, medium, hard = (task(d) for d in ("easy", "medium", "hard"))
    if preset == "paper":
        tasks, seeds = [easy, medium, hard], range(30)
        return Preset(
            [
                Sweep(tasks, [25, 50, 100, 200], seeds, tuple(TITLES), [0.25, 0.6]),
                Sweep(tasks, [100], seeds, JOINT, [0.25, 0.6], joint=True),
            ],
            Training(fill="blur", updates=1500, joint_updates=1500, device="auto"),
        )
    seeds, few = range(10), range(5)
    return Preset(
        [
            # What is claimed stands on twenty seeds, and comes first.
            Sweep([easy], [100], range(20), FEW, [0.8]),
            Sweep([easy], [100], seeds, ARMS, [0.8]),
            Sweep([easy], [100], seeds, MAP, [0.25, 0.6]),
            Sweep([easy], [25, 50, 200], few, MAP, [0.8]),
            Sweep([medium, hard], [200], few, MAP, [0.8]),
            Sweep([easy], [100], few, JOINT, [0.6], joint=True),
        ],
        # A classifier needs about a thousand updates for what a judge has to know; the new ones get 400, where those
        # that saw no masks still differ.
        Training(fill="blur", updates=400, judge_updates=1000, joint_updates=400),
    )


def _busi(preset: str, root: str) -> Preset:
    base = {"root": root, "image_size": 64, "grid": 8}
    tasks = [
        Task("busi-diagnosis", "MaskAug-BUSI-v0", {**base, "task": "diagnosis", "classes": 2}, folds=5),
        Task("busi-presence", "MaskAug-BUSI-v0", {**base, "task": "presence"}, folds=5),
    ]
    if preset == "smoke":
        training = Training(updates=6, timesteps=256, joint_updates=6)
        return Preset(
            [Sweep(tasks, [12], [0, 1], (*PLAIN, "random", "apga", *LOOKING[1:3], "oracle"), [0.6])], training
        )
    seeds = range(20 if preset == "paper" else 5)
    shots = (12, 25, 50, 100, None) if preset == "paper" else SHOTS
    training = (
        # Batches of 16 did as well as those of 32 without masks, in half the time: seeds 100 to 102, whose test images
        # are some of those of seeds 0 to 4.
        Training(fill="blur", batch=16) if preset == "cpu" else Training(fill="blur", updates=1500, device="auto")
    )
    return Preset(
        [
            Sweep(tasks, [50], seeds, ARMS, [0.4]),
            Sweep(tasks, shots, seeds, BESIDE, HIDDEN, swapped=False),
        ],
        training,
    )


def _mura(preset: str, root: str) -> Preset:
    arms = ("none", "random", "cutout", "grad_cam", "end_to_end", "apga_published", "apga")
    if preset == "smoke":
        # The body part with the fewest images: of the whole data set, decoding alone takes longer than a smoke may.
        small = {"root": root, "body_part": "humerus", "image_size": 40, "grid": 5}
        task = Task("mura-humerus", "MaskAug-MURA-v0", small)
        return Preset([Sweep([task], [4], [0, 1], arms, [0.6])], Training(updates=4, timesteps=128, joint_updates=4))
    size = {"image_size": 224, "grid": 16} if preset == "paper" else {"image_size": 64, "grid": 8}
    tasks = [Task(f"mura-{part}", "MaskAug-MURA-v0", {"root": root, "body_part": part, **size}) for part in PUBLISHED]
    if preset == "cpu":
        return Preset([Sweep(tasks, [100], range(3), arms, [0.6], swapped=False)], Training(fill="blur"))
    # First weights are random, of which the paper's 1e-5 would make little: both settings have what suits these.
    training = Training(
        judge="densenet169", updates=20_000, batch=25, lr=1e-4, timesteps=100_000, num_envs=25, joint_updates=20_000,
        joint_lr=1e-4, published=True, device="auto",
    )  # fmt: skip
    return Preset(
        [
            Sweep(tasks, [None, 100], range(5), arms, [0.6], swapped=False),
            Sweep(tasks, [None], range(5), ("none", "cutout", "apga_published", "apga"), [0.6], joint=True),
        ],
        training,
    )
