"""Training an agent into a run's folder, and evaluating what lies in one."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from maskaug.agents.agent import MaskAgent
from maskaug.agents.masker import AGENTS, load_agent
from maskaug.benchmarks.downstream import DownstreamSettings, downstream, summarise, table
from maskaug.benchmarks.masks import MaskReport, mask_report
from maskaug.benchmarks.pictures import masks_picture
from maskaug.benchmarks.run import RunFolder, read_config
from maskaug.envs.datasets import ImageDataset, dataset_options, load_dataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame, resolve_device
from maskaug.envs.judges import load_encoder, load_judge, make_judge, save_judge
from maskaug.envs.registration import TABLE
from maskaug.envs.rendering import save_picture
from maskaug.envs.rewards import RewardModel, frozen_reward

MASKER, JUDGE = "masker.safetensors", "judge.safetensors"
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
    wanted = {"root", "split", "image_size", "channels", "seed", *dataset_options(name)}
    chosen = {k: v for k, v in keywords.items() if k in wanted}
    if split is not None:
        chosen["split"] = split
    with warnings.catch_warnings():
        # The environment has said already that it plays on a stand-in.
        warnings.simplefilter("ignore", UserWarning)
        return load_dataset(name, **chosen)


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
        dataset_of(keywords, "val" if keywords.get("split", "train") == "train" else None),
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
    folder.start(
        {
            "data": {"name": train_set.name, "source": train_set.source, "split": train_set.split,
                     "images": len(train_set), "shape": list(train_set.shape), "digest": train_set.digest,
                     "licence": train_set.licence, "citation": train_set.citation},
            "env": {**_defaults(), **keywords, "area": game.rule.area, "area_price": game.rule.price},
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
            shown = mask_report(all_scores(current, check_set), check_set, train_set, current.spec)
            values = shown.flat(check_set.split)
            folder.log(current.num_timesteps, {f"eval/{k}": v for k, v in values.items()}, csv_row=False)

    if agent.num_timesteps < total_timesteps:
        agent.learn(total_timesteps - agent.num_timesteps, after_update, progress_bar)
        agent.save_checkpoint(folder.checkpoint_path(agent.num_timesteps))
        folder.tidy()
    agent.save(out / MASKER)
    save_judge(out / JUDGE, game.reward_model.model)
    report = report_on(agent, check_set, train_set, game.reward_model, game.fill)
    results = {"timesteps": float(agent.num_timesteps), **report.flat(check_set.split)}
    folder.results(results)
    heading = _heading(agent_name, check_set, report)
    picture = masks_picture(agent, check_set, game.reward_model, game.fill, heading=heading)
    folder.image("masks", picture, agent.num_timesteps)
    save_picture(str(out / "masks.png"), picture)
    folder.close()
    vector.close()
    say(f"\n{check_set.name}, {check_set.split} split, {report.images} images\n{report.table()}\n\nwrote {out}/")
    return results


def _refuse_leakage(keywords: Mapping[str, Any]) -> None:
    # The seed splits the data: a judge of another split has been trained on images that this run holds out.
    file = keywords.get("reward_model")
    if file is None or Path(file).suffix != ".safetensors":
        return
    about = load_judge(file)[1]
    train_set = dataset_of(keywords, "train")
    same_data = about.get("data") == train_set.name
    if same_data and about.get("seed") != keywords["seed"] and about.get("digest") != train_set.digest:
        raise ConfigurationError(
            f"{file} was pre-trained with --seed {about.get('seed')} on another split of {train_set.name}: it has seen "
            f"images that --seed {keywords['seed']} holds out; use the same seed for both"
        )


def evaluate(run: Path, split: str, device: str, say: Print = print) -> dict[str, float]:
    """Score the masker of a run on one split, with all controls; adds to its results.json and redraws masks.png."""
    config = read_config(run)
    asked = config["asked"]
    keywords = {**env_keywords(asked["env_id"], asked["env"]), "seed": asked["seed"]}
    dataset, train_set = dataset_of(keywords, split), dataset_of(keywords)
    if (only := keywords.get("only_class")) is not None and train_set.labels is not None:
        train_set = train_set.subset(train_set.labels == train_set.class_names.index(only))
    if train_set.source != config["resolved"]["data"]["source"]:
        raise ConfigurationError(
            f"{run} was trained on {config['resolved']['data']['name']}, but {train_set.name} is what is found now; "
            "make the data reachable (MASKAUG_DATA) and try again"
        )
    if train_set.digest != config["resolved"]["data"]["digest"]:
        say(f"note: the training images are not the ones that {run} was trained on (other files, or other decoders)")
    for name in (MASKER, JUDGE):
        if not (run / name).is_file():
            raise ConfigurationError(f"{run} has no {name}: its training has not ended; continue it with --resume")
    agent = load_agent(run / MASKER, device=device)
    judge = frozen_reward(load_judge(run / JUDGE)[0], keywords.get("objective", "adversarial"), resolve_device(device))
    report = report_on(agent, dataset, train_set, judge, keywords.get("fill", "zero"))
    results = report.flat(split)
    folder = RunFolder(run, asked, resume=True)
    folder.results(results)
    heading = _heading(asked["agent"], dataset, report)
    picture = masks_picture(agent, dataset, judge, keywords.get("fill", "zero"), heading=heading)
    save_picture(str(run / "masks.png"), picture)
    say(f"{dataset.name}, {split} split, {report.images} images\n{report.table()}")
    return results


def evaluate_downstream(
    run: Path, device: str, *, budgets: Sequence[int] = (10, 50, 100), draws: int = 5, say: Print = print
) -> dict[str, float]:
    """Read the encoder of a reconstruction run out with few labels, beside the same network without pre-training.

    Labelled images come from the run's training split, those that choose from its validation split, and the score from
    its test split, whose groups pre-training has not seen. Adds to results.json.

    Args:
        run: the folder of a finished run with objective="reconstruction".
        device: where features are computed.
        budgets: numbers of labels; all of them are read out besides.
        draws: how often the labels are drawn.
        say: where lines for people go.
    """
    config = read_config(run)
    asked = config["asked"]
    keywords = {**env_keywords(asked["env_id"], asked["env"]), "seed": asked["seed"]}
    if keywords.get("split", "train") != "train":
        raise ConfigurationError(
            f"{run} was pre-trained on the {keywords['split']} split: there are no images left that it has not seen"
        )
    if not (run / JUDGE).is_file():
        raise ConfigurationError(f"{run} has no {JUDGE}: its training has not ended; continue it with --resume")
    encoder = load_encoder(run / JUDGE)
    name, about = load_judge(run / JUDGE)[1]["judge"], load_judge(run / JUDGE)[1]
    settings = {"width": about["width"]} if "width" in about else {}
    fresh = make_judge(name, about["in_channels"], None, asked["seed"], **settings)
    train_set, val, test = (dataset_of(keywords, split) for split in ("train", "val", "test"))
    reading = DownstreamSettings(budgets=(*budgets, None), draws=draws, seed=asked["seed"])
    arms = {
        title: downstream(network, train_set, val, test, reading, device=resolve_device(device))
        for title, network in (("pre-trained", encoder), ("not pre-trained", fresh.encoder()))  # type: ignore[operator]
    }
    results = {
        **summarise(arms["pre-trained"]),
        **summarise(arms["not pre-trained"], "downstream.untrained"),
    }
    RunFolder(run, asked, resume=True).results(results)
    say(f"\n{test.name}, test split, {len(test)} images, mean ± SD of {draws} draws\n{table(arms)}")
    return results


def _defaults() -> dict[str, Any]:
    # So that a later version with other defaults does not change what an old config.json says.
    parameters = inspect.signature(MaskGame).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "num_envs"}


def _from_anywhere(name: str, value: Any) -> Any:
    # A run is continued and evaluated from other folders than the one it was started in.
    if name == "root" or (name == "reward_model" and Path(value).suffix == ".safetensors"):
        return str(Path(value).expanduser().resolve())
    return value


def report_on(
    agent: MaskAgent, dataset: ImageDataset, train_set: ImageDataset, judge: RewardModel, fill: str
) -> MaskReport:
    """The agent's masks on `dataset` beside their controls; chunks keep the memory small."""
    return mask_report(all_scores(agent, dataset), dataset, train_set, agent.spec, judge=judge, fill=fill)


def all_scores(agent: Any, dataset: ImageDataset, chunk: int = 64) -> npt.NDArray[np.float32]:
    """(N, g, g) scores of every image of `dataset`, by anything that has `scores`."""
    parts = [agent.scores(np.array(dataset.images[i : i + chunk])) for i in range(0, len(dataset), chunk)]
    return np.concatenate(parts)


def _heading(name: str, dataset: ImageDataset, report: MaskReport) -> str:
    text = f"{name} on {dataset.name}, {dataset.split}: {report.area:.0%} of the image"
    if not report.retention:
        return text
    kept = report.retention
    return (
        f"{text} keeps {kept['agent']:.0%} of the region (random {kept['random']:.0%}, swapped {kept['swapped']:.0%})"
    )
