"""Evaluating what lies in a run's folder: masks beside their controls, and encoders with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskaug.agents.masker import load_agent
from maskaug.benchmarks.classifiers import classifier_scores, sentence
from maskaug.benchmarks.downstream import downstream, summarise, table
from maskaug.benchmarks.pictures import masks_picture
from maskaug.benchmarks.readouts import READOUTS, DownstreamSettings
from maskaug.benchmarks.reports import correlations, heading_of, report_on
from maskaug.benchmarks.run import RunFolder, read_config
from maskaug.benchmarks.training import JUDGE, MASKER, Print, dataset_of, env_keywords, played
from maskaug.envs.devices import resolve_device
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import load_judge, make_judge
from maskaug.envs.judging import frozen_reward
from maskaug.envs.networks import at_once
from maskaug.envs.reconstructors import ContextEncoder, SmallContextEncoder
from maskaug.envs.rendering import save_picture
from maskaug.envs.rewards import ClassifierReward
from maskaug.envs.statistics import reestimate_statistics


def evaluate(run: Path, split: str, device: str, say: Print = print, *, tta: bool = False) -> dict[str, float]:
    """Score the masker of a run on one split, with all controls; adds to its results.json and redraws masks.png.

    Where the judge is a classifier it is scored too, with the batch-norm statistics of clean training images; with
    `tta` also with the softmaxes of the clean image and the aiding view averaged. Where the images have studies it is
    scored by study besides, and `studies.<split>.csv` (of tta `studies.<split>.tta.csv`) lists these.
    """
    config = read_config(run)
    asked = config["asked"]
    keywords = {**env_keywords(asked["env_id"], asked["env"]), "seed": asked["seed"]}
    whole, train_whole = (dataset_of(keywords, part) for part in (split, None))
    dataset, train_set = (played(images, keywords) for images in (whole, train_whole))
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
    judge = frozen_reward(
        load_judge(run / JUDGE)[0],
        keywords.get("objective", "adversarial"),
        resolve_device(device),
        keywords.get("sensitivity"),
    )
    classifies, fill = isinstance(judge, ClassifierReward), keywords.get("fill", "zero")
    if tta and not classifies:
        raise ConfigurationError(f"tta is for classifiers, and {run} has trained a reconstructor; leave it out")
    if classifies:
        reestimate_statistics(judge.model, train_whole.images, batch=at_once(*whole.shape[1:]))
    report = report_on(agent, dataset, train_set, judge, fill)
    results = {**report.flat(split), **correlations(agent, dataset, judge, fill)}
    scores = classifier_scores(judge.model, whole, judge.device, agent if tta else None, fill) if classifies else None
    results |= {} if scores is None else scores.flat
    folder = RunFolder(run, asked, resume=True)
    folder.results(results)
    heading = heading_of(agent.title, dataset, report)
    picture = masks_picture(agent, dataset, judge, fill, heading=heading)
    save_picture(str(run / "masks.png"), picture)
    for name, title in ((f"judge.{split}", "the judge"), (f"judge.{split}.tta", "with its aiding views")):
        for prefix, words in ((name, title), (f"{name}.study", f"{title}, by study")):
            if told := sentence(results, prefix):
                say(f"{words}: {told}")
    if scores is not None:
        for name, studies in scores.studies.items():
            studies.write(run / f"{name.replace('judge', 'studies', 1)}.csv", whole)
        if scores.note:
            say(scores.note)
    say(f"{dataset.name}, {split} split, {report.images} images\n{report.table()}")
    found = {k: v for k, v in results.items() if ".correlation." in k}
    if found:
        agent_says, variance_says = found[f"{split}.correlation.agent"], found[f"{split}.correlation.local_variance"]
        say(f"rank correlation with the true errors: {agent_says:.3f} (local variance {variance_says:.3f})")
    return results


def evaluate_downstream(
    run: Path,
    device: str,
    *,
    budgets: Sequence[int] = (10, 50, 100),
    draws: int = 5,
    readouts: Sequence[str] = READOUTS,
    say: Print = print,
) -> dict[str, float]:
    """Read the encoder of a reconstruction run out with few labels, beside the same network without pre-training.

    Labelled images come from the run's training split, those that choose from its validation split, and the score from
    its test split, whose groups pre-training has not seen. Adds to results.json.

    Args:
        run: the folder of a finished run with objective="reconstruction".
        device: where features are computed.
        budgets: numbers of labels; all of them are read out besides.
        draws: how often the labels are drawn.
        readouts: of `READOUTS`.
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
    model, about = load_judge(run / JUDGE)
    if not isinstance(model, SmallContextEncoder | ContextEncoder):
        raise ConfigurationError(
            f"{run} has trained a classifier; --downstream reads out encoders, of runs with objective='reconstruction'"
        )
    settings = {"width": about["width"]} if "width" in about else {}
    fresh = make_judge(about["judge"], about["in_channels"], None, asked["seed"], **settings)
    assert isinstance(fresh, SmallContextEncoder | ContextEncoder)
    train_set, val, test = (dataset_of(keywords, split) for split in ("train", "val", "test"))
    reading = DownstreamSettings(budgets=(*budgets, None), draws=draws, readouts=tuple(readouts), seed=asked["seed"])
    arms = {}
    for title, network in (("pre-trained", model), ("not pre-trained", fresh)):
        encoder = reestimate_statistics(network.encoder().to(resolve_device(device)), train_set.images)
        say(f"{title} encoder")
        arms[title] = downstream(encoder, train_set, val, test, reading, resolve_device(device), say)
    results = {
        **summarise(arms["pre-trained"]),
        **summarise(arms["not pre-trained"], "downstream.untrained"),
    }
    RunFolder(run, asked, resume=True).results(results)
    say(f"\n{test.name}, test split, {len(test)} images, mean ± SD of {draws} draws\n{table(arms)}")
    return results
