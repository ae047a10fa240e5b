"""Reward models by name, by file, or brought along: building, saving and loading classifiers.

A judge's file is safetensors: the weights, and in the header what is needed to build the network again. Nothing in it
is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.files import write_safetensors
from maskaug.envs.networks import SmallClassifier, seeded_weights

#: name → the network, called as Network(in_channels=, classes=).
JUDGES: dict[str, type[nn.Module]] = {"small": SmallClassifier}


def make_judge(name: str, channels: int, classes: int, seed: int, **settings: int) -> nn.Module:
    """A judge by name, with first weights drawn from `seed`; `settings` are the network's own, such as its width."""
    if name not in JUDGES:
        raise ConfigurationError(
            f"reward_model={name!r} is neither a known judge ({', '.join(JUDGES)}) nor an existing .safetensors file"
        )
    with seeded_weights(seed):
        return JUDGES[name](in_channels=channels, classes=classes, **settings)


def save_judge(path: str | os.PathLike[str], model: nn.Module, **about: Any) -> None:
    """Write a judge made by `make_judge`: weights and its recipe; `about` is kept beside it (JSON values only)."""
    names = [name for name, cls in JUDGES.items() if type(model) is cls]
    if not names:
        raise ConfigurationError(
            f"{type(model).__name__} is not one of MaskAug's judges ({', '.join(JUDGES)}); save its state_dict with "
            "safetensors.torch.save_file and pass the module itself as reward_model"
        )
    first = next(p for p in model.parameters() if p.ndim == 4)
    last = list(model.parameters())[-1]
    recipe = {"judge": names[0], "in_channels": first.shape[1], "classes": last.shape[0], "width": first.shape[0]}
    if clash := sorted(recipe.keys() & about.keys()):
        raise ConfigurationError(f"{', '.join(clash)} is written from the network itself; give it another name")
    write_safetensors(path, dict(model.state_dict()), {"maskaug_judge": json.dumps({**recipe, **about})})


def load_judge(path: str | os.PathLike[str]) -> tuple[nn.Module, Mapping[str, Any]]:
    """(the network with its weights, on the CPU; what was written about it)."""
    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(os.fspath(path))
    except (OSError, SafetensorError) as error:
        raise JudgeError(
            f"{path} cannot be read as a safetensors file ({error}); give a file that pretrain wrote"
        ) from None
    if "maskaug_judge" not in metadata:
        raise JudgeError(
            f"{path} holds weights but not the recipe of a MaskAug judge; write it with `maskaug pretrain`, or build "
            "the network yourself and pass the module as reward_model"
        )
    try:
        about: dict[str, Any] = json.loads(metadata["maskaug_judge"])
        model = make_judge(about["judge"], about["in_channels"], about["classes"], seed=0, width=about["width"])
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise JudgeError(
            f"{path} does not hold what its header says ({error}); write it anew with `maskaug pretrain`"
        ) from None
    return model, about


def resolve_judge(
    reward_model: str | os.PathLike[str] | nn.Module | None,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int,
    *,
    joint: bool,
) -> nn.Module:
    """The judge of an environment, checked against its images and classes.

    Args:
        reward_model: a name ("small"; None means it), a .safetensors path, or a module.
        image_shape: (C, H, W) of the images.
        classes: number of classes of the data set.
        seed: of a new judge's first weights.
        joint: whether it will learn; a judge that will not needs weights.
    """
    channels = image_shape[0]
    if isinstance(reward_model, nn.Module):
        model: nn.Module = reward_model
    elif reward_model is not None and reward_model not in JUDGES and _is_file(reward_model):
        model, about = load_judge(reward_model)
        if (about["in_channels"], about["classes"]) != (channels, classes):
            raise ConfigurationError(
                f"{reward_model} judges {about['in_channels']} channels and {about['classes']} classes, but the data "
                f"has {channels} and {classes}; pre-train a judge on this data, or change channels"
            )
    else:
        model = make_judge("small" if reward_model is None else os.fspath(reward_model), channels, classes, seed)
        if not joint:
            raise ConfigurationError(
                "joint=False freezes the judge, but no trained weights were given; pass reward_model=FILE from "
                "`maskaug pretrain` (or a trained nn.Module), or use joint=True"
            )
    with torch.no_grad():
        probe = next(model.parameters(), torch.zeros(())).device
        was_training = model.training
        try:
            out = model.eval()(torch.zeros(1, *image_shape, device=probe))
        except Exception as error:  # a network may raise anything when it gets images it was not made for
            raise ConfigurationError(
                f"the reward model fails on images of shape {(1, *image_shape)}, float32 in [0, 1]: {error}"
            ) from error
        finally:
            model.train(was_training)
    if not isinstance(out, torch.Tensor) or out.shape != (1, classes):
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ConfigurationError(
            f"the reward model must return logits (N, {classes}), but it returned {got} for one image"
        )
    return model


def _is_file(name: str | os.PathLike[str]) -> bool:
    # A name with the ending is meant as a file even where there is none: the error then says so.
    return Path(name).suffix == ".safetensors" or Path(name).exists()
