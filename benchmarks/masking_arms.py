"""Does Intelligent Masking help? Encoders pre-trained by different masks, read out with few labels.

`maskaug bench intelligent-masking`. One seed = one draw (or split by group) of the data and one first set of weights;
every arm pre-trains the same reconstructor on the training split for the same number of updates of the same size, and
is read out on the same labelled draws. Equal hidden area: "ours" beside "random" and "centre", "published" beside
"random_patch", the last two in the paper's own game; "mae" hides 75 %, as masked autoencoders do. Three arms ask what
it is that helps: "autoencoder" hides nothing and reconstructs what it sees; "swapped" hides in every image what the
agent chose for another one; "variance" chooses as "ours" does, by each cell's local variance, which needs no learning.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask, LocalVariance, RandomMasks
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.benchmarks.downstream import downstream, summarise
from maskaug.benchmarks.errors import rank_correlation, true_errors
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.masks import control_masks, hits, retentions
from maskaug.benchmarks.pictures import reconstruction_rows
from maskaug.benchmarks.readouts import DownstreamSettings
from maskaug.benchmarks.training import all_scores, dataset_of, env_keywords, own_masks
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json
from maskaug.envs.judges import make_judge
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.reconstructors import reestimate_statistics
from maskaug.envs.rendering import Picture, label, save_picture, sheet
from maskaug.envs.rewards import ReconstructionReward

ARMS = (
    "none", "autoencoder", "random", "centre", "mae", "variance", "swapped", "ours", "random_patch", "published",
)  # fmt: skip
TITLES = {
    "none": "no pre-training", "autoencoder": "nothing hidden", "random": "random cells", "centre": "centre",
    "mae": "random cells, 75 %", "variance": "local variance", "swapped": "the agent's, swapped",
    "ours": "Intelligent Masking", "random_patch": "random patch", "published": "as published",
}  # fmt: skip
#: what each learned arm is compared with: random masks of equal area.
CONTROL = {"ours": "random", "published": "random_patch"}
#: and with what else.
CONTROLS = {"ours": ("none", "autoencoder", "variance", "swapped")}


@dataclasses.dataclass(frozen=True)
class ArmsSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        env_id: whose images.
        env: keywords of the environment (data, grid, judge_lr, fill, …).
        area: share hidden by "random", "centre" and "ours".
        updates: of the reconstructor, in every arm.
        batch: images each.
        arms: of `ARMS`.
        budgets: numbers of labels; None: all.
        draws: of labels, for each budget.
        readouts: "paper", "logistic".
        agent: settings of "ours".
    """

    env_id: str
    env: Mapping[str, Any]
    area: float = 0.5
    updates: int = 400
    batch: int = 32
    arms: tuple[str, ...] = ARMS
    budgets: tuple[int | None, ...] = (10, 50, 100, None)
    draws: int = 5
    readouts: tuple[str, ...] = ("paper", "logistic")
    agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown or not self.arms:
            raise ConfigurationError(f"arms {', '.join(unknown) or '()'} are unknown; use some of {ARMS}")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What one arm left.

    Attributes:
        judge: the pre-trained reconstructor.
        masker: what chose the masks; has `scores` and `predict`; None for "none".
        spec: the game it was chosen in.
        fill: what hidden pixels became in it.
        cpu_s: of its pre-training.
    """

    judge: ReconstructionReward
    masker: Any
    spec: GridSpec
    fill: str
    cpu_s: float


class Led(MaskVectorEnv):
    """An environment that is followed: each of its masks is played in another one too, on the next slot's image.

    Args:
        follower: as many slots, which see the same images in the same order.
        **kwargs: as for `MaskVectorEnv`.
    """

    def __init__(self, follower: MaskVectorEnv, **kwargs: Any) -> None:
        super().__init__(follower.num_envs, **kwargs)
        self.follower = follower

    def step(self, actions: Any) -> Any:
        """See `MaskVectorEnv.step`."""
        self.follower.step(torch.as_tensor(actions).roll(1, 0))
        return super().step(actions)


def pretrain_arm(settings: ArmsSettings, arm: str, seed: int, device: str = "auto") -> Arm:
    """Pre-train one arm's reconstructor; every arm starts from the same weights and sees the images in one order."""
    play = {**env_keywords(settings.env_id, settings.env), "objective": "reconstruction"}
    game: dict[str, Any] = {"action": "grid", "area": 0.75 if arm == "mae" else settings.area}
    if arm == "autoencoder":
        game["visible_weight"] = 1.0
    if arm in ("random_patch", "published"):
        game = {"action": "patch", "fill": "zero", "visible_weight": None, "judge_lr": None}
    judge = make_judge("small", play.get("channels", 1), None, seed)
    keywords = {**play, **game, "seed": seed, "device": device, "judge_batch": settings.batch}
    env = MaskVectorEnv(settings.batch, **{**keywords, "reward_model": judge})
    rule = env.game.rule
    spec = GridSpec(env.dataset.shape, rule.grid, rule.cells, rule.patch_cells)
    reward = env.game.reward_model
    assert isinstance(reward, ReconstructionReward)
    began = time.process_time()
    masker: Any = None
    if arm == "swapped":
        twin = make_judge("small", play.get("channels", 1), None, seed)
        led = Led(
            env, **{**play, **game, "seed": seed, "device": device, "reward_model": twin, "judge_batch": settings.batch}
        )
        env.reset(seed=seed)
        IntelligentMasking(led, seed=seed, device=device, **settings.agent).learn(settings.updates * settings.batch)
    elif arm in ("ours", "published"):
        own = settings.agent if arm == "ours" else {"mode": "published", "network": "plain"}
        masker = IntelligentMasking(env, seed=seed, device=device, **own)
        masker.learn(settings.updates * settings.batch)
    elif arm == "autoencoder":
        env.reset(seed=seed)
        for _ in range(settings.updates):
            env.step(np.zeros((settings.batch, rule.grid**2), np.int8))
    elif arm == "variance":
        masker = LocalVariance(spec)
        chooser = IntelligentMasking(spec, seed=seed, device=device, **settings.agent)
        observation, _ = env.reset(seed=seed)
        for update in range(settings.updates):
            cells = chooser.explore(torch.from_numpy(masker.scores(observation)), update / settings.updates)
            observation, *_ = env.step(cells.flatten(1))
    elif arm != "none":
        masker = FixedMask.centre(spec) if arm == "centre" else RandomMasks(spec, seed)
        observation, _ = env.reset(seed=seed)
        for _ in range(settings.updates):
            observation, *_ = env.step(masker.predict(observation)[0])
    return Arm(reward, masker, spec, env.game.fill, time.process_time() - began)


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
    done = {} if out is None else _finished(out, settings)
    arms: dict[str, Arm] = {}
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
            _write(out, settings, done)
            keywords = {**env_keywords(settings.env_id, settings.env), "seed": seed}
            save_picture(str(out / "arms.png"), arms_picture(arms, dataset_of(keywords, "test")))
    rows = [done[str(seed)] for seed in seeds]
    summary = summary_of(rows, settings)
    say(arms_table(summary, settings, len(rows)))
    if out is not None:
        _write(out, settings, done)
        say(f"wrote {out}/")
    return summary


def _write(out: Path, settings: ArmsSettings, done: Mapping[str, dict[str, float]]) -> None:
    whole = [row for row in done.values() if all(f"{arm}.cpu_s" in row for arm in settings.arms)]
    summary = summary_of(whole, settings)
    write_json(
        out / "results.json",
        {
            "settings": dataclasses.asdict(settings), "summary": summary, "seeds": dict(done),
            "unfinished": len(whole) < len(done),
        },
    )  # fmt: skip


def _finished(out: Path, settings: ArmsSettings) -> dict[str, dict[str, float]]:
    # A long table is made in several sittings: what is there already, with the same settings, is not done again.
    file = out / "results.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(dataclasses.asdict(settings)))
    if {**found["settings"], "arms": None} != {**asked, "arms": None}:
        raise ConfigurationError(f"{file} holds a table with other settings; choose another --out, or delete it")
    seeds: dict[str, dict[str, float]] = found["seeds"]
    return seeds


def summary_of(rows: Sequence[Mapping[str, float]], settings: ArmsSettings) -> dict[str, float]:
    """Mean and SD over seeds of every figure, and each arm's paired differences with their 95 % intervals."""
    summary: dict[str, float] = {"seeds": float(len(rows))}
    for key in rows[0]:
        values = [row[key] for row in rows]
        summary[f"{key}.mean"] = float(np.mean(values))
        summary[f"{key}.between_seeds"] = float(np.std(values, ddof=1)) if len(rows) > 1 else 0.0
    if len(rows) < 2:
        return summary
    for arm in settings.arms:
        for other in {"none", "random", CONTROL.get(arm, "none"), *CONTROLS.get(arm, ())} & set(settings.arms) - {arm}:
            for key in (k.removeprefix(f"{arm}.") for k in rows[0] if k.startswith(f"{arm}.")):
                if f"{other}.{key}" in rows[0] and key.endswith(("accuracy", "f1", "auroc")):
                    paired = paired_interval([row[f"{arm}.{key}"] - row[f"{other}.{key}"] for row in rows])
                    for end, value in zip(("mean", "low", "high"), paired, strict=True):
                        summary[f"{arm}-{other}.{key}.{end}"] = value
    return summary


def arms_table(summary: Mapping[str, float], settings: ArmsSettings, seeds: int) -> str:
    """A table for the terminal: every arm at every budget, and its difference to random masks of equal area."""
    lines = []
    for readout in settings.readouts:
        for budget in settings.budgets:
            key = f"{readout}.{budget or 'all'}"
            lines.append(
                f"\n{readout}, {budget or 'all'} labels, {settings.updates} updates, {seeds} seeds"
                f"\n{'':<22}{'accuracy':>16}{'macro-F1':>16}{'macro-AUROC':>16}   accuracy − random of equal area"
            )
            for arm in settings.arms:
                cells = ""
                for metric in ("accuracy", "f1", "auroc"):
                    mean, sd = (summary[f"{arm}.{key}.{metric}.{x}"] for x in ("mean", "between_seeds"))
                    cells += f"{mean:>9.3f} ± {sd:.3f}".rjust(16)
                paired = _interval(summary, f"{arm}-{CONTROL.get(arm, 'random')}", key)
                lines.append(f"{TITLES[arm]:<22}{cells}   {paired}".rstrip())
            for arm, others in CONTROLS.items():
                for other in (o for o in others if arm in settings.arms and o in settings.arms and seeds > 1):
                    lines.append(f"{TITLES[arm]} − {TITLES[other]}: {_interval(summary, f'{arm}-{other}', key)}")
    for arm in (a for a in CONTROL if a in settings.arms):
        starts = tuple(f"{arm}.{what}" for what in ("correlation", "hit", "retention"))
        found = {k[len(arm) + 1 : -5]: v for k, v in summary.items() if k.startswith(starts) and k.endswith(".mean")}
        lines.append(f"\n{TITLES[arm]}: " + "  ".join(f"{k} {v:.3f}" for k, v in found.items()))
    return "\n".join(lines)


def _interval(summary: Mapping[str, float], pair: str, key: str) -> str:
    names = [f"{pair}.{key}.accuracy.{end}" for end in ("mean", "low", "high")]
    if not all(name in summary for name in names):
        return ""
    return "{:+.3f} ({:+.3f} … {:+.3f})".format(*(summary[name] for name in names))


def arms_picture(arms: Mapping[str, Arm], test: ImageDataset, side: int = 128) -> Picture:
    """One held-out image per arm: image · Q-map · what was hidden · hidden image · what came back."""
    shown = test.with_region() if test.regions is not None and test.regions.any() else test
    one = shown.subset([len(shown) // 2])
    rows = []
    for name, arm in arms.items():
        if arm.masker is None:
            continue
        cells = arm.spec.cells_of(arm.masker.predict(np.array(one.images), deterministic=True)[0])
        scores = arm.masker.scores(np.array(one.images)) if name in CONTROL else None
        masks = cells_to_mask(cells, *one.shape[1:])
        (row,) = reconstruction_rows(one, scores, masks, arm.judge, arm.fill, side)
        rows.append([label(row[0], TITLES[name]), *(label(panel, "") for panel in row[1:])])
    return sheet(rows, ["image", "Q-map", "what was hidden", "hidden image", "what came back"])


def _headline(settings: ArmsSettings) -> str:
    budget = 100 if 100 in settings.budgets else settings.budgets[0]
    return f"{settings.readouts[-1]}.{budget or 'all'}.accuracy"
