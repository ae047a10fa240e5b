"""One cell of `maskaug bench algorithms`: a judge and the marks rewards are measured by, or one run against it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask, LocalVariance
from maskaug.agents.saliency import InputGradient
from maskaug.benchmarks.algorithm_agents import make_agent
from maskaug.benchmarks.masks import control_masks, gains, retentions
from maskaug.benchmarks.regret import achieved, chosen_patches, frozen_reconstructor
from maskaug.benchmarks.reports import all_scores
from maskaug.benchmarks.retention import frozen_classifier
from maskaug.benchmarks.run import read_json
from maskaug.benchmarks.search import greedy_search
from maskaug.benchmarks.timing import one_thread
from maskaug.benchmarks.training import dataset_of, env_keywords
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import JudgeError
from maskaug.envs.files import atomic_write
from maskaug.envs.judges import save_judge

JUDGE, REWARDS, RESULTS = "judge.safetensors", "rewards.npy", "results.json"
#: Adam's, while a reconstructor learns from random patches.
JUDGE_LR = 2e-3


class Look(Protocol):
    """What is measured of an agent on held-out images."""

    def __call__(self, agent: Any) -> dict[str, float]:
        """Measure → value: "normalised", and with known regions "retention"; of both also "swapped.…"."""


def milestones(first: int, total: int) -> list[int]:
    """Judged masks at which a run is looked at: they double, and the last is the end.

    >>> milestones(256, 2000)
    [256, 512, 1024, 2000]
    """
    looks = []
    while first < total:
        looks.append(first)
        first *= 2
    return [*looks, total]


def judge_cell(config: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> dict[str, float]:
    """Train and freeze the judge of a game and seed; what random, best and simple masks earn and keep.

    Args:
        config: `AlgorithmSettings.cells`' of a judge.
        folder: gets judge.safetensors and, of the patch game, rewards.npy: (M, A) float32 of every patch of each image.
        inputs: nothing.

    Returns:
        "random.reward" and "best.reward", which are 0 and 1 of "normalised"; "<masks>.normalised" and with known
        regions "<masks>.retention" of masks that nobody learns; "judge.cpu_s".
    """
    with one_thread(config["device"]):
        began = time.process_time()
        if config["game"] == "reconstruction":
            return _reconstructor(config, folder, began)
        return _classifier(config, folder, began)


def run_cell(config: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> dict[str, float]:
    """Train one agent against the seed's judge, looking at it on the way; what looking takes is nobody's time.

    Args:
        config: `AlgorithmSettings.cells`' of a run.
        folder: nothing is written into it.
        inputs: the judge's cell.

    Returns:
        "curve.<masks>.<measure>" and "curve.<masks>.cpu_s" of every look, with at least seven digits; "steps",
        "cpu_s", "wall_s" and the measures of the last.
    """
    (source,) = inputs.values()
    keywords = {**_keywords(config), "joint": False, "reward_model": str(source / JUDGE)}
    with one_thread(config["device"]):
        agent = make_agent(
            config["agent"], keywords, config["settings"], config["repeat"], config["seed"], config["device"]
        )
        look = _looker(config, keywords, source, agent.spec)
        return follow(agent, look, config["first"], config["timesteps"])


def follow(agent: Any, look: Look, first: int, total: int) -> dict[str, float]:
    """Let an agent learn from `total` masks, and look at it on the way; see `run_cell`."""
    figures: dict[str, float] = {}
    looks, last = milestones(first, total), 0
    spent = {"cpu_s": 0.0, "wall_s": 0.0}

    def note(steps: int) -> dict[str, float]:
        found = look(agent)
        own = {name: value for name, value in found.items() if not name.startswith("swapped.")}
        figures.update({f"curve.{steps:07d}.{name}": value for name, value in {**own, "cpu_s": spent["cpu_s"]}.items()})
        return found

    found = note(0)
    since = (time.process_time(), time.perf_counter())

    def watch(current: Any, metrics: Mapping[str, float]) -> None:
        nonlocal since, last, found
        if not looks or current.num_timesteps < looks[0]:
            return
        _pass(spent, since)
        last = current.num_timesteps
        del looks[: sum(due <= last for due in looks)]
        found = note(last)
        since = (time.process_time(), time.perf_counter())

    agent.learn(total, watch)
    if last < agent.num_timesteps:
        _pass(spent, since)
        last = agent.num_timesteps
        found = note(last)
    return {**figures, **found, **spent, "steps": float(last)}


def _pass(spent: dict[str, float], since: tuple[float, float]) -> None:
    spent["cpu_s"] += time.process_time() - since[0]
    spent["wall_s"] += time.perf_counter() - since[1]


def _keywords(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**env_keywords(config["env_id"], config["env"]), "seed": config["seed"], "device": config["device"]}


# ---- patches: every one of them is judged ----------------------------------------------------------------------------


def _reconstructor(config: Mapping[str, Any], folder: Path, began: float) -> dict[str, float]:
    env = {**config["env"], "device": config["device"]}
    keywords = frozen_reconstructor(config["env_id"], env, config["judge_updates"], JUDGE_LR, config["seed"])
    seconds = time.process_time() - began
    save_judge(folder / JUDGE, keywords["reward_model"])
    held_out = MaskVectorEnv(1, **keywords).evaluation(config["split"])
    every = held_out.game.action_rewards(np.arange(len(held_out.dataset)))
    atomic_write(folder / REWARDS, lambda path: _save(path, every))
    spec = _spec(held_out)
    simple = {"local_variance": LocalVariance(spec), "centre": FixedMask.centre(spec)}
    marks = _marks(float(every.mean()), float(every.max(1).mean()))
    return {
        **marks,
        **{
            f"{name}.normalised": _share(achieved(every, chosen_patches(held_out.dataset, masker)), marks)
            for name, masker in simple.items()
        },
        "judge.cpu_s": seconds,
    }


def _save(path: Path, array: npt.NDArray[np.float32]) -> None:
    with path.open("wb") as file:
        np.save(file, array)


# ---- sets of cells: at one area --------------------------------------------------------------------------------------


def _classifier(config: Mapping[str, Any], folder: Path, began: float) -> dict[str, float]:
    judged = frozen_classifier(
        config["env_id"], {**config["env"], "device": config["device"]}, config["judge_updates"], config["seed"]
    )
    seconds = time.process_time() - began
    save_judge(folder / JUDGE, judged.judge)
    env = MaskVectorEnv(1, **judged.keywords)
    game, spec = env.game, _spec(env)
    held_out = dataset_of(judged.keywords, config["split"])
    masks = control_masks(
        all_scores(InputGradient(spec, judged.judge), held_out), held_out, judged.train, spec, config["seed"]
    )
    best = greedy_search(held_out, game.reward_model, game.fill, spec.grid, spec.cells, config["seed"])
    simple = {"input_gradient": masks.pop("agent"), "search": [best], **masks}
    del simple["swapped"]
    earned = {
        name: float(np.mean([_gain([draw], held_out, env, config["seed"]) for draw in draws]))
        for name, draws in simple.items()
    }
    marks = _marks(earned["random"], earned["search"])
    kept = retentions(simple, held_out)
    return {
        **marks,
        **{f"{name}.normalised": _share(value, marks) for name, value in earned.items()},
        **{f"{name}.retention": float(values.mean()) for name, values in kept.items()},
        "judge.cpu_s": seconds,
    }


def _gain(draws: list[Tensor], held_out: Any, env: MaskVectorEnv, seed: int) -> float:
    return float(gains({"own": draws}, held_out, env.game.reward_model, env.game.fill, seed)["own"].mean())


# ---- both ------------------------------------------------------------------------------------------------------------


def _looker(config: Mapping[str, Any], keywords: Mapping[str, Any], source: Path, spec: GridSpec) -> Look:
    marks = read_json(source / RESULTS)
    held_out = dataset_of(keywords, config["split"])
    if config["game"] == "reconstruction":
        every = np.load(source / REWARDS, allow_pickle=False)

        def patches(agent: Any) -> dict[str, float]:
            chosen = chosen_patches(held_out, agent)
            # Each image's patch on every other image: no draw of a swap is needed.
            own, n = every[np.arange(len(every)), chosen].sum(), len(every)
            swapped = float((every[:, chosen].sum() - own) / (n * (n - 1)))
            return {
                "normalised": _share(achieved(every, chosen), marks), "swapped.normalised": _share(swapped, marks)
            }  # fmt: skip

        return patches
    train = dataset_of(keywords, "train")
    env = MaskVectorEnv(1, **keywords)

    def cells(agent: Any) -> dict[str, float]:
        masks = control_masks(all_scores(agent, held_out), held_out, train, spec, config["seed"])
        names = {"agent": "", "swapped": "swapped."}
        masks = {name: masks[name] for name in names}
        kept = retentions(masks, held_out)
        return {
            **{
                f"{prefix}normalised": _share(_gain(masks[name], held_out, env, config["seed"]), marks)
                for name, prefix in names.items()
            },
            **{f"{names[name]}retention": float(values.mean()) for name, values in kept.items()},
        }

    return cells


def _spec(env: MaskVectorEnv) -> GridSpec:
    rule = env.game.rule
    return GridSpec(env.dataset.shape, rule.grid, rule.cells, rule.patch_cells)


def _marks(random: float, best: float) -> dict[str, float]:
    if not best > random:
        raise JudgeError(
            f"no mask earns more than random ones do ({best:.3g} against {random:.3g}), so that there is nothing to "
            "learn; train the judge longer"
        )
    return {"random.reward": random, "best.reward": best}


def _share(reward: float, marks: Mapping[str, float]) -> float:
    return (reward - marks["random.reward"]) / (marks["best.reward"] - marks["random.reward"])
