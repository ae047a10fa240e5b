"""The command line: `maskaug envs | train AGENT | evaluate RUN | pretrain | bench NAME`. The same flags everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, get_args

import tyro

from maskaug.benchmarks.presets import apga_play, apga_run, intelligent_masking_play, pictures_of
from maskaug.options import APGAOptions, Arm, EnvOptions, IntelligentMaskingOptions, Preset, Readout, Split


def train_apga(
    out: Path,
    env_id: str = "MaskAug-Synthetic-v0",
    preset: Preset = "default",
    total_timesteps: int | None = None,
    epochs: int | None = None,
    num_envs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint_every: int | None = None,
    patience: int | None = None,
    warm_start: bool | None = None,
    imagenet: Path | None = None,
    vgg11: Path | None = None,
    ternausnet: Path | None = None,
    resume: bool = False,
    env: EnvOptions = EnvOptions(),
    agent: APGAOptions = APGAOptions(),
) -> None:
    """Train APGA; it plays action="grid" with 4 tries an image and fill="blur" unless --env.… says otherwise.

    With --preset published everything is as its authors have it; maskaug/benchmarks/presets.py lists what is not.

    Args:
        out: the run's folder.
        env_id: a registered id; `maskaug envs` lists them.
        preset: what is not said otherwise: default or published; every flag goes before it.
        total_timesteps: masks to be judged in all; 20 000 if neither this nor --epochs is given.
        epochs: the same as passes over the training images; 100 as published.
        num_envs: images a batch; 32, or 25 as published.
        seed: of everything that is drawn.
        device: auto, cpu, cuda, …
        checkpoint_every: timesteps between checkpoints; 5 000, or an epoch as published.
        patience: epochs without a better judge on the validation split after which training ends, the best being kept;
            15 as published; 0: off.
        warm_start: train the judge on clean images until it has converged, first; as published, unless
            --env.reward-model is a file.
        imagenet: a local file of ImageNet weights for --env.reward-model densenet169.
        vgg11: a local file of VGG11's weights for --agent.network ternausnet.
        ternausnet: a local file of whole weights for it.
        resume: continue the run in --out.
        env: the environment.
        agent: the agent.
    """
    from maskaug.benchmarks.training import train

    run = apga_run(
        preset, env.given(), agent.given(), total_timesteps=total_timesteps, epochs=epochs, num_envs=num_envs,
        checkpoint_every=checkpoint_every, patience=patience, warm_start=warm_start,
    )  # fmt: skip
    files = {"imagenet": imagenet, "vgg11": vgg11, "ternausnet": ternausnet}
    train(
        "APGA", env_id, out=out, seed=seed, device=device, resume=resume, progress_bar=sys.stderr.isatty(),
        weights={name: file for name, file in files.items() if file is not None}, **vars(run),
    )  # fmt: skip


def train_intelligent_masking(
    out: Path,
    env_id: str = "MaskAug-BUSI-v0",
    total_timesteps: int = 25_600,
    num_envs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint_every: int = 6_400,
    resume: bool = False,
    env: EnvOptions = EnvOptions(),
    agent: IntelligentMaskingOptions = IntelligentMaskingOptions(),
) -> None:
    """Train Intelligent Masking: a Q-map that chooses what a reconstruction network has to fill in, and that network.

    It hides half of an 8×8 grid with fill="mean"; with --agent.mode published one patch of 2×2 cells of a 9×9 grid at
    288×288 pixels, with the paper's networks and batches of 16. --env.… and --agent.… change each of these.

    Args:
        out: the run's folder.
        env_id: a registered id; `maskaug envs` lists them.
        total_timesteps: masks to be judged in all: the run's length, which exploration and learning rates follow.
        num_envs: images a batch; 32, or 16 as published.
        seed: of everything that is drawn.
        device: auto, cpu, cuda, …
        checkpoint_every: timesteps between checkpoints.
        resume: continue the run in --out.
        env: the environment.
        agent: the agent.
    """
    from maskaug.benchmarks.training import train

    settings = agent.given()
    published = settings.get("mode") == "published"
    train(
        "IntelligentMasking", env_id, out=out, total_timesteps=total_timesteps,
        num_envs=(16 if published else 32) if num_envs is None else num_envs, seed=seed, device=device,
        env={**intelligent_masking_play(settings, env.given()), **env.given()}, settings=settings,
        checkpoint_every=checkpoint_every, resume=resume, progress_bar=sys.stderr.isatty(),
    )  # fmt: skip


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    split: Split = "test",
    device: str = "auto",
    tta: bool = False,
    downstream: bool = False,
    budgets: tuple[int, ...] | None = None,
    draws: int | None = None,
    readouts: tuple[Readout, ...] | None = None,
) -> None:
    """Score a trained masker with its controls at the same area, and the judge if it is a classifier.

    Adds to the run's results.json, redraws masks.png.

    Args:
        run: the folder of a finished `maskaug train`.
        split: the part to score on.
        device: auto, cpu, cuda, …
        tta: score the judge with what it says of the clean image and of the aiding view averaged, too.
        downstream: read the pre-trained encoder out with few labels too, beside one that was not pre-trained; always on
            the test split.
        budgets: numbers of labels, 10 50 100 if left out; all labels are read out besides.
        draws: how often the labels are drawn; 5 if left out.
        readouts: paper (its small network on the feature maps: minutes on a CPU), logistic (seconds); both if left out.
    """
    from maskaug.benchmarks.evaluation import evaluate as evaluate_run
    from maskaug.envs.errors import ConfigurationError

    given = {k: v for k, v in {"budgets": budgets, "draws": draws, "readouts": readouts}.items() if v is not None}
    if downstream:
        from maskaug.benchmarks.evaluation import evaluate_downstream

        evaluate_downstream(run, device, **given)  # type: ignore[arg-type]
    elif given:
        raise ConfigurationError(f"{', '.join(given)} would do nothing without --downstream; add it, or leave them out")
    evaluate_run(run, split, device, tta=tta)


def pretrain(
    out: Path,
    env_id: str = "MaskAug-Synthetic-v0",
    updates: int = 1500,
    batch_size: int = 32,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "auto",
    env: EnvOptions = EnvOptions(),
) -> None:
    """Train a judge on the clean images of an environment; use it with --env.reward-model FILE --env.joint False.

    Args:
        out: the .safetensors file to write.
        env_id: whose images.
        updates: optimiser steps; the best of ten moments by validation loss is kept.
        batch_size: images a step.
        lr: peak learning rate.
        seed: of first weights, order and augmentation.
        device: auto, cpu, cuda, …
        env: which images; only the data set's own keywords are looked at.
    """
    from maskaug.benchmarks.pretraining import pretrain_judge

    pretrain_judge(
        out, env_id, env.given(), updates=updates, batch_size=batch_size, lr=lr, seed=seed, device=device,
        progress_bar=sys.stderr.isatty(),
    )  # fmt: skip


def envs() -> None:
    """List every environment id: data, real or stand-in here, spaces, objective."""
    from maskaug.benchmarks.listing import environments_table

    print(environments_table())


def bench_throughput(
    out: Path | None = None,
    num_envs: int | None = None,
    rounds: int | None = None,
    preset: Preset = "default",
) -> None:
    """Environment steps against the bare judge, and APGA's step against its unavoidable passes: CPU-time ratios.

    Args:
        out: a CSV file to write beside the table.
        num_envs: N; 64, or 25 as published.
        rounds: how often both sides are measured in turn, the median being reported; 20, or 3 as published.
        preset: published measures that preset's step alone, at its own size: many minutes on a CPU.
    """
    from maskaug.benchmarks.throughput import throughput

    throughput(num_envs=num_envs, rounds=rounds, out=out, preset=preset)


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


def bench_intelligent_masking(
    env_id: str = "MaskAug-Synthetic-v0",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    updates: int = 400,
    batch: int = 32,
    area: float = 0.5,
    arms: tuple[Arm, ...] = get_args(Arm),
    budgets: tuple[int, ...] = (10, 50, 100, 0),
    draws: int = 5,
    readouts: tuple[Readout, ...] = ("paper", "logistic"),
    out: Path | None = None,
    device: str = "auto",
    env: EnvOptions = EnvOptions(),
    agent: IntelligentMaskingOptions = IntelligentMaskingOptions(),
) -> None:
    """Encoders pre-trained by different masks, read out with few labels: does the learned mask help?

    Args:
        env_id: whose images; on built-in ones, ultrasound unless --env.kind says otherwise.
        seeds: each draws or splits the data anew.
        updates: of every arm's reconstructor.
        batch: images each.
        area: share hidden by all arms but mae, none, autoencoder and those of one patch.
        arms: which arms; what --out holds of others stays in the table.
        budgets: numbers of labels; 0: all of them.
        draws: how often the labels are drawn.
        readouts: paper (its small network on the feature maps), logistic (regression on pooled features), or both.
        out: a folder for results.json and arms.png.
        device: auto, cpu, cuda, …
        env: the environment.
        agent: settings of Intelligent Masking.
    """
    from maskaug.benchmarks.arms import ArmsSettings
    from maskaug.benchmarks.masking_arms import intelligent_masking

    settings = ArmsSettings(
        env_id, pictures_of(env_id, env.given()), area, updates, batch, arms, tuple(b or None for b in budgets), draws,
        readouts, agent.given(),
    )  # fmt: skip
    intelligent_masking(settings, seeds, out, device)


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


COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "envs": envs,
    "train": {"apga": train_apga, "intelligent-masking": train_intelligent_masking},
    "evaluate": evaluate,
    "pretrain": pretrain,
    "bench": {
        "retention": bench_retention,
        "throughput": bench_throughput,
        "regret": bench_regret,
        "intelligent-masking": bench_intelligent_masking,
        "area": bench_area,
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Bad input ends with one line on stderr and status 2."""
    import gymnasium as gym

    import maskaug  # noqa: F401 (registers the ids)
    from maskaug.envs.errors import MaskAugError

    words = list(sys.argv[1:] if arguments is None else arguments)
    commands, program = COMMANDS, "maskaug"
    if words and isinstance(group := COMMANDS.get(words[0]), dict):
        commands, program = dict(group), f"maskaug {words[0]}"
        words = words[1:]
    flat = {name: _group(name, item) if isinstance(item, dict) else item for name, item in commands.items()}
    try:
        tyro.extras.subcommand_cli_from_dict(flat, prog=program, args=words, description=__doc__)
    except (MaskAugError, gym.error.Error, OSError) as error:
        print("maskaug: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("maskaug: interrupted; a training run continues with --resume", file=sys.stderr)
        return 130
    return 0


def _group(name: str, members: dict[str, Callable[..., None]]) -> Callable[[], None]:
    # Only its help is ever shown from here: `main` goes into a group before tyro sees it.
    def show() -> None:
        print(f"maskaug {name}: choose one of {', '.join(members)}")

    show.__doc__ = f"{name.capitalize()}: {', '.join(members)}."
    return show


def run() -> None:
    """The console script."""
    sys.exit(main())
