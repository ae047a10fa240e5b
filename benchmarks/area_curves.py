"""Does the mask keep its area? The published loss against ours over time: `maskaug bench area`.

One seed = one draw (or split) of the data, one small judge trained on its training split and then frozen, and three
policies that start from the same weights (but for the last bias, see `APGA`) and see the same images in the same order:
TernausNet-11 on pixels, all in one game (adversarial, hidden pixels black), all without the extras that are ours alone
(averaged weights, mirrored views).

* "published": the paper's loss, learning rate 1e-5, one mask an image (its action is a threshold, it has no other).
* "published_rate": the same with the learning rate of "ours", so that what is seen is not the rate.
* "ours": `loss="reinforce"` with independent draws of every pixel, eight an image, and ten times the two-sided price of
  leaving the area in the reward. Its top pixels would have the right area by construction, so they are not looked at.

Measured on held-out images before the first update and after each, alike for all: the share of pixels with P > .5
(`area`, the mask that the published loss plays), the mean of P (`drawn`, the expected area of the mask that ours
plays), and for both the share of images on which it is below 1 % (`…nothing`) or above 99 % (`…everything`). P starts
at the target everywhere with ours, and at .5 with the published loss: a threshold of .5 selects nothing of a policy of
ours that is still undecided.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from maskaug._version import __version__
from maskaug.agents.agent import GridSpec, MaskAgent
from maskaug.agents.apga import APGA
from maskaug.benchmarks.charts import Curves, Panel, line_chart
from maskaug.benchmarks.presets import APGA_PRESETS
from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.actions import ActionRule
from maskaug.envs.devices import resolve_device
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json
from maskaug.envs.judges import make_judge
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier
from maskaug.envs.rendering import Picture, save_picture

ARMS = ("published", "published_rate", "ours")
_COLOURS = {"published": (213, 94, 0), "published_rate": (150, 50, 130), "ours": (0, 114, 178)}
#: an image's mask counts as nothing below the first share, and as everything above the second.
NOTHING, EVERYTHING = 0.01, 0.99
MEASURES = ("area", "nothing", "everything", "drawn", "drawn_nothing", "drawn_everything")
#: the area of the masks that an arm itself plays.
PLAYED = {"published": "area", "published_rate": "area", "ours": "drawn"}
#: draws of an image in an update of "ours".
TRIES = 8

#: keywords of the environment that are not for the user to set.
_OWN = {
    "split", "action", "objective", "joint", "judge_lr", "judge_batch", "reward_model", "sensitivity", "repeat",
    "steps", "tensors", "grid", "patch_cells", "visible_weight",
}  # fmt: skip

#: one arm of one seed: measure → its value before the first update and after each.
Curve = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class AreaSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        env_id: whose images.
        env: keywords of the environment: data, area, area_price, fill, ….
        updates: of every policy.
        num_envs: images an update.
        judge_updates: of the judge's training.
        learning_rate: of "ours" and "published_rate".
        held_out: images of the test split that are looked at, evenly spaced; all where there are fewer.
    """

    env_id: str = "MaskAug-Synthetic-v0"
    env: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    updates: int = 60
    num_envs: int = 8
    judge_updates: int = 600
    learning_rate: float = 3e-4
    held_out: int = 16

    def __post_init__(self) -> None:
        for name in ("updates", "num_envs", "judge_updates", "held_out"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1")
        if own := sorted(_OWN & self.env.keys()):
            raise ConfigurationError(
                f"{', '.join(own)} cannot be given here: pixels are played against a frozen judge of their own seed; "
                "leave it out"
            )
        _ = self.target  # refused now, not after a judge has been trained

    @property
    def keywords(self) -> dict[str, Any]:
        """Of the environment of every arm, but for its judge, its seed and the tries on an image."""
        game = {"objective": "adversarial", "action": "pixel", "fill": "zero", "joint": False, "area_price": 10.0}
        # An id's own action may bring along what pixels have not.
        of_id = {k: v for k, v in env_keywords(self.env_id, {}).items() if k not in ("patch_cells", "grid", "area")}
        return {**of_id, **game, **{k: v for k, v in self.env.items() if v is not None}}

    @property
    def target(self) -> float:
        """The area whose leaving has a price."""
        return ActionRule("pixel", 2, (2, 2), self.env.get("area"), self.env.get("area_price"), None).area

    def agent(self, arm: str) -> dict[str, Any]:
        """APGA's settings of one of `ARMS`."""
        published = dict(APGA_PRESETS["published"].settings)
        if arm == "published":
            return published
        if arm == "published_rate":
            return {**published, "learning_rate": self.learning_rate}
        return {
            "loss": "reinforce", "estimator": "bernoulli", "network": "ternausnet", "entropy": 0.0, "mirror": False,
            "average": 0.0, "learning_rate": self.learning_rate,
        }  # fmt: skip


def look(agent: MaskAgent, images: npt.NDArray[np.uint8]) -> dict[str, float]:
    """What the policy selects of held-out images (N, C, H, W) uint8: a value for each of `MEASURES`."""
    scores = torch.from_numpy(agent.scores(images)).flatten(1)
    result = {}
    # A score of 0 is a probability of .5.
    for name, start, areas in (
        ("area", "", (scores > 0).float().mean(1)),
        ("drawn", "drawn_", scores.sigmoid().mean(1)),
    ):
        result[name] = float(areas.mean())
        result[start + "nothing"] = float((areas < NOTHING).float().mean())
        result[start + "everything"] = float((areas > EVERYTHING).float().mean())
    return result


def one_arm(settings: AreaSettings, arm: str, seed: int, judge: nn.Module, device: str = "auto") -> Curve:
    """Train one policy against a frozen judge: each measure before the first update and after each, 4 decimals."""
    keywords = {**settings.keywords, "seed": seed, "device": device, "reward_model": judge}
    tries = TRIES if arm == "ours" else 1
    env = MaskVectorEnv(settings.num_envs, **{**keywords, "repeat": tries})
    agent = APGA(env, seed=seed, device=device, **settings.agent(arm))
    test = dataset_of(keywords, "test")
    chosen = np.linspace(0, len(test) - 1, min(settings.held_out, len(test))).astype(int)
    images = np.array(test.images[chosen])
    looks = [look(agent, images)]
    agent.learn(settings.updates * settings.num_envs * tries, lambda current, _: looks.append(look(current, images)))
    env.close()
    return {name: [round(one[name], 4) for one in looks] for name in MEASURES}


def judge_of(settings: AreaSettings, seed: int, device: str = "auto") -> tuple[nn.Module, dict[str, float]]:
    """A small judge trained on the training split of a seed, and its scores on the test split."""
    keywords = {**settings.keywords, "seed": seed}
    train, val, test = (dataset_of(keywords, split) for split in ("train", "val", "test"))
    judge = make_judge("small", train.shape[0], len(train.class_names), seed)
    where = resolve_device(device)
    fit_classifier(judge, train, val, FitSettings(updates=settings.judge_updates, seed=seed), device=where)
    return judge, evaluate_classifier(judge, test, device=where)


def area(
    settings: AreaSettings,
    seeds: Sequence[int],
    out: Path | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """All arms over seeds; returns mean and SD over seeds of what each measure is in the end.

    Args:
        settings: what is run.
        seeds: which.
        out: a folder for curves.json and area.png. What it holds already, seeds or single arms, is not done again.
        device: where everything runs.
        say: where lines for people go.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"seeds {tuple(seeds)} cannot be used; name at least one, and each once")
    test = dataset_of({**settings.keywords, "seed": seeds[0]}, "test")
    # A size, a rate or a device that will not do is refused now, not after a judge has been trained.
    APGA(GridSpec(test.shape, test.shape[1], 1, pixels=True), device=device, **settings.agent("ours"))
    about = {"name": test.name, "source": test.source, "version": __version__}
    asked = _asked(settings, about)
    done = {} if out is None else _finished(out / "curves.json", asked)
    say(f"{about['name']} ({about['source']}), {settings.updates} updates of {settings.num_envs} images")
    for seed in seeds:
        row = done.setdefault(str(seed), {})
        missing = [arm for arm in ARMS if arm not in row]
        if not missing:
            say(f"seed {seed}: found in {out}/curves.json")
            continue
        judge, quality = judge_of(settings, seed, device)
        say(f"seed {seed}: judge trained and frozen, test AUROC {quality['auroc']:.3f}")
        for arm in missing:
            began = time.perf_counter()
            row[arm] = one_arm(settings, arm, seed, judge, device)
            end = {name: values[-1] for name, values in row[arm].items()}
            say(f"seed {seed}: {arm} ({time.perf_counter() - began:.0f} s): {_words(end)}")
            if out is not None:
                _write(out / "curves.json", asked, done)
    wanted = {str(seed): done[str(seed)] for seed in seeds}
    summary = summary_of(wanted)
    say(area_table(summary, len(seeds)))
    if out is not None:
        _write(out / "curves.json", asked, done)
        save_picture(str(out / "area.png"), area_picture(settings, wanted, about["name"]))
        say(f"wrote {out}/")
    return summary


def summary_of(seeds: Mapping[str, Mapping[str, Curve]]) -> dict[str, float]:
    """Mean and SD over seeds of the last value of every measure of every arm: "<arm>.<measure>.mean", "….sd"."""
    summary: dict[str, float] = {}
    for arm in ARMS:
        for name in MEASURES:
            last = [row[arm][name][-1] for row in seeds.values()]
            summary[f"{arm}.{name}.mean"] = float(np.mean(last))
            summary[f"{arm}.{name}.sd"] = float(np.std(last, ddof=1)) if len(last) > 1 else 0.0
    return summary


def titles(learning_rate: float) -> dict[str, str]:
    """The arms' names for people."""
    rate = np.format_float_scientific(learning_rate, trim="-", exp_digits=1)
    return {
        "published": "published loss, rate 1e-5",
        "published_rate": f"published loss, rate {rate}",
        "ours": f"ours, rate {rate}",
    }


def area_table(summary: Mapping[str, float], seeds: int) -> str:
    """A table for the terminal: what every arm selects in the end, mean ± SD over seeds."""
    heads = {
        "area": "area at P > .5", "nothing": "of it < 1 %", "everything": "of it > 99 %", "drawn": "area drawn",
        "drawn_nothing": "of it < 1 %", "drawn_everything": "of it > 99 %",
    }  # fmt: skip
    lines = [f"\n{f'in the end, {seeds} seeds':<18}" + "".join(f"{head:>18}" for head in heads.values())]
    for arm in ARMS:
        cells = (f"{summary[f'{arm}.{name}.mean']:.3f} ± {summary[f'{arm}.{name}.sd']:.3f}" for name in heads)
        lines.append(f"{arm:<18}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def area_picture(settings: AreaSettings, seeds: Mapping[str, Mapping[str, Curve]], data: str) -> Picture:
    """Area over updates, (h, w, 3) uint8: of the mask that each arm plays, and beside it of the same threshold."""
    names = titles(settings.learning_rate)
    panels = []
    for title, measures in (
        ("as each plays it: P > .5 (published), drawn (ours)", PLAYED),
        ("one threshold for all: pixels with P > .5", dict.fromkeys(ARMS, "area")),
    ):
        groups = [
            Curves(names[arm], _COLOURS[arm], np.array([row[arm][measures[arm]] for row in seeds.values()]))
            for arm in ARMS
        ]
        panels.append(Panel(title, "share of the image (held-out images)", groups))
    heading = (
        f"Area of the mask over training, TernausNet-11 on {data}: {len(seeds)} seed{'s' * (len(seeds) > 1)} (thin), "
        "their mean (thick)"
    )
    return line_chart(panels, f"updates of {settings.num_envs} images", heading, ("target area", settings.target))


def _words(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


def _asked(settings: AreaSettings, data: Mapping[str, str]) -> dict[str, Any]:
    # What the curves follow from, as it stands in the file.
    asked: dict[str, Any] = {
        "data": dict(data), "settings": dataclasses.asdict(settings), "game": settings.keywords, "tries": TRIES,
        "agents": {arm: settings.agent(arm) for arm in ARMS},
    }  # fmt: skip
    result: dict[str, Any] = json.loads(json.dumps(asked))
    return result


def _write(file: Path, asked: Mapping[str, Any], done: Mapping[str, Mapping[str, Curve]]) -> None:
    whole = {seed: row for seed, row in done.items() if all(arm in row for arm in ARMS)}
    summary = {name: round(value, 4) for name, value in summary_of(whole).items()} if whole else {}
    write_json(file, {**asked, "seeds": done, "summary": summary})


def _finished(file: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if other := sorted(name for name in asked if found.get(name) != asked[name]):
        raise ConfigurationError(f"{file} holds curves of other {', '.join(other)}; choose another --out, or delete it")
    seeds: dict[str, dict[str, Curve]] = found["seeds"]
    return seeds
