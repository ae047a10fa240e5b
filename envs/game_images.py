"""Which images a game plays: those of a data set that is loaded by its name, or those that were brought along."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from maskaug.envs.dataset_registry import dataset_options, load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game_keywords import check_options


def find_images(
    dataset: str | ImageDataset,
    parameters: Mapping[str, inspect.Parameter],
    options: Mapping[str, Any],
    *,
    root: str | os.PathLike[str] | None,
    split: str,
    image_size: int | None,
    channels: int,
    n_shot: int | None,
    seed: int,
) -> tuple[ImageDataset, dict[str, Any] | None]:
    """The images, and how they were loaded: what `load_dataset` takes for another split of them.

    The latter is None for images that were brought along.

    Args:
        dataset: a registered name, or the images themselves, which then decide on all that follows `options`.
        parameters: those of `MaskGame`, by name.
        options: the data set's own keywords.
        root: the data set's folder; see `load_dataset`, as for the rest.
        split: "train", "val", "test" or "all".
        image_size: height and width in pixels, or None.
        channels: 1 or 3.
        n_shot: images of each class, or None.
        seed: of splits, synthetic images and crops.

    Raises:
        ConfigurationError: an option that nobody knows, or a keyword that does not go with images brought along.
        DatasetError, ImageError: see `load_dataset`.
    """
    known = {name for name in parameters if name not in ("num_envs", "options")} | {"render_mode"}
    if isinstance(dataset, str):
        check_options(options, known | dataset_options(dataset))
        loaded = {"name": dataset, "root": root, "channels": channels, "n_shot": n_shot, "seed": seed, **options}
        images = load_dataset(split=split, image_size=image_size, **loaded)
        return images, {**loaded, "image_size": images.shape[1]}
    check_options(options, known)
    own = {"root": None, "split": dataset.split, "channels": dataset.shape[0], "image_size": dataset.shape[1]}
    given = {"root": root, "split": split, "channels": channels, "image_size": image_size}
    for name, value in given.items():
        if value not in (parameters[name].default, own[name]):
            raise ConfigurationError(
                f"{name}={value!r} cannot be combined with dataset=ImageDataset(...), whose {name} is "
                f"{own[name]!r}; leave it out"
            )
    if n_shot is not None:
        raise ConfigurationError(
            f"n_shot={n_shot!r} cannot be combined with dataset=ImageDataset(...); bring along "
            "dataset.few(n_shot, seed) instead"
        )
    return dataset, None


def check_classes(dataset: ImageDataset, objective: str) -> None:
    """A classifier has labels to judge by, of two classes at least; else a ConfigurationError."""
    if dataset.labels is None:
        raise ConfigurationError(f"{dataset.name} has no labels, and objective={objective!r} needs them")
    if len(dataset.class_names) < 2:
        raise ConfigurationError(f"{dataset.name} has one class alone, and a judge must tell at least two apart")


def images_of(dataset: ImageDataset, only_class: str, *, classifier_learns: bool) -> ImageDataset:
    """The images of one class.

    Raises:
        ConfigurationError: there is no such class, or a classifier is to learn from it alone.
    """
    if classifier_learns:
        raise ConfigurationError("only_class needs a frozen judge: add joint=False and reward_model=FILE")
    if dataset.labels is None or only_class not in dataset.class_names:
        raise ConfigurationError(f"only_class={only_class!r} is not a class of {dataset.name}: {dataset.class_names}")
    return dataset.subset(dataset.labels == dataset.class_names.index(only_class))
