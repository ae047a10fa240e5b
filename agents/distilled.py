"""A masker distilled from gradient maps: the strongest baseline that learns no policy.

Several small judges are trained on the labelled training images, each without a part of the groups. What moves their
answer, |∂ logit ÷ ∂ pixel| of the predicted class, averaged over judges and mirrored views and summed over cells, is a
map of each training image; a small network that sees the image and where each pixel lies learns to draw that map. At
prediction no judge and no gradient is needed. Bagging and mirroring take out what one judge happened to look at, and
the network what one image's map has of noise.

No reward is looked at: the environment gives images and is not stepped. Every image that a judge is trained on, and
every map that the network learns from, counts as one timestep for each judge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec, MaskAgent, check_kinds
from maskaug.agents.gradients import gradient_map
from maskaug.agents.networks import PlacePolicy, smoothed
from maskaug.envs.acceleration import load_optimiser
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.ensemble import Ensemble
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import make_judge
from maskaug.envs.memory import Demand
from maskaug.envs.networks import seeded_weights, to_float
from maskaug.envs.pretrain import FitSettings, fit_classifier


@dataclasses.dataclass(frozen=True)
class DistilledSettings:
    """How the masker is distilled.

    Attributes:
        judges: how many are bagged.
        bag: share of the groups that each is trained on.
        judge_updates: of each judge's training, `fit_classifier`'s.
        judge_lr: its peak learning rate.
        learning_rate: of the network's Adam.
        average: decay of the moving average of its weights, which is what predicts; 0 predicts with the last ones.
        mirror: average the maps, and the predictions, of both mirrored views.
        place: let the network see where each pixel lies.
        width: channels of its first stage, a multiple of 8.
        smooth: passes of a 3×3 binomial kernel over its scores: a gradient marks what a lesion's border is like, and a
            mask of its cells is to hold the lesion.
    """

    judges: int = 8
    bag: float = 0.85
    judge_updates: int = 300
    judge_lr: float = 2e-3
    learning_rate: float = 3e-3
    average: float = 0.98
    mirror: bool = True
    place: bool = True
    width: int = 32
    smooth: int = 4

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.judges < 1 or self.judge_updates < 1:
            raise ConfigurationError("judges and judge_updates must be at least 1")
        if not 0 < self.bag <= 1:
            raise ConfigurationError(f"bag={self.bag} must be a share above 0 and at most 1")
        for name in ("judge_lr", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be a finite number above 0")
        if not 0 <= self.average < 1:
            raise ConfigurationError(f"average={self.average} must be at least 0 and below 1")
        if self.smooth < 0:
            raise ConfigurationError(f"smooth={self.smooth} must be at least 0")
        if self.width < 8 or self.width % 8:
            raise ConfigurationError(f"width={self.width} must be a multiple of 8 (GroupNorm has 8 groups)")


class Distilled(MaskAgent):
    """A masker distilled from bagged gradient maps; see the module's text.

    Args:
        env: a vector environment with action="grid" whose images have labels (or one environment, or a `GridSpec` to
            predict only). Its `num_envs` is the batch.
        seed: of bags, first weights and draws, and the environment's first reset.
        device: where the networks live.
        **settings: `DistilledSettings`' fields.
    """

    Settings: ClassVar[type[Any]] = DistilledSettings
    action_kinds = ("grid",)
    plays_no_masks = True

    def __init__(
        self,
        env: gym.Env[Any, Any] | MaskVectorEnv | GridSpec,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env, settings, seed, device)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate, fused=True)
        self._judges: nn.ModuleList | None = None
        # Maps of images as they were seen: a judge's answer does not change.
        self._maps: dict[int, Tensor] = {}

    def _make_policy(self) -> nn.Module:
        with seeded_weights(self.seed):
            return PlacePolicy(self.spec.image_shape[0], self.spec.grid, self.settings.width, self.settings.place)

    def check_length(self, total_timesteps: int) -> None:
        """See `Agent.check_length`: the judges' training comes out of it."""
        fitted = self.settings.judges * self.settings.judge_updates * FitSettings().batch_size
        if self._judges is None and total_timesteps <= fitted:
            raise ConfigurationError(
                f"total_timesteps={total_timesteps} would all go into the judges' training, which takes {fitted}; use "
                "more, or fewer judges or judge_updates"
            )

    @property
    def own_judge(self) -> nn.Module | None:
        """The bagged judges as one classifier; see `Agent.own_judge`."""
        if self._judges is None:
            return None
        return self._judges[0] if len(self._judges) == 1 else Ensemble(list(self._judges))

    @property
    def judges(self) -> nn.ModuleList | None:
        """The bagged judges, frozen; None before `learn`, and in an agent that was loaded to predict."""
        return self._judges

    def check_env(self, env: MaskVectorEnv) -> None:
        """See `Agent.check_env`."""
        if env.game.whole.labels is None or len(env.game.whole.class_names) < 2:
            raise ConfigurationError(
                f"{env.game.whole.name} has no labels of at least two classes, and the judges behind this masker need "
                "them"
            )

    def _demands(self, env: MaskVectorEnv) -> list[Demand]:
        # The environment's judge is not asked, and small judges see far fewer images at once than they could.
        return [Demand("num_envs", env.num_envs, env.num_envs, self._trial())]

    def _begin(self, total_timesteps: int) -> None:
        if self._judges is None:
            assert self.env is not None
            whole = self.env.game.whole
            self._judges = nn.ModuleList([self._judge(i, whole) for i in range(self.settings.judges)])

    def _judge(self, number: int, dataset: ImageDataset) -> nn.Module:
        settings = self.settings
        source = np.random.SeedSequence([self.seed, number])
        groups = np.unique(dataset.groups)
        chosen = np.random.default_rng(source).permutation(groups)[: max(1, round(settings.bag * len(groups)))]
        bag = dataset.subset(np.isin(dataset.groups, chosen))
        seed = int(source.generate_state(1)[0])
        judge = make_judge("small", dataset.shape[0], len(dataset.class_names), seed)
        fit = FitSettings(updates=settings.judge_updates, lr=settings.judge_lr, seed=seed)
        fit_classifier(judge, bag, None, fit, device=self.device)
        self.num_timesteps += settings.judge_updates * fit.batch_size
        return judge.requires_grad_(False)

    def _update(self, env: MaskVectorEnv, observation: npt.NDArray[np.uint8] | Tensor) -> tuple[Any, dict[str, float]]:
        pictures = env.game.picture
        images = env.game.pictures.at(pictures).to(self.device)
        target = self._target(pictures, images)
        flip = torch.zeros(len(images), dtype=torch.bool)
        if self.settings.mirror:
            flip = torch.rand(len(images), generator=self.generator) < 0.5
        flip = flip.to(self.device)[:, None, None]
        scores = self._forward(torch.where(flip[..., None], to_float(images.flip(-1)), to_float(images)))
        loss = (scores - torch.where(flip, target.flip(-1), target)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        env.game.advance()
        return env.observe(), {"train/loss": float(loss.detach())}

    def _target(self, pictures: npt.NDArray[np.int64], images: Tensor) -> Tensor:
        """Standardised maps (N, g, g) of the images, `pictures` in the game; each is computed once."""
        assert self._judges is not None
        new = [place for place, i in enumerate(pictures.tolist()) if i not in self._maps]
        if new:
            maps = gradient_map(self._judges, images[new], self.spec.grid, mirror=self.settings.mirror)
            maps = (maps - maps.mean((1, 2), keepdim=True)) / maps.std((1, 2), keepdim=True).clamp(min=1e-12)
            self._maps.update({int(pictures[place]): one for place, one in zip(new, maps, strict=True)})
        self.num_timesteps += len(pictures) * len(self._judges)
        return torch.stack([self._maps[i] for i in pictures.tolist()])

    def _scores(self, images: Tensor) -> Tensor:
        return smoothed(super()._scores(images), self.settings.smooth)

    def _sample(self, scores: Tensor) -> Tensor:
        # Nothing is tried out here.
        return self._best(scores)

    def _learning_state(self) -> dict[str, Any]:
        judges = {} if self._judges is None else dict(self._judges.state_dict())
        # A map made anew, in another batch, would differ in its last bits.
        maps: dict[str, Any] = {"picture": np.array([*self._maps], np.int64)}
        if self._maps:
            maps["map"] = torch.stack([*self._maps.values()])
        return {"optimiser": self.optimiser.state_dict(), "judges": judges, "maps": maps}

    def _load_learning_state(self, state: Mapping[str, Any]) -> None:
        load_optimiser(self.optimiser, state["optimiser"])
        if state["judges"]:
            assert self.env is not None
            data, count = self.env.game.whole, self.settings.judges
            blank = [make_judge("small", data.shape[0], len(data.class_names), 0) for _ in range(count)]
            self._judges = nn.ModuleList(blank).to(self.device).eval().requires_grad_(False)
            self._judges.load_state_dict(state["judges"])
        maps = state["maps"]
        self._maps = {}
        if len(maps["picture"]):
            self._maps = dict(zip(maps["picture"].tolist(), maps["map"].to(self.device), strict=True))
