"""`maskaug bench intelligent-masking`: the arms of `maskaug.benchmarks.arms` over seeds, read out with few labels."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from maskaug._version import __version__
from maskaug.agents.heuristics import LocalVariance
from maskaug.benchmarks.arms import ARMS, CONTROL, Arm, ArmsSettings, pretrain_arm
from maskaug.benchmarks.arms_table import arms_picture, arms_table, summary_of
from maskaug.benchmarks.downstream import downstream, summarise
from maskaug.benchmarks.errors import rank_correlation, true_errors
from maskaug.benchmarks.masks import control_masks, hits, retentions
from maskaug.benchmarks.readouts import DownstreamSettings
from maskaug.benchmarks.reports import all_scores, own_masks
from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json
from maskaug.envs.rendering import save_picture
from maskaug.envs.statistics import reestimate_statistics


def one_seed(
    settings: ArmsSettings, seed: int, device: str = "auto", done: Mapping[str, float] | None = None
) -> tuple[dict[str, float], dict[str, Arm]]:
    """(flat figures, the arms) of one seed: "<arm>.<read-out>.<budget>.<metric>", and what the learned masks hit.

    Arms that are in `done`, what an earlier call gave, are not done again.
    """
    keywords = {**env_keywords(settings.env_id, settings.env), "seed": seed}
    train, val, test = (dataset_of(keywords, split) for split in ("train", "val", "test"))
    reading = DownstreamSettings(budgets=settings.budgets, draws=settings.draws, readouts=settings.readouts, seed=seed)
    figures = dict(done or {})
    arms: dict[str, Arm] = {}
    for name in (arm for arm in settings.arms if f"{arm}.cpu_s" not in figures):
        arms[name] = arm = pretrain_arm(settings, name, seed, device)
        encoder = arm.judge.model.encoder()  # type: ignore[operator]
        # What training saw has hidden parts; so that "none" has statistics at all, too.
        reestimate_statistics(encoder, train.images)
        figures |= summarise(downstream(encoder, train, val, test, reading, device=arm.judge.device), name)
        figures[f"{name}.cpu_s"] = arm.cpu_s
        if name in CONTROL:
            figures |= {f"{name}.{k}": v for k, v in mask_figures(arm, train, test, seed).items()}
    return figures, arms


def mask_figures(arm: Arm, train: ImageDataset, test: ImageDataset, seed: int) -> dict[str, float]:
    """What a learned map knows on held-out images: the error's ranking, and the region at the size of one patch."""
    scores = all_scores(arm.masker, test)
    # Every image is hidden in many ways for this: a part of them will do.
    some = np.unique(np.linspace(0, len(test) - 1, min(128, len(test))).astype(int))
    errors = true_errors(arm.judge, test.subset(some), arm.spec, arm.fill, seed=seed)
    variance = all_scores(LocalVariance(arm.spec), test.subset(some))
    side = arm.spec.patch_cells or 2
    patch = dataclasses.replace(arm.spec, cells=side**2, patch_cells=side)
    result = {
        "correlation": float(np.nanmean(rank_correlation(scores[some], errors))),
        "correlation.local_variance": float(np.nanmean(rank_correlation(variance, errors))),
    }
    masks = control_masks(scores, test, train, patch, seed, own_masks(arm.masker, test))
    for what, values in (("hit", hits(masks, test)), ("retention", retentions(masks, test))):
        result |= {f"{what}.{name}": float(v.mean()) for name, v in values.items()}
    return result


def intelligent_masking(
    settings: ArmsSettings,
    seeds: Sequence[int],
    out: Path | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """All arms over seeds, with paired 95 % intervals against random masks of equal area and no pre-training.

    Args:
        settings: what is run.
        seeds: which.
        out: a folder for results.json and arms.png (of the last seed). What it holds already, seeds or single arms, is
            not done again.
        device: where everything runs.
        say: where lines for people go.
    """
    if not seeds:
        raise ConfigurationError("no seeds were given; name at least one")
    keywords = {**env_keywords(settings.env_id, settings.env), "seed": seeds[0]}
    train, test = (dataset_of(keywords, split) for split in ("train", "test"))
    data = {"name": test.name, "source": test.source, "version": __version__}
    # Every seed draws new synthetic images, and splits the same real ones anew.
    share = 0.0 if test.source == "synthetic" else len(test) / len(train)
    done, earlier = ({}, ()) if out is None else _finished(out, settings, data)
    # What is there already stays in the table.
    settings = dataclasses.replace(settings, arms=tuple(a for a in ARMS if a in {*settings.arms, *earlier}))
    arms: dict[str, Arm] = {}
    say(f"{data['name']} ({data['source']})")
    for seed in seeds:
        found = done.get(str(seed), {})
        if all(f"{arm}.cpu_s" in found for arm in settings.arms):
            say(f"seed {seed}: found in {out}/results.json")
            continue
        began = time.perf_counter()
        done[str(seed)], arms = one_seed(settings, seed, device, found)
        key = _headline(settings)
        told = "  ".join(f"{name} {done[str(seed)][f'{name}.{key}']:.3f}" for name in settings.arms)
        say(f"seed {seed} ({time.perf_counter() - began:.0f} s), {key}: {told}")
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            _write(out, settings, data, done, share)
            if len(arms) == len(settings.arms) and any(arm.masker is not None for arm in arms.values()):
                keywords = {**env_keywords(settings.env_id, settings.env), "seed": seed}
                save_picture(str(out / "arms.png"), arms_picture(arms, dataset_of(keywords, "test")))
    rows = [done[str(seed)] for seed in seeds]
    summary = summary_of(rows, settings, share)
    say(arms_table(summary, settings, len(rows)))
    if out is not None:
        _write(out, settings, data, done, share)
        say(f"wrote {out}/")
    return summary


def _write(
    out: Path, settings: ArmsSettings, data: Mapping[str, str], done: Mapping[str, dict[str, float]], share: float
) -> None:
    whole = {seed: row for seed, row in done.items() if all(f"{arm}.cpu_s" in row for arm in settings.arms)}
    write_json(
        out / "results.json",
        {
            "data": dict(data), "settings": dataclasses.asdict(settings),
            "summary": summary_of(list(whole.values()), settings, share), "seeds": dict(done),
            "unfinished": len(whole) < len(done),
        },
    )  # fmt: skip


def _finished(
    out: Path, settings: ArmsSettings, data: Mapping[str, str]
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    # (seeds, arms): a long table is made in several sittings, and what is there already, with the same settings and
    # data and by the same version, is not done again.
    file = out / "results.json"
    if not file.is_file():
        return {}, ()
    found = json.loads(file.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(dataclasses.asdict(settings)))
    if {**found["settings"], "arms": None} != {**asked, "arms": None} or found.get("data") != data:
        raise ConfigurationError(
            f"{file} holds a table with other settings, data or version; choose another --out, or delete it"
        )
    return found["seeds"], tuple(found["settings"]["arms"])


def _headline(settings: ArmsSettings) -> str:
    budget = 100 if 100 in settings.budgets else settings.budgets[0]
    return f"{settings.readouts[-1]}.{budget or 'all'}.accuracy"
