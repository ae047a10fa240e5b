"""Every way to a mask on disjoint test folds: `maskaug bench maskers`.

The images are dealt into folds by group, once; each fold is the test set of one repetition, and every image is tested
once. Of the rest a part is held out to choose the moment of the one judge's training. All masks have the same area, and
beside each stand random cells, the centre, the mean training region, and its own masks swapped between images.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from maskaug._version import __version__
from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.distilled import Distilled
from maskaug.agents.end_to_end import EndToEnd
from maskaug.agents.gradients import Gradient
from maskaug.agents.heuristics import Cutout
from maskaug.agents.saliency import GradCAM, InputGradient
from maskaug.benchmarks.folds_table import folds_table, summary_of
from maskaug.benchmarks.masks import control_masks, retentions
from maskaug.benchmarks.reports import all_scores
from maskaug.benchmarks.training import dataset_of, env_keywords, played
from maskaug.envs.dataset_registry import dataset_options
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.ensemble import Ensemble
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json
from maskaug.envs.judges import make_judge
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier


@dataclasses.dataclass(frozen=True)
class FoldSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        env_id: whose images.
        env: keywords of the environment, played with a frozen judge.
        arms: which, of `ARMS`.
        folds: how many; each is the test set once.
        val_share: of the images that are not tested, what is held out from training.
        judge_updates: of the one judge's training, whose best moment on the validation images is kept.
        judges: how many are bagged for the arms that ask several.
        bagged_updates: of each one's training.
        distil_updates: of the distilled network.
        timesteps: masks that APGA, and the end-to-end mask, learn from.
        num_envs: images a batch.
        seed: of the folds and the validation images; fold i draws everything else from seed + i.
    """

    env_id: str
    env: Mapping[str, Any]
    arms: Sequence[str]
    folds: int = 5
    val_share: float = 0.18
    judge_updates: int = 600
    judges: int = 8
    bagged_updates: int = 300
    distil_updates: int = 250
    timesteps: int = 12_800
    num_envs: int = 32
    seed: int = 0


@dataclasses.dataclass
class Fold:
    """What the arms of one fold share.

    Attributes:
        settings: what is run.
        seed: of everything that is drawn.
        train: images that are trained on, of all classes.
        env: keywords of the environment, without the judge's.
        judge: the one judge.
        distil_s: CPU seconds that the distilled masker and its judges took; 0 before they are trained.
    """

    settings: FoldSettings
    seed: int
    train: ImageDataset
    env: Mapping[str, Any]
    judge: nn.Module
    distil_s: float = 0.0
    _distilled: Distilled | None = None

    def game(self, judge: nn.Module, **changes: Any) -> MaskVectorEnv:
        """The training images, judged by a frozen judge."""
        keywords = {**self.env, **changes}
        return MaskVectorEnv(self.settings.num_envs, dataset=self.train, joint=False, reward_model=judge, **keywords)

    @property
    def spec(self) -> GridSpec:
        """Grid and number of cells."""
        return Distilled(self.game(self.judge)).spec

    @property
    def distilled(self) -> Distilled:
        """The distilled masker, trained when it is first asked for: other arms use its judges and its scores."""
        if self._distilled is None:
            settings, began = self.settings, time.process_time()
            agent = Distilled(
                self.game(self.judge), seed=self.seed, judges=settings.judges, judge_updates=settings.bagged_updates
            )
            self._distilled = agent.learn(self.distil_timesteps)
            self.distil_s = time.process_time() - began
        return self._distilled

    @property
    def distil_timesteps(self) -> int:
        """The judges' training, and `distil_updates` of the network."""
        settings, batch = self.settings, FitSettings().batch_size
        return settings.judges * (settings.bagged_updates * batch + settings.distil_updates * settings.num_envs)

    @property
    def judges(self) -> Ensemble:
        """The bagged judges."""
        assert self.distilled.judges is not None
        return Ensemble(list(self.distilled.judges))

    def apga(self, judge: nn.Module, **changes: Any) -> APGA:
        """APGA against a frozen judge, four tries an image; `changes` are keywords of the environment."""
        return APGA(self.game(judge, repeat=4, **changes), seed=self.seed).learn(self.settings.timesteps)


#: arm → title, and what ranks the cells.
ARMS: dict[str, tuple[str, Callable[[Fold], Any]]] = {
    "cutout": ("Cutout", lambda f: Cutout(f.spec, f.seed)),
    "grad_cam": ("Grad-CAM", lambda f: GradCAM(f.spec, f.judge, seed=f.seed)),
    "input_gradient": ("|input × gradient|", lambda f: InputGradient(f.spec, f.judge)),
    "gradient": ("|gradient|, one judge", lambda f: Gradient(f.spec, [f.judge], mirror=False)),
    "bagged": ("|gradient|, bagged", lambda f: Gradient(f.spec, list(f.judges.judges))),
    "end_to_end": ("end-to-end", lambda f: EndToEnd(f.game(f.judge), seed=f.seed).learn(f.settings.timesteps)),
    "apga": ("APGA, one judge", lambda f: f.apga(f.judge)),
    "apga_judges": ("APGA, bagged judges", lambda f: f.apga(f.judges)),
    "distilled": ("distilled", lambda f: f.distilled),
    "apga_features": (
        "APGA, without labels",
        lambda f: f.apga(f.judges, objective="sensitivity", sensitivity="features"),
    ),
}

#: arms that ask the bagged judges.
BAGGED = ("bagged", "apga_judges", "apga_features", "distilled")
#: what the benchmark itself decides.
_OWN = {"joint", "judge_lr", "judge_batch", "reward_model", "repeat", "split", "flip", "steps", "tensors"}


def fold_parts(settings: FoldSettings, number: int) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """(train, validation, test) of one fold, whole groups each."""
    keywords = {**env_keywords(settings.env_id, settings.env), "seed": settings.seed}
    data = dataset_of(keywords, "all")
    part = data.splits(settings.seed, (1 / settings.folds,) * settings.folds)
    if not np.isin(np.arange(settings.folds), part).all():
        raise ConfigurationError(f"{data.name} has too few groups for {settings.folds} folds; use fewer folds")
    rest = data.subset(part != number, "train")
    held_out = rest.splits(settings.seed + number + 1, (1 - settings.val_share, settings.val_share)) == 1
    return rest.subset(~held_out, "train"), rest.subset(held_out, "val"), data.subset(part == number, "test")


def _play(settings: FoldSettings) -> dict[str, Any]:
    # The environment's keywords that do not choose the images.
    keywords = env_keywords(settings.env_id, settings.env)
    of_data = {"dataset", "root", "seed", "image_size", "channels", "n_shot", *dataset_options(keywords["dataset"])}
    return {k: v for k, v in keywords.items() if k not in of_data}


def one_fold(
    settings: FoldSettings, number: int, found: Mapping[str, float] | None = None, *, split: str = "test"
) -> dict[str, float]:
    """Flat figures of one fold: "<arm>.kept", "<arm>.swapped", "<arm>.cpu_s", and those of the controls.

    Args:
        settings: what is run.
        number: of the fold.
        found: figures that are there already; their arms are not run again.
        split: "test", or "val" while choices are still made.
    """
    parts = dict(zip(("train", "val", "test"), fold_parts(settings, number), strict=True))
    train, seed = parts["train"], settings.seed + number
    keywords = {**env_keywords(settings.env_id, settings.env)}
    scored = played(parts[split], keywords).with_region()
    judge = make_judge("small", train.shape[0], len(train.class_names), seed)
    fit_classifier(judge, train, parts["val"], FitSettings(updates=settings.judge_updates, seed=seed))
    judge.requires_grad_(False)
    fold = Fold(settings, seed, train, _play(settings), judge)
    figures = dict(found or {})
    figures |= {f"judge.{k}": v for k, v in evaluate_classifier(judge, parts[split]).items()}
    for arm in settings.arms:
        if f"{arm}.kept" in figures:
            continue
        began, before = time.process_time(), fold.distil_s
        scores = all_scores(ARMS[arm][1](fold), scored)
        # Whichever arm comes first trains the bagged judges: each that asks them has them in its price.
        own = time.process_time() - began - (fold.distil_s - before)
        figures[f"{arm}.cpu_s"] = own + (fold.distil_s if arm in BAGGED else 0.0)
        masks = control_masks(scores, scored, played(train, keywords), fold.spec, seed)
        kept = {name: float(values.mean()) for name, values in retentions(masks, scored).items()}
        figures[f"{arm}.kept"], figures[f"{arm}.swapped"] = kept.pop("agent"), kept.pop("swapped")
        figures |= {f"{name}.kept": value for name, value in kept.items()}
    return figures


def maskers(
    settings: FoldSettings,
    numbers: Sequence[int],
    out: Path | None = None,
    *,
    split: str = "test",
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """All arms on the given folds, with paired 95 % intervals; what `out` holds already is not run again.

    Args:
        settings: what is run.
        numbers: the folds, from 0.
        out: a JSON file.
        split: the images that are scored.
        say: where lines for people go.
    """
    unknown = [arm for arm in settings.arms if arm not in ARMS]
    if unknown or not settings.arms:
        raise ConfigurationError(f"arms={unknown or 'none'} are unknown; use some of {', '.join(ARMS)}")
    if settings.folds < 2 or not numbers or not set(numbers) <= set(range(settings.folds)):
        raise ConfigurationError(f"folds={settings.folds} must be at least 2, and their numbers 0 to folds − 1")
    if useless := sorted(_OWN & settings.env.keys()):
        raise ConfigurationError(
            f"{', '.join(useless)} would do nothing here: judges are trained on each fold's images and frozen; leave "
            "them out"
        )
    if split not in ("val", "test"):
        raise ConfigurationError(f"split={split!r} is no part to score masks on; use test, or val while choosing")
    if out is not None and out.is_dir():
        raise ConfigurationError(f"{out} is a folder; give a .json file")
    train, _, test = fold_parts(settings, numbers[0])
    test.with_region()
    blank = make_judge("small", train.shape[0], len(train.class_names), 0)
    fold = Fold(settings, settings.seed, train, _play(settings), blank)
    # Whatever is wrong with the settings shows here, and not after the first judge.
    agent = Distilled(fold.game(blank), judges=settings.judges, judge_updates=settings.bagged_updates)
    agent.check_length(fold.distil_timesteps)
    if "end_to_end" in settings.arms:
        EndToEnd(fold.game(blank)).check_env(fold.game(blank))
    about = {"name": test.name, "source": test.source, "split": split, "version": __version__}
    done = {} if out is None else _finished(out, settings, about)
    share = len(test) / len(train)
    titles = {name: title for name, (title, _) in ARMS.items()}
    say(f"{test.name} ({test.source}), {settings.folds} folds, {split}")
    for number in numbers:
        began = time.perf_counter()
        done[str(number)] = one_fold(settings, number, done.get(str(number)), split=split)
        row = done[str(number)]
        told = "  ".join(f"{arm} {row[f'{arm}.kept']:.3f}" for arm in settings.arms)
        say(f"fold {number} ({time.perf_counter() - began:.0f} s), region kept: {told}")
        if out is not None:
            _write(out, settings, about, done, share)
    rows = [row for row in done.values() if all(f"{arm}.kept" in row for arm in settings.arms)]
    summary = summary_of(rows, settings.arms, share)
    say(folds_table(summary, settings.arms, titles))
    return summary


def _write(
    out: Path, settings: FoldSettings, about: Mapping[str, str], done: Mapping[str, dict[str, float]], share: float
) -> None:
    rows = [row for row in done.values() if all(f"{arm}.kept" in row for arm in settings.arms)]
    write_json(
        out,
        {
            "data": dict(about), "settings": dataclasses.asdict(settings),
            "summary": summary_of(rows, settings.arms, share), "folds": dict(done),
            "unfinished": len(rows) < settings.folds,
        },
    )  # fmt: skip


def _finished(out: Path, settings: FoldSettings, about: Mapping[str, str]) -> dict[str, dict[str, float]]:
    if not out.is_file():
        return {}
    found = json.loads(out.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(dataclasses.asdict(settings)))
    if {**found["settings"], "arms": None} != {**asked, "arms": None} or found.get("data") != about:
        raise ConfigurationError(
            f"{out} holds a table with other settings, data or version; choose another --out, or delete it"
        )
    folds: dict[str, dict[str, float]] = found["folds"]
    return folds
