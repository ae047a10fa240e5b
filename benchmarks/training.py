"""Training an agent into a run's folder, and what training and evaluation share."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import gymnasium as gym

from maskaug.agents.base import Agent
from maskaug.agents.masker import AGENTS
from maskaug.benchmarks.classifiers import classifier_scores
from maskaug.benchmarks.early_stopping import EarlyStopping, epoch_timesteps
from maskaug.benchmarks.pictures import masks_picture
from maskaug.benchmarks.reports import correlations, few_of, heading_of, report_on
from maskaug.benchmarks.run import RunFolder
from maskaug.benchmarks.starting import START, check_warm_start, start_agent, start_judge, warm_judge
from maskaug.envs.dataset_registry import dataset_options, load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.distributed import ALONE, Ranks
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame
from maskaug.envs.judges import load_judge, save_encoder, save_judge
from maskaug.envs.judging import frozen_reward
from maskaug.envs.networks import at_once
from maskaug.envs.reconstructors import ContextEncoder, SmallContextEncoder
from maskaug.envs.registration import TABLE
from maskaug.envs.rendering import save_picture
from maskaug.envs.rewards import ClassifierReward, RewardModel
from maskaug.envs.statistics import has_statistics, reestimate_statistics

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
    total_timesteps: int | None = None,
    epochs: int | None = None,
    num_envs: int,
    seed: int,
    device: str,
    env: Mapping[str, Any],
    settings: Mapping[str, Any],
    checkpoint_every: int | None,
    patience: int = 0,
    warm_start: bool = False,
    weights: Mapping[str, Path] | None = None,
    resume: bool,
    progress_bar: bool,
    say: Print = print,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Train an agent; leaves `RunFolder`'s files, masker.safetensors and judge.safetensors in `out`.

    Args:
        agent_name: a key of `AGENTS`.
        env_id: a registered id.
        out: the run's folder.
        total_timesteps: masks to be judged in all, earlier parts of a resumed run included.
        epochs: the same as passes over the training images, see `epoch_timesteps`; one of the two.
        num_envs: images a batch, those of all ranks together.
        seed: of everything that is drawn.
        device: "auto", "cpu", "cuda", …
        env: keywords of the environment over its registered ones.
        settings: the agent's settings.
        checkpoint_every: timesteps between checkpoints; None: an epoch.
        patience: epochs without a better judge after which training ends, the best being kept; 0: `EarlyStopping` is
            off.
        warm_start: train the judge on clean images first; see `warm_judge`.
        weights: local files to start from, each optional: "imagenet" (the judge), "vgg11", "ternausnet" (APGA).
        resume: continue from the last checkpoint.
        progress_bar: show one.
        say: where lines for people go.
        ranks: the processes that play this one game, each of which calls this; see `maskaug.envs.distributed.joined`.
            The first alone writes the folder, says something and looks at held-out images.

    Returns:
        The flat metrics that results.json holds; on the other ranks nothing.
    """
    if (total_timesteps is None) == (epochs is None):
        raise ConfigurationError("total_timesteps and epochs both say how long a run is; give one of them")
    for name, value in (
        ("total_timesteps", total_timesteps),
        ("epochs", epochs),
        ("checkpoint_every", checkpoint_every),
    ):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}={value} must be at least 1")
    if patience < 0:
        raise ConfigurationError(f"patience={patience} must be at least 0, which switches it off")
    files = {k: str(Path(v).expanduser().resolve()) for k, v in (weights or {}).items()}
    env = {k: _from_anywhere(k, v) for k, v in env.items() if v is not None}
    here = device if ranks.device is None else str(ranks.device)
    keywords = {**env_keywords(env_id, env), "seed": seed, "device": here}
    slots = ranks.share(num_envs, "num_envs")
    asked = {
        "agent": agent_name, "env_id": env_id, "num_envs": num_envs, "seed": seed, "device": device,
        "env": env, "settings": dict(settings),
        "checkpoint_every": checkpoint_every,
        # None as in a run of an earlier version, which had none of these.
        "patience": patience or None, "warm_start": warm_start or None, "weights": files or None,
    }  # fmt: skip
    folder = RunFolder(out, asked, resume=resume) if ranks.first else None
    if folder is None:
        say = _nothing
    _refuse_leakage(keywords)
    vector = cast(
        MaskVectorEnv,
        gym.make_vec(env_id, num_envs=slots, **keywords).unwrapped,
    )
    game = vector.game
    game.spread(ranks)

    def judging(current: Agent) -> RewardModel:
        # The environment's judge has learnt nothing where the agent trains its own and plays no masks.
        own = None if "reward_model" in env else current.own_judge
        if own is None:
            return game.reward_model
        return frozen_reward(own, game.objective, game.device, game.sensitivity)

    if warm_start:
        check_warm_start(game)
    checkpoint = ranks.from_first(None if folder is None else folder.newest_checkpoint())
    if checkpoint is None:
        start_judge(game, files.get("imagenet"))

    def new_agent() -> Agent:
        made = AGENTS[agent_name](vector, seed=seed, device=here, **settings)
        if checkpoint is None:
            start_agent(made, files)
        return made

    agent = new_agent()
    agent.check_env(vector)
    held_out = dataset_of(keywords, "val" if keywords.get("split", "train") == "train" else None)
    train_set, check_set = game.dataset, played(held_out, keywords)
    if len(check_set) < 2:
        raise ConfigurationError(
            f"the {check_set.split} split of {check_set.name} has {len(check_set)} image, and masks are scored against "
            "their controls on at least two; bring more images"
        )
    stopping = EarlyStopping(patience, game, held_out) if patience else None
    epoch = epoch_timesteps(game)
    total = epochs * epoch if epochs is not None else total_timesteps or 0
    if checkpoint is not None:
        extra = agent.load_checkpoint(checkpoint)
        if stopping is not None:
            stopping.load_state(extra["stopping"])
        say(f"continuing {out} at {agent.num_timesteps} timesteps")
    if agent.num_timesteps < total:
        agent.check_length(total - agent.num_timesteps)
    if folder is not None:
        folder.start(
            {
                "data": {"name": train_set.name, "source": train_set.source, "split": train_set.split,
                         "images": len(train_set), "shape": list(train_set.shape), "digest": train_set.digest,
                         "licence": train_set.licence, "citation": train_set.citation},
                "env": {**_defaults(), **keywords, "area": game.rule.area, "area_price": game.rule.price,
                        "image_size": train_set.shape[1], "grid": game.rule.grid},
                "settings": agent.about()["settings"],
                "device": str(game.device),
                "processes": ranks.world,
            },
            agent.num_timesteps,
        )  # fmt: skip
    taught = "learns along" if game.joint else "frozen"
    if agent.plays_no_masks:
        taught = "trained by the agent" if "reward_model" not in env else "not asked"
    say(
        f"{agent.title} on {env_id}: {len(train_set)} images of {train_set.name} ({train_set.source}), "
        f"{num_envs} at a time × {game.repeat} tries, {epoch} masks an epoch, judge {taught}, {game.device}"
        f"{'' if ranks.alone else f' and {ranks.world - 1} more'}"
    )
    results: dict[str, float] = {}
    if warm_start:
        if checkpoint is None and not (out / START).is_file():
            say("warm start: the judge learns from clean images until it has converged")
        if folder is not None:
            about = warm_judge(
                out / START,
                game,
                held_out,
                epochs=epochs,
                patience=patience,
                seed=seed,
                progress_bar=progress_bar,
                play=checkpoint is None,
            )
            results |= {f"judge.start.val.{k}": v for k, v in about["val"].items()}
            say(f"the judge starts with a validation accuracy of {about['val']['accuracy']:.3f}")
        judge_now = game.reward_model.model
        ranks.copy_first([*judge_now.parameters(), *judge_now.buffers()])
        if checkpoint is None:
            # Its policy may start from the judge's trunk.
            agent = new_agent()
    last_saved = agent.num_timesteps

    def save() -> None:
        extra = {} if stopping is None else {"stopping": stopping.state()}
        # The others have a part in it, and write nothing.
        path = os.devnull if folder is None else folder.checkpoint_path(agent.num_timesteps)
        agent.save_checkpoint(path, **extra)
        if folder is not None:
            folder.tidy()

    def after_update(current: Agent, metrics: Mapping[str, float]) -> bool:
        nonlocal last_saved
        if folder is not None:
            looked = {} if stopping is None else stopping.look(current)
            folder.log(current.num_timesteps, {**metrics, **looked})
        if current.num_timesteps - last_saved >= (checkpoint_every or epoch):
            last_saved = current.num_timesteps
            save()
            if folder is not None:
                look(current, folder)
            ranks.wait()
        return stopping is None or ranks.from_first(not stopping.over)

    def look(current: Agent, folder: RunFolder) -> None:
        picture = masks_picture(current, check_set, judging(current), game.fill, rows=4, blocks=1)
        folder.image("masks", picture, current.num_timesteps)
        some = few_of(check_set) if current.spec.pixels else check_set
        values = report_on(current, some, train_set, None, game.fill).flat(check_set.split)
        values |= correlations(current, check_set, game.reward_model, game.fill)
        folder.log(current.num_timesteps, {f"eval/{k}": v for k, v in values.items()}, csv_row=False)

    if agent.num_timesteps < total and not (stopping is not None and stopping.over):
        agent.learn(total - agent.num_timesteps, after_update, progress_bar and ranks.first)
        save()
    if folder is None:
        vector.close()
        return {}
    if stopping is not None:
        stopping.put_best(agent)
        results |= stopping.results()
    judged = judging(agent)
    judge = judged.model
    classifies = isinstance(judged, ClassifierReward)
    if classifies and game.joint and has_statistics(judge):
        # What is left here is for clean images. The checkpoint has the game's own statistics.
        reestimate_statistics(judge, train_set.images, batch=at_once(*train_set.shape[1:]))
    agent.save(out / MASKER)
    # Whoever judges with it later must know which images it has seen.
    save_judge(out / JUDGE, judge, data=train_set.name, digest=train_set.digest, seed=seed)
    if isinstance(judge, SmallContextEncoder | ContextEncoder):
        save_encoder(out / ENCODER, judge, train_set.images)
    report = report_on(agent, check_set, train_set, judged, game.fill)
    results |= {
        "timesteps": float(agent.num_timesteps),
        **report.flat(check_set.split),
        **correlations(agent, check_set, judged, game.fill),
        **(classifier_scores(judge, held_out, game.device).flat if classifies else {}),
    }
    folder.results(results)
    heading = heading_of(agent.title, check_set, report)
    picture = masks_picture(agent, check_set, judged, game.fill, heading=heading)
    folder.image("masks", picture, agent.num_timesteps)
    save_picture(str(out / "masks.png"), picture)
    folder.close()
    vector.close()
    say(f"\n{check_set.name}, {check_set.split} split, {report.images} images\n{report.table()}\n\nwrote {out}/")
    return results


def _nothing(line: str) -> None:
    """The first rank says it."""


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
