"""The judge of a game, made as its keywords ask for, at work in it."""

from __future__ import annotations

from collections.abc import Sequence

from maskaug.envs.acceleration import Acceleration
from maskaug.envs.actions import ActionRule
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.judges import Judge, resolve_judge
from maskaug.envs.judging import ClassifierJudging, Judging, ReconstructionJudging
from maskaug.envs.pictures import Pictures
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rewards import ClassifierReward


def make_judging(
    dataset: ImageDataset,
    pictures: Pictures,
    rule: ActionRule,
    acceleration: Acceleration,
    *,
    num_envs: int,
    objective: str,
    reward_model: Judge | Sequence[Judge] | None,
    joint: bool,
    judge_lr: float | None,
    judge_batch: int,
    sensitivity: str | None,
    visible_weight: float | None,
    fill: str,
    flip: bool,
    tries: int,
    seed: int,
) -> Judging:
    """A classifier or a reconstructor, as the objective needs it, with what it remembers of the game.

    Args:
        dataset: the images that are played.
        pictures: the same, on the judge's device.
        rule: what is selected.
        acceleration: how the judge's passes are computed.
        num_envs: the number of slots.
        objective: what is rewarded.
        reward_model: the judge, or None for the small one.
        joint: whether it learns along.
        judge_lr: its learning rate; None: 0.001.
        judge_batch: images an update of it is made of.
        sensitivity: what objective="sensitivity" compares.
        visible_weight: of the visible pixels in a reconstructor's loss; None: 0.
        fill: what is put in place of hidden pixels.
        flip: whether images are seen mirrored, too.
        tries: masks on one image, those of all its episodes.
        seed: of a new judge's first weights.

    Raises:
        ConfigurationError: see `resolve_judge`.
    """
    lr = 1e-3 if judge_lr is None else judge_lr
    if objective in ClassifierReward.objectives:
        model = resolve_judge(reward_model, dataset.shape, len(dataset.class_names), seed, joint=joint)
        classifier = ClassifierReward(
            model, objective, pictures.device, trainable=joint, lr=lr, sensitivity=sensitivity,
            acceleration=acceleration,
        )  # fmt: skip
        return ClassifierJudging(classifier, dataset, pictures, num_envs, rule, joint, fill, judge_batch, flip)
    model = resolve_judge(reward_model, dataset.shape, None, seed, joint=joint)
    reconstructor = ReconstructionReward(
        model, pictures.device, trainable=joint, lr=lr, batch=judge_batch * tries,
        visible_weight=visible_weight or 0.0, acceleration=acceleration,
    )  # fmt: skip
    return ReconstructionJudging(reconstructor, dataset, pictures, num_envs, rule, joint)
