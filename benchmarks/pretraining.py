"""`maskaug pretrain`: a judge trained on clean images, written as one safetensors file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskaug.benchmarks.classifiers import classifier_scores, sentence
from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.devices import resolve_device
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import make_judge, save_judge
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier


def pretrain_judge(
    out: Path,
    env_id: str,
    env: Mapping[str, Any],
    *,
    updates: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: str,
    progress_bar: bool,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train the small judge on an environment's training split, keep its best moment on the validation split.

    Args:
        out: the .safetensors file; an existing one is not overwritten.
        env_id: whose images.
        env: keywords of the data set; others (objective, area, …) are refused, since they would do nothing.
        updates: optimiser steps.
        batch_size: images a step.
        lr: peak learning rate.
        seed: of splits, first weights, order and augmentation.
        device: "auto", "cpu", "cuda", …
        progress_bar: show one.
        say: where lines for people go.

    Returns:
        {"accuracy", "auroc", "loss", "update"} on the validation split.
    """
    if out.suffix != ".safetensors":
        raise ConfigurationError(f"out={str(out)!r} must end in .safetensors")
    if out.exists():
        raise ConfigurationError(f"{out} exists already; delete it, or choose another --out")
    if updates < 1 or batch_size < 1 or not 0 < lr < math.inf:
        raise ConfigurationError("updates and batch_size must be at least 1, and lr a finite number above 0")
    play = {"objective", "area", "area_price", "fill", "joint", "judge_lr", "judge_batch", "reward_model",
            "sensitivity", "only_class", "repeat", "steps", "flip", "tensors", "grid",
            "patch_cells", "split", "precision", "channels_last", "compile", "action", "visible_weight"}  # fmt: skip
    useless = sorted(play & set(env))
    if useless:
        raise ConfigurationError(
            f"{', '.join(useless)} would do nothing in pretrain, which sees clean images of the train split"
        )
    keywords = {**env_keywords(env_id, env), "seed": seed}
    train, val = dataset_of(keywords, "train"), dataset_of(keywords, "val")
    # Now, not after the training: a folder that cannot be made is an error that must come first.
    out.parent.mkdir(parents=True, exist_ok=True)
    judge = make_judge("small", train.shape[0], len(train.class_names), seed)
    say(f"a judge for {train.name} ({train.source}): {len(train)} training images, {updates} updates of {batch_size}")
    with tqdm(total=updates, disable=not progress_bar, unit="update", leave=False) as bar:
        scores = fit_classifier(
            judge,
            train,
            val,
            FitSettings(updates=updates, batch_size=batch_size, lr=lr, seed=seed),
            device=resolve_device(device),
            progress=lambda step, metrics: _advance(bar, metrics),
        )
    if "auroc" not in scores:
        # Fewer updates than moments to choose from: the last weights were kept, and nobody has scored them yet.
        scores = {**evaluate_classifier(judge, val, device=resolve_device(device)), "update": float(updates)}
    save_judge(
        out,
        judge,
        class_names=train.class_names,
        image_size=train.shape[1],
        data=train.name,
        digest=train.digest,
        seed=seed,
        val={k: v for k, v in scores.items() if math.isfinite(v)},
    )
    say(f"validation: accuracy {scores['accuracy']:.3f}, AUROC {scores['auroc']:.3f}; wrote {out}")
    if val.studies is not None:
        by_study = classifier_scores(judge, val, resolve_device(device))
        say(by_study.note or f"validation, by study: {sentence(by_study.flat, 'judge.val.study')}")
    return scores


def _advance(bar: Any, metrics: Mapping[str, float]) -> None:
    bar.update(1)
    bar.set_postfix(loss=f"{metrics['loss']:.3f}")
