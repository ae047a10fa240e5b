"""Training an agent into a run's folder, and what training and evaluation share."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from maskaug.agents.agent import MaskAgent
from maskaug.agents.heuristics import LocalVariance
from maskaug.agents.masker import AGENTS
from maskaug.benchmarks.errors import rank_correlation, true_errors
from maskaug.benchmarks.masks import MaskReport, mask_report
from maskaug.benchmarks.pictures import masks_picture
from maskaug.benchmarks.run import RunFolder
from maskaug.envs.datasets import ImageDataset, dataset_options, load_dataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame
from maskaug.envs.judges import load_judge, save_encoder, save_judge
from maskaug.envs.reconstructors import ContextEncoder, SmallContextEncoder
from maskaug.envs.registration import TABLE
from maskaug.envs.rendering import save_picture
from maskaug.envs.rewards import ReconstructionReward, RewardModel

MASKER, JUDGE, ENCODER = "masker.safetensors", "judge.safetensors", "encoder.safetensors"
Print = Callable[[str], None]


def env_keywords(env_id: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The registered keywords of an id, with the given ones (those that are not None) over them."""
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        raise ConfigurationError(f"{str(error).rstrip('.')}; `maskaug envs` lists the ids") from None
    if env_id not in {row.id for row in TABLE}:
        raise ConfigurationError(f"{env_id} is not one of MaskAug's environments; `maskaug envs` lists them")
    return {**spec.kwargs, **{k: v for k, v in keywords.items() if v is not None}}


def dataset_of(keywords: Mapping[str, Any], split: str | None = None) -> ImageDataset:
    """The data set that an environment with these keywords plays on, in its own or another split."""
    name = keywords["dataset"]
    wanted = {"root", "split", "image_size", "channels", "n_shot", "seed", *dataset_options(name)}
    chosen = {k: v for k, v in keywords.items() if k in wanted}
    if split is not None:
        chosen["split"] = split
    with warnings.catch_warnings():
        # The environment has said already that it plays on a stand-in.
        warnings.simplefilter("ignore", UserWarning)
        return load_dataset(name, **chosen)


def played(dataset: ImageDataset, keywords: Mapping[str, Any]) -> ImageDataset:
    """The images of `dataset` that an environment with these keywords plays: those of `only_class`, or all."""
    only = keywords.get("only_class")
    if only is None or dataset.labels is None:
        return dataset
    return dataset.subset(dataset.labels == dataset.class_names.index(only))


def train(
    agent_name: str,
    env_id: str,
    *,
    out: Path,
    total_timesteps: int,
    num_envs: int,
    seed: int,
    device: str,
    env: Mapping[str, Any],
    settings: Mapping[str, Any],
    checkpoint_every: int,
    resume: bool,
    progress_bar: bool,
    say: Print = print,
) -> dict[str, float]:
    """Train an agent; leaves `RunFolder`'s files, masker.safetensors and judge.safetensors in `out`.

    Args:
        agent_name: a key of `AGENTS`.
        env_id: a registered id.
        out: the run's folder.
        total_timesteps: masks to be judged in all, earlier parts of a resumed run included.
        num_envs: images a batch.
        seed: of everything that is drawn.
        device: "auto", "cpu", "cuda", …
        env: keywords of the environment over its registered ones.
        settings: the agent's settings.
        checkpoint_every: timesteps between checkpoints.
        resume: continue from the last checkpoint.
        progress_bar: show one.
        say: where lines for people go.

    Returns:
        The flat metrics that results.json holds.
    """
    if total_timesteps < 1 or checkpoint_every < 1:
        raise ConfigurationError("total_timesteps and checkpoint_every must be at least 1")
    env = {k: _from_anywhere(k, v) for k, v in env.items() if v is not None}
    keywords = {**env_keywords(env_id, env), "seed": seed, "device": device}
    asked = {
        "agent": agent_name, "env_id": env_id, "num_envs": num_envs, "seed": seed, "device": device,
        "env": env, "settings": dict(settings),
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    folder = RunFolder(out, asked, resume=resume)
    _refuse_leakage(keywords)
    vector = cast(
        MaskVectorEnv,
        gym.make_vec(env_id, num_envs=num_envs, **keywords).unwrapped,
    )
    game = vector.game
    agent = AGENTS[agent_name](vector, seed=seed, device=device, **settings)
    agent.check_env(vector)
    train_set, check_set = (
        game.dataset,
        played(dataset_of(keywords, "val" if keywords.get("split", "train") == "train" else None), keywords),
    )
    if len(check_set) < 2:
        raise ConfigurationError(
            f"the {check_set.split} split of {check_set.name} has {len(check_set)} image, and masks are scored against "
            "their controls on at least two; bring more images"
        )
    checkpoint = folder.newest_checkpoint()
    if checkpoint is not None:
        agent.load_checkpoint(checkpoint)
        say(f"continuing {out} at {agent.num_timesteps} timesteps")
    if agent.num_timesteps < total_timesteps:
        agent.check_length(total_timesteps - agent.num_timesteps)
    folder.start(
        {
            "data": {"name": train_set.name, "source": train_set.source, "split": train_set.split,
                     "images": len(train_set), "shape": list(train_set.shape), "digest": train_set.digest,
                     "licence": train_set.licence, "citation": train_set.citation},
            "env": {**_defaults(), **keywords, "area": game.rule.area, "area_price": game.rule.price,
                    "image_size": train_set.shape[1], "grid": game.rule.grid},
            "settings": agent.about()["settings"],
            "device": str(game.device),
        },
        agent.num_timesteps,
    )  # fmt: skip
    say(
        f"{agent_name} on {env_id}: {len(train_set)} images of {train_set.name} ({train_set.source}), "
        f"{num_envs} × {game.repeat} masks an update, judge {'learns along' if game.joint else 'frozen'}, {game.device}"
    )
    last_saved = agent.num_timesteps

    def after_update(current: MaskAgent, metrics: Mapping[str, float]) -> None:
        nonlocal last_saved
        folder.log(current.num_timesteps, metrics)
        if current.num_timesteps - last_saved >= checkpoint_every:
            last_saved = current.num_timesteps
            current.save_checkpoint(folder.checkpoint_path(current.num_timesteps))
            folder.tidy()
            picture = masks_picture(current, check_set, game.reward_model, game.fill, rows=4, blocks=1)
            folder.image("masks", picture, current.num_timesteps)
            scores, own = all_scores(current, check_set), own_masks(current, check_set)
            shown = mask_report(scores, check_set, train_set, current.spec, own=own)
            values = shown.flat(check_set.split)
            values |= correlations(current, check_set, game.reward_model, game.fill)
            folder.log(current.num_timesteps, {f"eval/{k}": v for k, v in values.items()}, csv_row=False)

    if agent.num_timesteps < total_timesteps:
        agent.learn(total_timesteps - agent.num_timesteps, after_update, progress_bar)
        agent.save_checkpoint(folder.checkpoint_path(agent.num_timesteps))
        folder.tidy()
    agent.save(out / MASKER)
    # Whoever judges with it later must know which images it has seen.
    save_judge(out / JUDGE, game.reward_model.model, data=train_set.name, digest=train_set.digest, seed=seed)
    if isinstance(game.reward_model.model, SmallContextEncoder | ContextEncoder):
        save_encoder(out / ENCODER, game.reward_model.model, train_set.images)
    report = report_on(agent, check_set, train_set, game.reward_model, game.fill)
    results = {
        "timesteps": float(agent.num_timesteps),
        **report.flat(check_set.split),
        **correlations(agent, check_set, game.reward_model, game.fill),
    }
    folder.results(results)
    heading = heading_of(agent_name, check_set, report)
    picture = masks_picture(agent, check_set, game.reward_model, game.fill, heading=heading)
    folder.image("masks", picture, agent.num_timesteps)
    save_picture(str(out / "masks.png"), picture)
    folder.close()
    vector.close()
    say(f"\n{check_set.name}, {check_set.split} split, {report.images} images\n{report.table()}\n\nwrote {out}/")
    return results


def _refuse_leakage(keywords: Mapping[str, Any]) -> None:
    # The seed splits the data: a judge of another split has been trained on images that this run holds out.
    given = keywords.get("reward_model")
    judges = given if isinstance(given, list | tuple) else [given]
    files = [judge for judge in judges if judge is not None and Path(judge).suffix == ".safetensors"]
    if not files:
        return
    train_set = dataset_of(keywords, "train")
    for file in files:
        about = load_judge(file)[1]
        same_data = about.get("data") == train_set.name
        if same_data and about.get("seed") != keywords["seed"] and about.get("digest") != train_set.digest:
            raise ConfigurationError(
                f"{file} was pre-trained with --seed {about.get('seed')} on another split of {train_set.name}: it has "
                f"seen images that --seed {keywords['seed']} holds out; use the same seed for both"
            )


def _defaults() -> dict[str, Any]:
    # So that a later version with other defaults does not change what an old config.json says.
    parameters = inspect.signature(MaskGame).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "num_envs"}


def _from_anywhere(name: str, value: Any) -> Any:
    # A run is continued and evaluated from other folders than the one it was started in.
    if name == "reward_model" and isinstance(value, list | tuple):
        return [_from_anywhere(name, one) for one in value]
    if name == "root" or (name == "reward_model" and Path(value).suffix == ".safetensors"):
        return str(Path(value).expanduser().resolve())
    return value


def report_on(
    agent: MaskAgent, dataset: ImageDataset, train_set: ImageDataset, judge: RewardModel, fill: str
) -> MaskReport:
    """The agent's masks on `dataset` beside their controls; chunks keep the memory small."""
    own = own_masks(agent, dataset)
    return mask_report(all_scores(agent, dataset), dataset, train_set, agent.spec, judge=judge, fill=fill, own=own)


def correlations(agent: MaskAgent, dataset: ImageDataset, judge: RewardModel, fill: str) -> dict[str, float]:
    """Does the Q-map know what is hard? Rank correlation with the true errors, beside that of local variance.

    {"<split>.correlation.agent", "<split>.correlation.local_variance"}, means over at most 128 images, fewer where they
    are large; empty where the judge is no reconstructor.
    """
    if not isinstance(judge, ReconstructionReward):
        return {}
    # Every image is hidden in dozens of ways: 128 small images will do, and fewer large ones.
    count = min(len(dataset), max(8, 128 * 64**2 // (dataset.shape[1] * dataset.shape[2])), 128)
    some = dataset.subset(np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)))
    errors = true_errors(judge, some, agent.spec, fill)
    maps = {"agent": all_scores(agent, some), "local_variance": all_scores(LocalVariance(agent.spec), some)}
    found = {name: rank_correlation(scores, errors) for name, scores in maps.items()}
    return {
        f"{dataset.split}.correlation.{name}": float(values[np.isfinite(values)].mean())
        for name, values in found.items()
        if np.isfinite(values).any()
    }


def own_masks(agent: Any, dataset: ImageDataset, chunk: int = 64) -> Tensor | None:
    """The patches that an agent would play, as cells (N, g, g) bool; None where its masks follow from its scores."""
    if not agent.spec.patch_cells:
        return None
    images = dataset.images
    parts = [
        agent.predict(np.array(images[i : i + chunk]), deterministic=True)[0] for i in range(0, len(images), chunk)
    ]
    cells: Tensor = agent.spec.cells_of(np.concatenate(parts))
    return cells


def all_scores(agent: Any, dataset: ImageDataset, chunk: int = 64) -> npt.NDArray[np.float32]:
    """(N, g, g) scores of every image of `dataset`, by anything that has `scores`."""
    parts = [agent.scores(np.array(dataset.images[i : i + chunk])) for i in range(0, len(dataset), chunk)]
    return np.concatenate(parts)


def heading_of(name: str, dataset: ImageDataset, report: MaskReport) -> str:
    """One line for a picture: whose masks, on what, and what they keep beside their controls."""
    text = f"{name} on {dataset.name}, {dataset.split}: {report.area:.0%} of the image"
    if not report.retention:
        return text
    kept = report.retention
    return (
        f"{text} holds {kept['agent']:.0%} of the region (random {kept['random']:.0%}, swapped {kept['swapped']:.0%})"
    )
