"""`make demo`: a judge, two maskers and a table on built-in radiographs, in a few minutes on two cores.

A judge is trained on medium radiographs and frozen. APGA, and APGA as published, learn from it where the break is.
Their masks are scored on held-out images beside their controls. Then new classifiers are trained on few labelled
images, with and without the masks' aiding views.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maskaug.agents.agent import MaskAgent
from maskaug.agents.apga import APGA
from maskaug.agents.saliency import InputGradient
from maskaug.benchmarks.masks import control_masks, retentions
from maskaug.benchmarks.pictures import masks_picture
from maskaug.benchmarks.reports import all_scores
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.files import write_json
from maskaug.envs.judges import make_judge, save_judge
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.pretrain import FitSettings, aiding_view, evaluate_classifier, fit_classifier
from maskaug.envs.rendering import save_picture


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        images: radiographs in all; 70 % are trained on, 15 % held out.
        judge_updates: of the judge's training.
        timesteps: masks that each agent has judged.
        labels: labelled images of the new classifiers; few, where help is needed. All arms get the same.
        classifier_updates: of each new classifier.
        classifier_seeds: new classifiers an arm.
        seed: of everything.
    """

    images: int = 3000
    judge_updates: int = 1500
    timesteps: int = 12_800
    labels: int = 300
    classifier_updates: int = 500
    classifier_seeds: int = 3
    seed: int = 0


def classifier_auroc(
    settings: DemoSettings, train: ImageDataset, val: ImageDataset, test: ImageDataset, cells: list[Tensor] | None
) -> list[float]:
    """Test AUROC of new classifiers, one a seed, on clean images or on clean images and aiding views."""
    result = []
    for seed in range(settings.classifier_seeds):
        model = make_judge("small", train.shape[0], len(train.class_names), 100 + seed)
        view = None
        if cells is not None:
            view = aiding_view(cells_to_mask(cells[seed % len(cells)], *train.shape[1:]))
        fit_classifier(model, train, val, FitSettings(updates=settings.classifier_updates, seed=100 + seed), view=view)
        result.append(evaluate_classifier(model, test)["auroc"])
    return result


def demo(out: Path, settings: DemoSettings = DemoSettings()) -> dict[str, float]:
    """Run everything; leaves masks.png, results.json, judge.safetensors and masker.safetensors in `out`."""
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:4.0f} s] {text}", flush=True)

    train, val, test = (
        load_dataset("synthetic", split=split, n=settings.images, seed=settings.seed)
        for split in ("train", "val", "test")
    )
    say(
        f"{settings.images} medium radiographs, half of them with a break: {len(train)} to train on, "
        f"{len(test)} held out"
    )
    judge = make_judge("small", train.shape[0], len(train.class_names), settings.seed)
    quality = fit_classifier(judge, train, val, FitSettings(updates=settings.judge_updates, seed=settings.seed))
    say(f"judge trained and frozen: validation AUROC {quality['auroc']:.3f}")

    def masker(loss: str, **play: Any) -> MaskAgent:
        env = MaskVectorEnv(32, dataset=train, joint=False, reward_model=judge, **play)
        agent = APGA(env, seed=settings.seed, loss=loss)

        def watch(current: MaskAgent, metrics: object) -> None:
            if current.num_timesteps % (settings.timesteps // 4) == 0:
                masks = control_masks(all_scores(current, val), val, train, current.spec)
                kept = retentions({"agent": masks["agent"]}, val)["agent"].mean()
                say(f"  {loss:<9} after {current.num_timesteps:6d} masks: keeps {kept:.0%} of the break (validation)")

        return agent.learn(settings.timesteps, watch)

    say("APGA learns which quarter of the image matters")
    agent = masker("reinforce", repeat=4, fill="blur")
    say("APGA as published, for comparison")
    published = masker("published", repeat=1, fill="zero")

    masks = control_masks(all_scores(agent, test), test, train, agent.spec)
    for name, other in (("input_gradient", InputGradient(agent.spec, judge)), ("published", published)):
        masks[name] = control_masks(all_scores(other, test), test, train, agent.spec)["agent"]
    masks["apga"] = masks.pop("agent")
    kept = {name: float(values.mean()) for name, values in retentions(masks, test).items()}

    say(
        f"new classifiers on {settings.labels} labelled images, {settings.classifier_updates} updates, "
        f"{settings.classifier_seeds} seeds an arm"
    )
    few = train.subset(np.arange(settings.labels))
    few_masks = control_masks(all_scores(agent, few), few, train, agent.spec)
    aurocs = {
        "clean": classifier_auroc(settings, few, val, test, None),
        "random_masks": classifier_auroc(settings, few, val, test, few_masks["random"]),
        "masked": classifier_auroc(settings, few, val, test, few_masks["agent"]),
    }
    auroc = {name: float(np.mean(values)) for name, values in aurocs.items()}

    out.mkdir(parents=True, exist_ok=True)
    agent.save(out / "masker.safetensors")
    save_judge(out / "judge.safetensors", judge)
    heading = (
        f"APGA: a quarter of each held-out radiograph keeps {kept['apga']:.0%} of the break "
        f"(random {kept['random']:.0%}, its own masks swapped {kept['swapped']:.0%})"
    )
    save_picture(str(out / "masks.png"), masks_picture(agent, test, heading=heading))
    results = {
        **{f"retention_at_25.{name}": value for name, value in kept.items()},
        **{f"auroc.{name}": value for name, value in auroc.items()},
        **{f"auroc.{name}.sd": float(np.std(values, ddof=1)) for name, values in aurocs.items()},
        "judge.val_auroc": quality["auroc"],
        "seconds": time.perf_counter() - began,
    }
    write_json(out / "results.json", results)

    names = {
        "random": "random masks", "swapped": "APGA's masks, swapped", "centre": "centre",
        "mean_region": "mean training region", "input_gradient": "|input × gradient|", "published": "APGA as published",
        "apga": "APGA", "ceiling": "best cells (ceiling)",
    }  # fmt: skip
    print(f"\n{'share of the break kept at 25 % area (held out)':<52}")
    for name, title in names.items():
        print(f"  {title:<40}{kept[name]:>8.3f}")
    print(
        f"\nAUROC of a new classifier, {settings.labels} labelled images, mean ± SD of "
        f"{settings.classifier_seeds} seeds (held out)"
    )
    arms = {"clean": "clean images", "random_masks": "clean + random masks", "masked": "clean + APGA's masks"}
    for name, title in arms.items():
        print(f"  {title:<40}{auroc[name]:>8.3f} ± {results[f'auroc.{name}.sd']:.3f}")
    print("  (the masker's judge had seen the labels of the whole training split)\n")
    say(f"wrote {out}/masks.png, results.json, masker.safetensors, judge.safetensors")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    demo(parser.parse_args().out)
