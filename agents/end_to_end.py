"""The end-to-end arm of APGA's table (arXiv 1909.04108): a differentiable mask, and no policy gradient.

The network's scores become a soft mask m = sigmoid(scores) in [0, 1], a cell at a time blown up to pixels. The judge
sees x·(1 − m) + filling·m, the loss is

    −(CE(judge(x with m hidden), y) − CE(judge(x), y)) + the environment's two-sided price of leaving its area,

and its gradient goes through the judge, which does not change, into the network. With objective="preserving" what is
hidden is 1 − m, and the sign turns. The area of a soft mask is its mean; masks are the top cells, as everywhere. Of
several judges (an `Ensemble`), CE is the mean of each one's, as in the game's own rewards.

What to know when it is compared:

* It needs the judge's gradient. APGA and other agents only ask what a mask earns; this one cannot play against a judge
  that has no gradient, and its timestep has a pass backwards through the judge as well.
* A soft mask can be half transparent everywhere, which no mask in the game can: what it earns here is not a reward.
* The environment gives images and is not stepped; the judge has to be frozen. Tries beyond the first are passed over.
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
from torch.nn import functional

from maskaug.agents.agent import GridSpec, MaskAgent, check_kinds
from maskaug.agents.networks import GridPolicy, take_trunk
from maskaug.envs.acceleration import load_optimiser
from maskaug.envs.ensemble import members_of
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import area_price, cells_to_mask, filler
from maskaug.envs.networks import seeded_weights, to_float

INITS = ("auto", "judge", "random")
OBJECTIVES = ("adversarial", "preserving")


@dataclasses.dataclass(frozen=True)
class EndToEndSettings:
    """How the mask is learnt.

    Attributes:
        learning_rate: of Adam.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them as they are.
        average: decay of the moving average of the weights, which is what predicts; 0 predicts with the last ones.
        mirror: let the network see half of its images mirrored, and average both views when it predicts.
        init: "judge" starts the network's trunk from the judge's weights, "random" from the seed, "auto" from the judge
            where it is a `SmallClassifier` of the same width, else from the seed.
        smooth: whether the network's map is smoothed over neighbouring cells.
        width: channels of its first stage, a multiple of 8.
    """

    learning_rate: float = 2e-3
    max_grad_norm: float = 1.0
    average: float = 0.98
    mirror: bool = True
    init: str = "auto"
    smooth: bool = True
    width: int = 16

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.init not in INITS:
            raise ConfigurationError(f"init={self.init!r} is unknown; use one of {INITS}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.max_grad_norm < math.inf:
            raise ConfigurationError("learning_rate must be above 0, max_grad_norm at least 0, and both finite")
        if not 0 <= self.average < 1:
            raise ConfigurationError(f"average={self.average} must be at least 0 and below 1")
        if self.width < 8 or self.width % 8:
            raise ConfigurationError(f"width={self.width} must be a multiple of 8 (GroupNorm has 8 groups)")


class EndToEnd(MaskAgent):
    """A mask learnt through the judge's gradient; see the module's text.

    Args:
        env: a vector environment with action="grid" or "pixel", objective="adversarial" or "preserving", and a frozen
            judge (or one environment, or a `GridSpec` to predict only). Its `num_envs` is the batch.
        seed: of first weights and draws, and the environment's first reset.
        device: where the network lives.
        **settings: `EndToEndSettings`' fields.
    """

    Settings: ClassVar[type[Any]] = EndToEndSettings
    action_kinds = ("grid", "pixel")

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
        # Losses of clean images: for logs, and once an image as long as nobody changes the judge.
        self._clean: dict[int, float] = {}
        self._clean_version = -1

    def _make_policy(self) -> nn.Module:
        with seeded_weights(self.seed):
            policy = GridPolicy(self.spec.image_shape[0], self.spec.grid, self.settings.width, self.settings.smooth)
        if self.env is not None:
            take_trunk(policy, self.env.game.reward_model.model, self.settings.init)
        area = self.spec.cells / self.spec.grid**2
        with torch.no_grad():
            # The first soft mask is level, and has the area: the price pulls nowhere yet.
            policy.head.get_parameter("bias").add_(math.log(area / (1 - area)))
        return policy

    def check_env(self, env: MaskVectorEnv) -> None:
        """See `Agent.check_env`; asks the judge once whether its answer has a gradient."""
        game = env.game
        if game.objective not in OBJECTIVES:
            raise ConfigurationError(
                f"the end-to-end mask knows the loss of objective={' or '.join(map(repr, OBJECTIVES))}, not of "
                f"{game.objective!r}; make the environment so"
            )
        if game.joint:
            raise ConfigurationError(
                "the end-to-end mask is learnt through a judge that does not change, and joint=True trains it along; "
                "make the environment with joint=False and reward_model=FILE from `maskaug pretrain`"
            )
        probe = to_float(game.pictures.at(np.zeros(1, np.int64))).requires_grad_()
        for judge, logits in zip(members_of(game.reward_model.model), self._answers(env, probe), strict=True):
            found = torch.autograd.grad(logits.sum(), probe, allow_unused=True)[0] if logits.requires_grad else None
            if found is None:
                raise ConfigurationError(
                    f"the answer of {type(judge).__name__} has no gradient in the image's pixels, and the end-to-end "
                    "mask needs one; use APGA, or a judge that can be differentiated"
                )

    def _update(self, env: MaskVectorEnv, observation: npt.NDArray[np.uint8] | Tensor) -> tuple[Any, dict[str, float]]:
        game = env.game
        # As they are shown, mirrored or not.
        pictures = game.pictures.at(game.picture)
        soft = self._soft_cells(to_float(pictures.to(self.device)))
        gain = self._gain(env, pictures, cells_to_mask(soft.to(game.device), *pictures.shape[2:]))
        # The policy may live elsewhere than the judge.
        area = soft.flatten(1).mean(1).to(game.device)
        price = game.rule.price * area_price(area, game.rule.area)
        loss = (price - gain).mean()
        if not bool(loss.isfinite()):
            raise JudgeError("the judge's answer is not finite; check its weights and that it takes images in [0, 1]")
        # Only the network's: the judge's own parameters stay as they are, their gradients too.
        parameters = list(self.policy.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        if self.settings.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self.optimiser.step()
        self.num_timesteps += env.num_envs
        metrics = {
            "train/soft_gain": float(gain.detach().mean()),
            "train/soft_area": float(area.detach().mean()),
            "train/price": float(price.detach().mean()),
            "train/loss": float(loss.detach()),
        }
        for _ in range(game.repeat):
            game.advance()
        return env.observe(), metrics

    def _soft_cells(self, images: Tensor) -> Tensor:
        # (N, C, H, W) float → (N, g, g) in [0, 1].
        if not self.settings.mirror:
            return self._forward(images).sigmoid()
        flip = (torch.rand(len(images), generator=self.generator) < 0.5).to(self.device)[:, None, None]
        scores = self._forward(torch.where(flip[:, None], images.flip(-1), images))
        return torch.where(flip, scores.flip(-1), scores).sigmoid()

    def _gain(self, env: MaskVectorEnv, pictures: Tensor, mask: Tensor) -> Tensor:
        # What a soft mask (N, H, W) earns on images (N, C, H, W) uint8: (N,), as `ClassifierReward.score` has it.
        game = env.game
        assert game.dataset.labels is not None
        truth = torch.from_numpy(game.dataset.labels[game.index]).to(game.device)
        noise = torch.randn(pictures.shape, generator=self.generator).to(game.device) if game.fill == "noise" else None
        filling = to_float(filler(pictures, game.fill, noise))
        preserving = game.objective == "preserving"
        shown = soften(to_float(pictures), 1 - mask if preserving else mask, filling)
        gain = self._losses(env, shown, truth) - self._clean_losses(env, game.picture, pictures, truth)
        return -gain if preserving else gain

    def _clean_losses(
        self, env: MaskVectorEnv, index: npt.NDArray[np.int64], pictures: Tensor, truth: Tensor
    ) -> Tensor:
        version = env.game.reward_model.weights_version()
        if version != self._clean_version:
            self._clean.clear()
            self._clean_version = version
        if not self._clean.keys() >= set(index.tolist()):
            with torch.no_grad():
                losses = self._losses(env, to_float(pictures), truth)
            self._clean.update(zip(index.tolist(), losses.tolist(), strict=True))
        return torch.tensor([self._clean[i] for i in index.tolist()], device=truth.device)

    def _losses(self, env: MaskVectorEnv, images: Tensor, truth: Tensor) -> Tensor:
        # The judge's cross-entropy on images (N, C, H, W) float, (N,); of several judges the mean of theirs.
        answers = self._answers(env, images)
        losses = [functional.cross_entropy(logits, truth, reduction="none") for logits in answers]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean(0)

    def _answers(self, env: MaskVectorEnv, images: Tensor) -> list[Tensor]:
        # Every judge's logits (N, K), in evaluation mode as in every reward; with their gradient in the images.
        judge = env.game.reward_model
        members = members_of(judge.model)
        if any(member.training for member in members):
            judge.model.eval()
        return [judge.acceleration.forward(member, images) for member in members]

    def _sample(self, scores: Tensor) -> Tensor:
        # Nothing is tried out here.
        return self._best(scores)

    def _learning_state(self) -> dict[str, Any]:
        assert self.env is not None
        # Of another judge's weights than are kept beside them, nothing is known.
        current = self._clean_version == self.env.game.reward_model.weights_version()
        known = self._clean if current else {}
        clean = {"index": np.array([*known], np.int64), "loss": np.array([*known.values()], np.float64)}
        return {"optimiser": self.optimiser.state_dict(), "clean": clean}

    def _load_learning_state(self, state: Mapping[str, Any]) -> None:
        assert self.env is not None
        load_optimiser(self.optimiser, state["optimiser"])
        clean = state["clean"]
        self._clean = dict(zip(clean["index"].tolist(), clean["loss"].tolist(), strict=True))
        self._clean_version = self.env.game.reward_model.weights_version()


def soften(images: Tensor, mask: Tensor, filling: Tensor) -> Tensor:
    """`maskaug.envs.masking.hide` for soft masks: images·(1 − mask) + filling·mask, differentiable.

    Args:
        images: (N, C, H, W) float.
        mask: (N, H, W) float in [0, 1].
        filling: (N, C, H, W) float, or broadcastable.

    >>> soften(torch.ones(1, 1, 1, 2), torch.tensor([[[0.25, 1.0]]]), torch.tensor(0.0))
    tensor([[[[0.7500, 0.0000]]]])
    """
    return images * (1 - mask[:, None]) + filling * mask[:, None]
