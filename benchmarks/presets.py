"""What a training run is made of: presets, and the games that agents play best. Nothing heavy is imported here.

**The preset "published"** is APGA as its authors describe it (Zhang et al., arXiv 1909.04108, and their code): a
TernausNet-11 that marks pixels with probability above ½, a DenseNet-169 as judge, 224×224 pixels scaled to [0, 1] and
nothing else, batches of 25, Adam with 1e-5 for both, the loss 100·BCE(P, a)·(R − b) + |R − b|·(0.1·BCE(P, 0) +
0.01·BCE(P, 1)) with one R for the batch and b's decay ½, hidden pixels 0, a judge that has converged on clean images
first, at most 100 epochs, and an end after 15 without a better validation result.

The whole list of where it deviates, and why:

 1. b is used before it is updated, and starts at 0. The authors' first step has no gradient, and all their advantages
    are halved.
 2. Both losses of R come from the same weights in evaluation mode, before the judge's step. Theirs come from before and
    after it, in two modes of batch norm.
 3. The judge takes one Adam step on the clean images and their aiding views together, not one on each.
 4. The last bias of the TernausNet is set so that half of all pixels are marked at the start: a policy that marks none,
    or all, has no advantage and never learns. Not with whole weights (`--ternausnet`), which mark what they mark.
 5. First weights are random (of the TernausNet too, for which they have Carvana's) unless `--imagenet`, `--vgg11` or
    `--ternausnet` names a local file: nothing is downloaded.
 6. One channel, not a grey one copied to three (`--env.channels 3`). Weights from a file have the kernels of their
    first convolution summed, which gives what three equal channels give.
 7. An epoch is ceil(images / batch) updates, the last batch as large as every other. Each of the 25 slots draws from
    the images in its own order: an epoch has the right number of images, and not each of them exactly once. (The warm
    start goes through all of them before it begins again.)
 8. "Better" means a lower validation loss of the judge on clean images, looked at once an epoch, in the warm start and
    in the game; batch norm's statistics are then those of clean training images, and so they are in judge.safetensors.
    Theirs are those of clean images and aiding views mixed, and they look every 100 iterations. The judge that the game
    starts with is no candidate: its masker knows nothing yet.
 9. The validation split is carved by patient out of the training part, and their validation part is the test split:
    theirs both chooses and is reported (papers.md §1, mistake 7).
10. Masks are predicted in one batch, once per image and update; theirs one by one, three times.
11. Test-time averaging is not always on: `maskaug evaluate RUN --tta`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maskaug.envs.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Everything of a run that is not said otherwise.

    Attributes:
        num_envs: images a batch.
        total_timesteps: masks to be judged in all; None where `epochs` says it.
        epochs: passes over the training images; None where `total_timesteps` says it.
        checkpoint_every: timesteps between checkpoints; None: an epoch.
        patience: epochs without a better judge after which training ends; 0: it goes on.
        warm_start: train the judge on clean images until it has converged, before the game.
        env: keywords of the environment.
        settings: of the agent.
    """

    num_envs: int
    total_timesteps: int | None = None
    epochs: int | None = None
    checkpoint_every: int | None = None
    patience: int = 0
    warm_start: bool = False
    env: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: presets of APGA by name.
APGA_PRESETS: dict[str, Preset] = {
    "default": Preset(num_envs=32, total_timesteps=20_000, checkpoint_every=5_000),
    "published": Preset(
        num_envs=25,
        epochs=100,
        patience=15,
        warm_start=True,
        env={
            "objective": "adversarial", "action": "pixel", "area_price": 0.0, "repeat": 1, "fill": "zero",
            "image_size": 224, "channels": 1, "joint": True, "reward_model": "densenet169", "judge_lr": 1e-5,
            "judge_batch": 25,
        },
        settings={
            "loss": "published", "network": "ternausnet", "learning_rate": 1e-5, "loss_scale": 100.0,
            "penalty_none": 0.1, "penalty_all": 0.01, "baseline_decay": 0.5, "max_grad_norm": 0.0, "mirror": False,
            "average": 0.0,
        },
    ),
}  # fmt: skip


def apga_run(
    preset: str,
    env: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    total_timesteps: int | None = None,
    epochs: int | None = None,
    num_envs: int | None = None,
    checkpoint_every: int | None = None,
    patience: int | None = None,
    warm_start: bool | None = None,
) -> Preset:
    """A preset of APGA with what was given (what is not None, and all of `env` and `settings`) over it."""
    if total_timesteps is not None and epochs is not None:
        raise ConfigurationError("total_timesteps and epochs both say how long a run is; give one of them")
    if preset not in APGA_PRESETS:
        raise ConfigurationError(f"preset={preset!r} is unknown; use one of {tuple(APGA_PRESETS)}")
    base = APGA_PRESETS[preset]
    settings = {**base.settings, **settings}
    keywords = {**(base.env or apga_play(settings)), **env}
    if keywords.get("joint") is False:
        # A frozen judge does not learn, and so neither gets better nor has a learning rate.
        base = dataclasses.replace(base, patience=0, warm_start=False)
        keywords = {k: v for k, v in keywords.items() if k in env or k not in ("judge_lr", "judge_batch")}
    given_judges = keywords.get("reward_model")
    files = given_judges if isinstance(given_judges, list | tuple) else [given_judges]
    if all(str(file).endswith(".safetensors") for file in files):
        base = dataclasses.replace(base, warm_start=False)
    given = {
        "num_envs": num_envs, "checkpoint_every": checkpoint_every, "patience": patience, "warm_start": warm_start
    }  # fmt: skip
    length = {"total_timesteps": total_timesteps, "epochs": epochs}
    if total_timesteps is None and epochs is None:
        length = {"total_timesteps": base.total_timesteps, "epochs": base.epochs}
    changed: dict[str, Any] = {**{k: v for k, v in given.items() if v is not None}, **length}
    return dataclasses.replace(base, **changed, env=keywords, settings=settings)


def apga_play(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's keywords that APGA plays best with; the published loss plays the paper's game."""
    if settings.get("loss") == "published":
        return {"objective": "adversarial", "action": "grid", "repeat": 1, "fill": "zero"}
    return {"objective": "adversarial", "action": "grid", "repeat": 4, "fill": "blur"}


def intelligent_masking_play(settings: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's keywords that Intelligent Masking plays best with; as published, those of the paper."""
    if settings.get("mode") != "published":
        play: dict[str, Any] = {"objective": "reconstruction", "action": "grid", "fill": "mean"}
        if env.get("action") != "patch":
            play["area"] = 0.5
        if env.get("joint") is not False:
            play["judge_lr"] = 2e-3
        return play
    play = {"objective": "reconstruction", "action": "patch", "patch_cells": 2}
    if settings.get("network", "paper") == "paper":
        play |= {"image_size": 288, "grid": 9}
        if env.get("joint") is not False:
            play |= {"reward_model": "context_encoder", "judge_batch": 16}
    return play


def pictures_of(env_id: str, env: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's keywords of the benchmarks of Intelligent Masking: on built-in images, 3 000 of ultrasound."""
    built_in = {"kind": "ultrasound", "n": 3000} if env_id == "MaskAug-Synthetic-v0" else {}
    return {**built_in, **env}
