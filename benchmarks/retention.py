"""Does the mask find what matters? Retention at equal area over seeds, with all controls: `maskaug bench retention`.

One seed = one draw (or split) of the data, one judge trained on its training split and frozen, one APGA trained against
it. Everything is scored on the held-out test split.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from maskaug.agents.apga import APGA
from maskaug.agents.saliency import InputGradient
from maskaug.benchmarks.masks import control_masks, retentions
from maskaug.benchmarks.reports import all_scores
from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.devices import resolve_device
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.files import write_json
from maskaug.envs.judges import make_judge
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier


@dataclasses.dataclass(frozen=True)
class RetentionSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        env_id: whose images and grid.
        env: keywords of the environment.
        judge_updates: of the judge's training.
        timesteps: masks that APGA has judged.
        num_envs: images a batch.
        agent: APGA's settings.
    """

    env_id: str
    env: Mapping[str, Any]
    judge_updates: int = 1500
    timesteps: int = 12_800
    num_envs: int = 32
    agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A classifier that was trained on the training split and is frozen.

    Attributes:
        keywords: of the game against it.
        judge: it.
        train: the training split.
        test: the held-out test split.
        seconds: CPU time of its training.
    """

    keywords: Mapping[str, Any]
    judge: nn.Module
    train: ImageDataset
    test: ImageDataset
    seconds: float


def frozen_classifier(env_id: str, env: Mapping[str, Any], judge_updates: int, seed: int) -> Judged:
    """Draw or split the data by `seed`, and train the judge of the benchmark."""
    keywords = {**env_keywords(env_id, env), "seed": seed}
    train, val, test = (dataset_of({k: v for k, v in keywords.items()}, split) for split in ("train", "val", "test"))
    judge = make_judge("small", train.shape[0], len(train.class_names), seed)
    began = time.process_time()
    device = resolve_device(keywords.get("device", "cpu"))
    fit_classifier(judge, train, val, FitSettings(updates=judge_updates, seed=seed), device=device)
    seconds = time.process_time() - began
    return Judged({**keywords, "joint": False, "reward_model": judge}, judge, train, test, seconds)


def one_seed(settings: RetentionSettings, seed: int) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
    """(flat figures, name → (M,) retention of each test image with a region) of one seed."""
    judged = frozen_classifier(settings.env_id, settings.env, settings.judge_updates, seed)
    train, test, judge = judged.train, judged.test, judged.judge
    env = MaskVectorEnv(settings.num_envs, **judged.keywords)
    agent = APGA(env, seed=seed, **settings.agent)
    began = time.process_time()
    agent.learn(settings.timesteps)
    agent_seconds = time.process_time() - began
    masks = control_masks(all_scores(agent, test), test, train, agent.spec, seed)
    gradient = control_masks(all_scores(InputGradient(agent.spec, judge), test), test, train, agent.spec, seed)
    kept = retentions({"apga": masks.pop("agent"), "input_gradient": gradient["agent"], **masks}, test)
    quality = evaluate_classifier(judge, test)
    figures = {
        "judge_accuracy": quality["accuracy"],
        "judge_auroc": quality["auroc"],
        "judge_cpu_s": judged.seconds,
        "apga_cpu_s": agent_seconds,
        "cpu_ratio": agent_seconds / judged.seconds,
        **{f"retention.{name}": float(values.mean()) for name, values in kept.items()},
    }
    return figures, kept


def retention(
    settings: RetentionSettings, seeds: int, out: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Mean ± SD over seeds of every figure; the difference to |input × gradient| paired by seed.

    Args:
        settings: what is run.
        seeds: how many, from 0.
        out: a JSON file to write.
        say: where lines for people go.
    """
    rows = []
    for seed in range(seeds):
        figures, _ = one_seed(settings, seed)
        rows.append(figures)
        say(f"seed {seed}: " + "  ".join(f"{k.removeprefix('retention.')} {v:.3f}" for k, v in figures.items()))
    paired = [row["retention.apga"] - row["retention.input_gradient"] for row in rows]
    summary = {f"{k}.mean": float(np.mean([r[k] for r in rows])) for k in rows[0]}
    summary |= {f"{k}.sd": float(np.std([r[k] for r in rows], ddof=1)) if seeds > 1 else 0.0 for k in rows[0]}
    summary["paired_difference.mean"] = float(np.mean(paired))
    summary["paired_difference.min"] = float(np.min(paired))
    say(f"\n{'':<18}{'mean':>8}{'SD':>8}   ({seeds} seeds)")
    for name in rows[0]:
        say(f"{name.removeprefix('retention.'):<18}{summary[name + '.mean']:>8.3f}{summary[name + '.sd']:>8.3f}")
    say(f"APGA − |input × gradient|, paired: {np.mean(paired):+.3f} (smallest {np.min(paired):+.3f})")
    if out is not None:
        write_json(out, {"settings": dataclasses.asdict(settings), "summary": summary, "seeds": rows})
    return summary
