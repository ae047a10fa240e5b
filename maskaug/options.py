"""The command line's options for environments and agents; what is left out takes its own default."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Split = Literal["train", "val", "test", "all"]
Precision = Literal["fp32", "bf16"]
Readout = Literal["paper", "logistic"]
Preset = Literal["default", "published"]
Arm = Literal[
    "none", "autoencoder", "random", "centre", "mae", "variance", "swapped", "ours", "random_patch", "centre_patch",
    "swapped_patch", "published",
]  # fmt: skip
Action = Literal["grid", "patch", "pixel", "box"]
Passes = Literal["eager", "channels_last", "compiled"]
Vectorization = Literal["native", "sync", "async", "dummy"]
ThroughputPreset = Literal["smoke", "cpu", "paper"]
ThroughputAgent = Literal[
    "apga", "apga_joint", "apga_published", "intelligent_masking", "intelligent_masking_published", "ppo"
]
MaskerArm = Literal[
    "cutout", "grad_cam", "input_gradient", "gradient", "bagged", "end_to_end", "apga", "apga_judges", "apga_features",
    "distilled",
]  # fmt: skip


class Options:
    """Options of which only those that were given count."""

    def given(self) -> dict[str, Any]:
        """What was given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class EnvOptions(Options):
    """Keywords of the environment; what is left out takes the id's own default.

    Attributes:
        root: the data set's folder.
        split: the part to train on.
        image_size: height and width in pixels; 64, or 224 for real images of MURA and hip fractures, if left out.
        channels: 1 or 3.
        n_shot: of the training split so many images of each class alone.
        flip: show images mirrored left to right, half of the time.
        objective: adversarial, preserving, both, sensitivity or reconstruction.
        action: grid, patch, pixel or box.
        grid: cells along each side; 8, or 16 at 224 pixels but for patches, if left out.
        patch_cells: side of a patch in cells; for agents that play patches.
        area: share of the image to select.
        area_price: weight of the price of leaving that area.
        fill: what hidden pixels become: zero, mean, noise or blur.
        joint: whether the judge learns along.
        judge_lr: the judge's learning rate.
        judge_batch: images in an update of the judge.
        reward_model: the judge: "small", "densenet169", "context_encoder" (reconstruction), or a .safetensors file;
            several classifiers are averaged.
        sensitivity: what objective sensitivity compares: output or features.
        visible_weight: weight of what was not hidden in what a reconstructor learns from.
        only_class: play the images of this class only.
        repeat: tries on each image.
        steps: masks an episode.
        tensors: play with tensors on the device: the images are kept there, and nothing crosses to the host.
        precision: fp32 or bf16: how judge and policy compute.
        channels_last: lay out weights and images channels last in memory.
        compile: compile the passes of judge and policy (torch.compile).
        kind: synthetic data: radiograph, ultrasound or mr.
        difficulty: synthetic data: easy, medium or hard.
        n: synthetic data: number of images.
        variant: BUSI: raw or clean.
        task: BUSI and synthetic ultrasound: diagnosis or presence.
        classes: BUSI diagnosis: 2 (benign, malignant) or 3 (and normal).
        body_part: MURA: elbow, finger, forearm, hand, humerus, shoulder or wrist, several with commas, or all.
        channel: LGG: flair, pre, post, or all (needs --channels 3).
        flag: MedMNIST: which of its sets: pneumoniamnist, breastmnist, …
        manifest: manifest and hip fractures: the CSV file's name below the root; manifest.csv if left out.
        class_names: manifest: its classes in the order of their numbers, with commas between; what the file holds,
            sorted, if left out.
        fit: real images that are not square: stretch, letterbox or crop.
        window: manifest and hip fractures: of images with more than 8 bits the values that become black and white,
            LOW,HIGH, or minmax.
        frame: manifest and hip fractures: of files with several pages, the one to read.
        max_pixels: real images with more pixels than this are refused; 64 million if left out.
        workers: threads that decode the images when they are first read; one for each core if left out.
    """

    root: str | None = None
    split: Split | None = None
    image_size: int | None = None
    channels: int | None = None
    n_shot: int | None = None
    flip: bool | None = None
    objective: str | None = None
    action: str | None = None
    grid: int | None = None
    patch_cells: int | None = None
    area: float | None = None
    area_price: float | None = None
    fill: str | None = None
    joint: bool | None = None
    judge_lr: float | None = None
    judge_batch: int | None = None
    reward_model: tuple[str, ...] | None = None
    sensitivity: str | None = None
    visible_weight: float | None = None
    only_class: str | None = None
    repeat: int | None = None
    steps: int | None = None
    tensors: bool | None = None
    precision: Precision | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    kind: str | None = None
    difficulty: str | None = None
    n: int | None = None
    variant: str | None = None
    task: str | None = None
    classes: int | None = None
    body_part: str | None = None
    channel: str | None = None
    flag: str | None = None
    manifest: str | None = None
    class_names: str | None = None
    fit: str | None = None
    window: str | None = None
    frame: int | None = None
    max_pixels: int | None = None
    workers: int | None = None

    def given(self) -> dict[str, Any]:
        """What was given; one judge as itself, several as a list."""
        found = super().given()
        if self.reward_model is not None:
            judges = list(self.reward_model)
            found["reward_model"] = judges[0] if len(judges) == 1 else judges
        return found


@dataclasses.dataclass(frozen=True)
class APGAOptions(Options):
    """Settings of APGA; what is left out takes APGA's default (see `maskaug.agents.apga.APGASettings`).

    Attributes:
        loss: "reinforce", or "published" for the paper's own.
        estimator: plackett_luce or bernoulli (reinforce only).
        network: grid, or ternausnet, the paper's.
        learning_rate: of Adam.
        entropy: weight of the entropy (reinforce only).
        normalise: advantages of unit size (reinforce only).
        max_grad_norm: gradients are clipped to this norm; 0: not at all.
        average: decay of the averaged weights.
        mirror: mirrored views.
        init: "auto", "judge" or "random": where the policy's trunk comes from.
        smooth: smoothing over neighbouring cells.
        width: channels of the first stage.
        loss_scale: factor of the first term (published only).
        penalty_none: price of claiming cells (published only).
        penalty_all: price of claiming none (published only).
        baseline_decay: of the moving baseline (published only).
    """

    loss: str | None = None
    estimator: str | None = None
    network: str | None = None
    learning_rate: float | None = None
    entropy: float | None = None
    normalise: bool | None = None
    max_grad_norm: float | None = None
    average: float | None = None
    mirror: bool | None = None
    init: str | None = None
    smooth: bool | None = None
    width: int | None = None
    loss_scale: float | None = None
    penalty_none: float | None = None
    penalty_all: float | None = None
    baseline_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class DistilledOptions(Options):
    """Settings of the distilled masker; what is left out takes its default (see `maskaug.agents.distilled`).

    Attributes:
        judges: how many are bagged.
        bag: share of the groups that each is trained on.
        judge_updates: of each judge's training.
        judge_lr: its peak learning rate.
        learning_rate: of the network's Adam.
        average: decay of the averaged weights.
        mirror: both mirrored views.
        place: the network sees where each pixel lies.
        width: channels of its first stage.
        smooth: passes of a 3×3 kernel over its scores.
    """

    judges: int | None = None
    bag: float | None = None
    judge_updates: int | None = None
    judge_lr: float | None = None
    learning_rate: float | None = None
    average: float | None = None
    mirror: bool | None = None
    place: bool | None = None
    width: int | None = None
    smooth: int | None = None


@dataclasses.dataclass(frozen=True)
class IntelligentMaskingOptions(Options):
    """Settings of Intelligent Masking; what is left out takes its default (see `IntelligentMaskingSettings`).

    Attributes:
        mode: default, or published for the paper's own.
        network: imagining, plain or paper.
        width: channels of the first stage (imagining, plain).
        learning_rate: of Adam.
        schedule: of the learning rate: constant, linear or published.
        max_grad_norm: gradients are clipped to this norm; 0: not at all.
        exploration: softmax, epsilon or published.
        temperature: of softmax.
        epsilon_start: share of random actions at the beginning (epsilon only).
        epsilon_end: and at the end (epsilon only).
        share: of the hidden cells, how many Q chooses in the end (action grid only).
        target: cells or patch.
        loss: log, huber, squared or ranking.
        low_pass: smooth errors over neighbouring hidden cells.
        replay: transitions that are remembered.
        replay_updates: updates on them for each batch of new ones.
        replay_batch: transitions of each.
        average: decay of the averaged weights.
        mirror: mirrored views.
    """

    mode: str | None = None
    network: str | None = None
    width: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    max_grad_norm: float | None = None
    exploration: str | None = None
    temperature: float | None = None
    epsilon_start: float | None = None
    epsilon_end: float | None = None
    share: float | None = None
    target: str | None = None
    loss: str | None = None
    low_pass: bool | None = None
    replay: int | None = None
    replay_updates: int | None = None
    replay_batch: int | None = None
    average: float | None = None
    mirror: bool | None = None


@dataclasses.dataclass(frozen=True)
class SB3Options(Options):
    """Settings of Stable-Baselines3's algorithms; what is left out takes the default of `maskaug.agents.sb3_defaults`.

    One that the algorithm does not have is an error that names those it has.

    Attributes:
        learning_rate: of the optimiser.
        gamma: the discount; 0 where an episode is one mask, and 1 with `steps`.
        n_steps: steps of all environments in a rollout (on-policy).
        batch_size: masks in a step of the optimiser (all but A2C).
        n_epochs: passes over a rollout (PPO and its relatives).
        ent_coef: weight of the entropy (PPO and its relatives, A2C).
        clip_range: of the ratio of probabilities (PPO and its relatives).
        target_kl: how far an update may go (TRPO).
        buffer_size: masks that are remembered (DQN, QR-DQN, SAC).
        learning_starts: masks that are drawn at random first (DQN, QR-DQN, SAC).
        train_freq: steps of all environments between updates (DQN, QR-DQN, SAC).
        gradient_steps: steps of the optimiser in an update (DQN, QR-DQN, SAC).
        exploration_initial_eps: share of random actions at the beginning (DQN, QR-DQN).
        exploration_final_eps: and at the end (DQN, QR-DQN).
        exploration_fraction: share of the run in which it falls (DQN, QR-DQN).
        width: channels of the network's first stage, a multiple of 8.
        grid: cells along each side of the network's map, for pixels and boxes, which are read from it; the
            environment's grid. Grids and patches have theirs.
    """

    learning_rate: float | None = None
    gamma: float | None = None
    n_steps: int | None = None
    batch_size: int | None = None
    n_epochs: int | None = None
    ent_coef: float | None = None
    clip_range: float | None = None
    target_kl: float | None = None
    buffer_size: int | None = None
    learning_starts: int | None = None
    train_freq: int | None = None
    gradient_steps: int | None = None
    exploration_initial_eps: float | None = None
    exploration_final_eps: float | None = None
    exploration_fraction: float | None = None
    grid: int | None = None
    width: int | None = None
