"""Policies that make Stable-Baselines3 learn here: fully convolutional, with one value per action, cell or pixel.

SB3's own NatureCNN flattens its feature map, so that what a lesion looks like has to be learnt once for every place; on
pictures of 64×64 pixels it is left far behind (benchmarks/results). Here the features ARE the values, one per place,
and the last linear layer begins as the identity. Every policy has `values`, which `SB3Agent.scores` ranks cells by.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.networks import QMap


class CellFeatures(BaseFeaturesExtractor):
    """Images of 36 to 224 pixels → one value for each cell, or for each corner of a patch.

    Args:
        observation_space: Box (C, H, W); SB3 has scaled the images to [0, 1].
        kind: of action: "grid", "patch", "pixel" or "box".
        grid: g.
        patch_cells: side of a patch in cells, for "patch": there are (g − side + 1)² values then; else g·g.
        area: the share that the first masks select on average, for "grid" and "pixel": the values begin around the
            number that says so.
        width: channels of the network's first stage, a multiple of 8.
        channels_last: lay maps out channels last. Not for TRPO, which asks for the gradient of one parameter at a time:
            for a GroupNorm's alone torch (2.13, CPU) crashes in that layout.
    """

    def __init__(
        self, observation_space: gym.Space[Any], kind: str, grid: int, patch_cells: int, area: float, width: int = 16,
        channels_last: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(observation_space, (grid - patch_cells + 1) ** 2 if patch_cells else grid * grid)
        channels, *size = cast(tuple[int, ...], observation_space.shape)
        self.kind, self.grid, self.patch_cells, self.area = kind, grid, patch_cells, area
        self.image_size = (size[0], size[1])
        # A patch's corner has a value of its own for each of the cells that it covers.
        self.network = QMap(channels, grid, width, max(1, patch_cells) ** 2, lean=True)
        if not channels_last:
            self.network.trunk = nn.Sequential(*self.network.trunk)  # type: ignore[assignment]
        # The logit of a coin that shows `area`; the mean of a normal of size 1 that lies above 0 so often.
        first = {"grid": math.log(area / (1 - area)), "pixel": NormalDist().inv_cdf(area)}.get(kind, 0.0)
        assert self.network.head.bias is not None
        nn.init.constant_(self.network.head.bias, first)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, features_dim)."""
        maps: Tensor = self.network(images)
        if not self.patch_cells:
            return torch.flatten(maps, 1)
        side = self.patch_cells
        kernel = torch.eye(side * side, device=maps.device).reshape(1, side * side, side, side) / side**2
        return functional.conv2d(maps, kernel).flatten(1)


class Spread(nn.Module):
    """Values of cells → of pixels: through `cells`, which begins as the identity, interpolated, times `scale`.

    A linear layer in its place would have g²·H·W weights, 12.8 million at 224 pixels, and tie no pixel to its
    neighbours.

    Args:
        inputs: those beyond g·g, a memory's, begin without weight.
        grid: g.
        image_size: H, W.
        scale: where it begins; it is learnt, as is what is added to all pixels.
    """

    def __init__(self, inputs: int, grid: int, image_size: tuple[int, int], scale: float = 1.0) -> None:
        super().__init__()
        self.grid, self.image_size = grid, image_size
        self.cells = nn.Linear(inputs, grid * grid)
        _as_identity(self.cells)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, cells: Tensor) -> Tensor:
        """(N, inputs) → (N, H·W)."""
        maps: Tensor = self.cells(cells).reshape(-1, 1, self.grid, self.grid)
        maps = functional.interpolate(maps, self.image_size, mode="bilinear", align_corners=False)
        return self.scale * maps.flatten(1) + self.shift


def read_out(features: nn.Module, layer: nn.Module, copies: str = "one") -> nn.Module:
    """The last layer of a network on `CellFeatures`, as it begins.

    Args:
        features: the `CellFeatures` in front.
        layer: SB3's own, linear. For a box it is returned as it is; for pixels `Spread` replaces it.
        copies: "one" output for each value; "pairs" of outputs, the second of which is the value (the odds of a bit are
            their difference); or "rows", every row being all the values (quantiles).
    """
    assert isinstance(features, CellFeatures)
    assert isinstance(layer, nn.Linear)
    if features.kind == "box":
        return layer
    if features.kind == "pixel":
        return Spread(layer.in_features, features.grid, features.image_size)
    _as_identity(layer, features.features_dim, copies)
    return layer


def _as_identity(layer: nn.Linear, count: int | None = None, copies: str = "one") -> None:
    count = layer.out_features if count is None else count
    with torch.no_grad():
        # Inputs beyond the values, a memory's, begin without weight.
        one = torch.eye(count, layer.in_features, device=layer.weight.device)
        if copies == "pairs":
            one = torch.stack([torch.zeros_like(one), one], 1)
        elif copies == "rows":
            one = one.expand(layer.out_features // count, -1, -1)
        layer.weight.copy_(one.reshape(layer.weight.shape))
        nn.init.zeros_(layer.bias)


def action_output(policy: Any, observation: Tensor) -> Tensor:
    """What the actor of an actor-critic policy, SB3's or sb3-contrib's, computes: (N, C, H, W) uint8 → (N, outputs)."""
    features = policy.extract_features(observation, policy.pi_features_extractor)
    result: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
    return result


class CellPolicy(ActorCriticPolicy):
    """PPO's, A2C's and TRPO's policy: the action's logits, or its mean, begin as the features themselves."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = read_out(self.features_extractor, self.action_net)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def values(self, observation: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → the action's logits, or its mean, (N, A)."""
        return action_output(self, observation)


class CellQNetwork(QNetwork):
    """DQN's network: the Q-values begin as the features themselves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_net[-1] = read_out(self.features_extractor, self.q_net[-1])


class CellDQNPolicy(DQNPolicy):
    """DQN's policy."""

    def make_q_net(self) -> QNetwork:
        """One of the two networks."""
        args = self._update_features_extractor(self.net_args, features_extractor=None)
        network: QNetwork = CellQNetwork(**args).to(self.device)
        return network

    def values(self, observation: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → Q (N, A)."""
        result: Tensor = self.q_net(observation)
        return result


class CellActor(Actor):
    """SAC's actor: for pixels both its mean and its spread are maps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mu = read_out(self.features_extractor, self.mu)
        if isinstance(self.mu, Spread):
            # One size of noise everywhere at first.
            self.log_std: Any = Spread(self.mu.cells.in_features, self.mu.grid, self.mu.image_size, 0.0)


class CellCritic(ContinuousCritic):
    """SAC's critic for pixels: what it sees of an action is its mean over each cell, and that times the cell's feature.

    All pixels as they are would be 50 176 inputs at 224 pixels, of which hardly any two would ever be alike.
    """

    def __init__(self, *, action_space: spaces.Box, features_dim: int, **kwargs: Any) -> None:
        # Two numbers for each cell beside its feature.
        pooled = spaces.Box(-1, 1, (2 * features_dim,))
        super().__init__(action_space=pooled, features_dim=features_dim, **kwargs)
        self.action_space = action_space

    def forward(self, obs: Any, actions: Tensor) -> tuple[Tensor, ...]:
        """What each critic says, (N, 1) each."""
        features = self.extract_features(obs, self.features_extractor)
        extractor = self.features_extractor
        assert isinstance(extractor, CellFeatures)
        maps = actions.reshape(-1, 1, *extractor.image_size)
        seen = functional.adaptive_avg_pool2d(maps, extractor.grid).flatten(1)
        return tuple(network(torch.cat([features, seen, features * seen], 1)) for network in self.q_networks)


class CellSACPolicy(SACPolicy):
    """SAC's policy."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """The actor."""
        actor: Actor = CellActor(**self._update_features_extractor(self.actor_kwargs, features_extractor))
        return actor.to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """One of the two pairs of critics."""
        args = self._update_features_extractor(self.critic_kwargs, features_extractor)
        kind = CellCritic if args["features_extractor"].kind == "pixel" else ContinuousCritic
        critic: ContinuousCritic = kind(**args)
        return critic.to(self.device)

    def values(self, observation: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → the mean of the action, (N, A)."""
        return self.actor.get_action_dist_params(observation)[0].tanh()
