"""The command line: `maskaug envs | train AGENT | evaluate RUN | export ZIP | pretrain | bench NAME | report DIR |
data check NAME`.

The same flags everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from maskaug.baselines import TRAIN_SB3, export
from maskaug.bench import BENCHMARKS
from maskaug.benchmarks.presets import apga_play, apga_run, intelligent_masking_play
from maskaug.data import DATA
from maskaug.options import (
    APGAOptions,
    DistilledOptions,
    EnvOptions,
    IntelligentMaskingOptions,
    Preset,
    Readout,
    Split,
)
from maskaug.report import report


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
    `torchrun --nproc-per-node=N -m maskaug train apga …` trains it in N processes, a GPU each where there are any.

    Args:
        out: the run's folder.
        env_id: a registered id; `maskaug envs` lists them.
        preset: what is not said otherwise: default or published; every flag that is given overrides it.
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
    from maskaug.envs.distributed import joined

    run = apga_run(
        preset, env.given(), agent.given(), total_timesteps=total_timesteps, epochs=epochs, num_envs=num_envs,
        checkpoint_every=checkpoint_every, patience=patience, warm_start=warm_start,
    )  # fmt: skip
    files = {"imagenet": imagenet, "vgg11": vgg11, "ternausnet": ternausnet}
    with joined(device) as ranks:
        train(
            "APGA", env_id, out=out, seed=seed, device=device, resume=resume, progress_bar=sys.stderr.isatty(),
            weights={name: file for name, file in files.items() if file is not None}, ranks=ranks, **vars(run),
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


def train_distilled(
    out: Path,
    env_id: str = "MaskAug-Synthetic-v0",
    total_timesteps: int = 140_800,
    num_envs: int = 32,
    seed: int = 0,
    device: str = "auto",
    checkpoint_every: int = 25_600,
    resume: bool = False,
    env: EnvOptions = EnvOptions(),
    agent: DistilledOptions = DistilledOptions(),
) -> None:
    """Train the masker distilled from bagged gradient maps: the baseline to beat. No reward is looked at.

    The default length is the training of 8 judges, 300 updates of 32 images each, and 250 updates of the network.

    Args:
        out: the run's folder.
        env_id: a registered id; `maskaug envs` lists them.
        total_timesteps: passes of a judge over an image in all, those of their training included.
        num_envs: images a batch.
        seed: of everything that is drawn.
        device: auto, cpu, cuda, …
        checkpoint_every: timesteps between checkpoints.
        resume: continue the run in --out.
        env: the environment; its judge scores the masks and teaches nothing.
        agent: the agent.
    """
    from maskaug.benchmarks.training import train

    settings = agent.given()
    play = {k: v for k, v in apga_play({}).items() if k != "repeat"}
    train(
        "Distilled", env_id, out=out, total_timesteps=total_timesteps, num_envs=num_envs, seed=seed, device=device,
        env={**play, **env.given()}, settings=settings,
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


#: A command's result is the exit status; None: 0.
COMMANDS: dict[str, Callable[..., int | None] | Mapping[str, Callable[..., int | None]]] = {
    "envs": envs,
    "train": {
        "apga": train_apga, "intelligent-masking": train_intelligent_masking, "distilled": train_distilled, **TRAIN_SB3,
    },
    "export": export,
    "evaluate": evaluate,
    "pretrain": pretrain,
    "bench": BENCHMARKS,
    "report": report,
    "data": DATA,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Bad input ends with one line on stderr and status 2."""
    import gymnasium as gym

    import maskaug  # noqa: F401 (registers the ids)
    from maskaug.envs.errors import MaskAugError
    from maskaug.envs.torchrun import place

    words = list(sys.argv[1:] if arguments is None else arguments)
    here = place()
    if here.world > 1 and words[:2] != ["train", "apga"]:
        if here.rank == 0:
            print(
                "maskaug: error: torchrun is for `maskaug train apga`; start others without it",
                file=sys.stderr,
            )
        return 2
    commands, program = COMMANDS, "maskaug"
    if words and isinstance(group := COMMANDS.get(words[0]), Mapping):
        commands, program = dict(group), f"maskaug {words[0]}"
        words = words[1:]
    flat = {name: _group(name, item) if isinstance(item, Mapping) else item for name, item in commands.items()}
    try:
        status: int | None = tyro.extras.subcommand_cli_from_dict(flat, prog=program, args=words, description=__doc__)
    except (MaskAugError, gym.error.Error, OSError) as error:
        which = f" (process {here.rank} of {here.world})" if here.rank else ""
        print(f"maskaug: error{which}:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("maskaug: interrupted; a training run continues with --resume", file=sys.stderr)
        return 130
    return status or 0


def _group(name: str, members: Mapping[str, Callable[..., int | None]]) -> Callable[[], None]:
    # Only its help is ever shown from here: `main` goes into a group before tyro sees it.
    def show() -> None:
        print(f"maskaug {name}: choose one of {', '.join(members)}")

    show.__doc__ = f"{name.capitalize()}: {', '.join(members)}."
    return show


def run() -> None:
    """The console script."""
    sys.exit(main())
