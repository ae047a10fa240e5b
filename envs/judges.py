"""Reward models by name, by file, or brought along: building, saving and loading judges.

A judge's file is safetensors: the weights, and in the header what is needed to build the network again. Nothing in it
is executed.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from maskaug.envs.densenet import DenseNet169
from maskaug.envs.ensemble import Ensemble, members_of
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.files import write_safetensors
from maskaug.envs.networks import SmallClassifier, seeded_weights
from maskaug.envs.reconstructors import ContextEncoder, FrozenEncoder, SmallContextEncoder
from maskaug.envs.rows import ImageArray
from maskaug.envs.statistics import reestimate_statistics

#: a judge as people name it: a name, a .safetensors path, or the network itself.
Judge = str | os.PathLike[str] | nn.Module

#: name → a classifier, called as Network(in_channels=, classes=).
JUDGES: dict[str, type[nn.Module]] = {"small": SmallClassifier, "densenet169": DenseNet169}
#: name → a reconstruction network, called as Network(in_channels=).
RECONSTRUCTORS: dict[str, type[nn.Module]] = {"small": SmallContextEncoder, "context_encoder": ContextEncoder}
# What a file of several judges says instead of a name.
_ENSEMBLE = "ensemble"


def make_judge(name: str, channels: int, classes: int | None, seed: int, **settings: int) -> nn.Module:
    """A judge by name, with first weights drawn from `seed`.

    Args:
        name: a key of `JUDGES`, or of `RECONSTRUCTORS` where `classes` is None.
        channels: C of the images.
        classes: number of classes; None makes a reconstruction network.
        seed: of the first weights.
        **settings: the network's own keywords, such as its width.
    """
    known = RECONSTRUCTORS if classes is None else JUDGES
    if name not in known:
        raise ConfigurationError(
            f"reward_model={name!r} is neither a known {'classifier' if classes else 'reconstructor'} "
            f"({', '.join(known)}) nor an existing .safetensors file"
        )
    outputs = {} if classes is None else {"classes": classes}
    with seeded_weights(seed):
        return known[name](in_channels=channels, **outputs, **settings)


def save_judge(path: str | os.PathLike[str], model: nn.Module, **about: Any) -> None:
    """Write a judge made by `make_judge`, or an `Ensemble` of such: its weights and its recipe.

    Args:
        path: the .safetensors file.
        model: the judge.
        **about: what else is to be known of it, JSON values; it is kept beside the recipe.
    """
    if isinstance(model, Ensemble):
        members = [_recipe(judge) for judge in model.judges]
        common = {"kind": "classifier", **{name: members[0].get(name) for name in ("in_channels", "classes")}}
        if any(not common.items() <= member.items() for member in members):
            raise ConfigurationError(
                "the members of this ensemble are not classifiers of the same channels and classes; save each alone"
            )
        # Said once, so that a file cannot contradict itself.
        members = [{name: value for name, value in member.items() if name not in common} for member in members]
        recipe = {**common, "judge": _ENSEMBLE, "members": members}
    else:
        recipe = _recipe(model)
    if clash := sorted(recipe.keys() & about.keys()):
        raise ConfigurationError(f"{', '.join(clash)} is written from the network itself; give it another name")
    write_safetensors(path, dict(model.state_dict()), {"maskaug_judge": json.dumps({**recipe, **about})})


def _recipe(model: nn.Module) -> dict[str, Any]:
    for kind, known in (("classifier", JUDGES), ("reconstructor", RECONSTRUCTORS)):
        for name, network in known.items():
            if type(model) is network:
                return {"kind": kind, "judge": name, **model.recipe}  # type: ignore[dict-item]
    known_names = ", ".join(sorted({*JUDGES, *RECONSTRUCTORS}))
    raise ConfigurationError(
        f"{type(model).__name__} is not one of MaskAug's judges ({known_names}); save its state_dict with "
        "safetensors.torch.save_file and pass the module itself as reward_model"
    )


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
        if not isinstance(about, dict):
            raise TypeError(f"it holds a {type(about).__name__}, not a recipe")
        with seeded_weights(0):
            if about["judge"] == _ENSEMBLE:
                common = {"kind": "classifier", "in_channels": about["in_channels"], "classes": about["classes"]}
                model: nn.Module = Ensemble([_build({**member, **common}) for member in about["members"]])
            else:
                model = _build(about)
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise JudgeError(
            f"{path} does not hold what its header says ({error}); write it anew with `maskaug pretrain`"
        ) from None
    return model, about


def _build(recipe: Mapping[str, Any]) -> nn.Module:
    network = (RECONSTRUCTORS if recipe.get("kind") == "reconstructor" else JUDGES)[recipe["judge"]]
    return network(**{name: recipe[name] for name in inspect.signature(network).parameters})


def load_encoder(path: str | os.PathLike[str]) -> FrozenEncoder:
    """The frozen encoder of a pre-trained reconstructor: what pre-training was for. A run's encoder.safetensors.

    (A run's judge.safetensors can be read too; its batch-norm statistics are those of images with hidden parts.)

    It takes (N, C, H, W) float in [0, 1] and returns feature maps (N, F, h, w); F is its `out_channels`.
    """
    model, _ = load_judge(path)
    if not isinstance(model, SmallContextEncoder | ContextEncoder):
        raise JudgeError(
            f"{path} holds a classifier; give the encoder.safetensors of a run with objective='reconstruction'"
        )
    return model.encoder()


def save_encoder(path: str | os.PathLike[str], model: SmallContextEncoder | ContextEncoder, images: ImageArray) -> None:
    """Write a reconstructor for `load_encoder`, its encoder's batch-norm statistics those of clean `images`.

    Args:
        path: the .safetensors file.
        model: the pre-trained reconstructor; it stays as it is.
        images: (N, C, H, W) uint8, of the training split; see `reestimate_statistics`.
    """
    clean = copy.deepcopy(model)
    clean.down.load_state_dict(reestimate_statistics(model.encoder(), images).stages.state_dict())
    save_judge(path, clean, statistics="clean images")


def resolve_judge(
    reward_model: Judge | Sequence[Judge] | None,
    image_shape: tuple[int, int, int],
    classes: int | None,
    seed: int,
    *,
    joint: bool,
) -> nn.Module:
    """The judge of an environment, checked against its images and classes.

    Args:
        reward_model: a name (None means "small"), a .safetensors path, or a module; for a classifier also several of
            them, which become an `Ensemble`. The same name twice is two judges with first weights of their own.
        image_shape: (C, H, W) of the images.
        classes: number of classes of the data set; None asks for a reconstruction network.
        seed: of a new judge's first weights.
        joint: whether it will learn; a judge that will not needs weights.
    """
    if reward_model is None or isinstance(reward_model, str | os.PathLike | nn.Module):
        return _resolve_one(reward_model, image_shape, classes, seed, joint=joint)
    return _resolve_several(reward_model, image_shape, classes, seed, joint=joint)


def _resolve_one(
    reward_model: Judge | None, image_shape: tuple[int, int, int], classes: int | None, seed: int, *, joint: bool
) -> nn.Module:
    channels = image_shape[0]
    if isinstance(reward_model, nn.Module):
        model: nn.Module = reward_model
    elif reward_model is not None and _is_file(reward_model):
        model, about = load_judge(reward_model)
        rebuilds = about.get("kind") == "reconstructor"
        if (classes is None) != rebuilds:
            found, needed = ("classifier", "reconstructor")[:: 1 if classes is None else -1]
            raise ConfigurationError(
                f"{reward_model} holds a {found}, and this objective needs a {needed}; give the file of one, or change "
                "the objective"
            )
        of = None if rebuilds else about["classes"]
        if (about["in_channels"], of) != (channels, classes):
            raise ConfigurationError(
                f"{reward_model} judges {_said(about['in_channels'], of)}, but the data has "
                f"{_said(channels, classes)}; pre-train a judge on this data, or change channels"
            )
    else:
        model = make_judge("small" if reward_model is None else os.fspath(reward_model), channels, classes, seed)
        if not joint:
            raise ConfigurationError(
                "joint=False freezes the judge, but no trained weights were given; pass reward_model=FILE from "
                "`maskaug pretrain` (or a trained nn.Module), or use joint=True"
            )
    shape = (1, *image_shape) if classes is None else (1, classes)
    multiple = getattr(model, "multiple", None)
    # Batch norm cannot learn from a single value a channel, which is what one image gives at the smallest multiple.
    if multiple is not None and any(side % multiple or side < 2 * multiple for side in image_shape[1:]):
        raise ConfigurationError(
            f"{type(model).__name__} takes sizes that are multiples of {multiple} from {2 * multiple} on, not "
            f"{image_shape[1]}×{image_shape[2]}; choose another image_size"
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
    if not isinstance(out, torch.Tensor) or out.shape != shape:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        wanted = f"images of the shape it is given, {shape}" if classes is None else f"logits (N, {classes})"
        raise ConfigurationError(f"the reward model must return {wanted}, but it returned {got} for one image")
    return model


def _resolve_several(
    reward_models: Sequence[Judge], image_shape: tuple[int, int, int], classes: int | None, seed: int, *, joint: bool
) -> nn.Module:
    kinds = (str, os.PathLike, nn.Module)
    if not isinstance(reward_models, list | tuple) or not all(isinstance(one, kinds) for one in reward_models):
        raise ConfigurationError(
            f"reward_model={reward_models!r} must be a name, a .safetensors path, an nn.Module, or a list of these"
        )
    if len(reward_models) == 1:
        return _resolve_one(reward_models[0], image_shape, classes, seed, joint=joint)
    if classes is None:
        raise ConfigurationError(
            "several reward models are averaged for classifiers only, and this objective needs a reconstructor; give "
            "one of them, or change the objective"
        )
    if not reward_models:
        raise ConfigurationError("reward_model is an empty list; give at least one judge, or leave it out")
    files = [Path(one).resolve() for one in reward_models if not isinstance(one, nn.Module) and _is_file(one)]
    modules = [id(part) for one in reward_models if isinstance(one, nn.Module) for part in members_of(one)]
    if len({*files, *modules}) < len(files) + len(modules):
        raise ConfigurationError(
            "reward_model holds the same judge twice, which costs two passes and changes nothing; give each once (the "
            "same name twice is two judges with first weights of their own)"
        )
    # The first is what it would be alone; the others' weights must not be another run's, of a seed beside this one.
    drawn = torch.randint(2**62, (len(reward_models) - 1,), generator=torch.Generator().manual_seed(seed))
    seeds = [seed, *drawn.tolist()]
    judges = [
        _resolve_one(one, image_shape, classes, own, joint=joint) for one, own in zip(reward_models, seeds, strict=True)
    ]
    return Ensemble(judges)


def _said(channels: int, classes: int | None) -> str:
    return f"{channels} channels" if classes is None else f"{channels} channels and {classes} classes"


def _is_file(name: str | os.PathLike[str]) -> bool:
    # A name with the ending is meant as a file even where there is none: the error then says so.
    return name not in {*JUDGES, *RECONSTRUCTORS} and (Path(name).suffix == ".safetensors" or Path(name).exists())
