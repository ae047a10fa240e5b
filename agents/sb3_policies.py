"""Policies that make Stable-Baselines3 learn here: fully convolutional, with one value per action or cell.

SB3's own NatureCNN flattens its feature map, so that what a lesion looks like has to be learnt once for every place; on
pictures of 64×64 pixels it is left far behind (benchmarks/results). Here the features ARE the values, one per place,
and the last linear layer begins as the identity.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.networks import ImaginingQMap, QMap

NETWORKS = {"plain": QMap, "imagining": ImaginingQMap}


class CellFeatures(BaseFeaturesExtractor):
    """Images → one value for each cell, or for each corner of a patch.

    Args:
        observation_space: Box (C, H, W); SB3 has scaled the images to [0, 1].
        grid: g.
        patch_cells: side of a patch in cells: there are (g − side + 1)² values then; 0: one for each of the g·g cells.
        network: "plain" (`QMap`) or "imagining" (`ImaginingQMap`).
        width: channels of the network's first stage, a multiple of 8.
    """

    def __init__(
        self, observation_space: gym.Space[Any], grid: int, patch_cells: int = 0, network: str = "plain",
        width: int = 16,
    ) -> None:  # fmt: skip
        places = (grid - patch_cells + 1) ** 2 if patch_cells else grid * grid
        super().__init__(observation_space, places)
        assert observation_space.shape is not None
        self.patch_cells = patch_cells
        #: a patch's corner has a value of its own for each of the cells that it covers.
        roles = max(1, patch_cells) ** 2
        self.network: nn.Module = NETWORKS[network](observation_space.shape[0], grid, width, roles)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → (N, features_dim)."""
        maps: Tensor = self.network(images)
        if not self.patch_cells:
            return torch.flatten(maps, 1)
        side = self.patch_cells
        kernel = torch.eye(side * side, device=maps.device).reshape(1, side * side, side, side) / side**2
        corners: Tensor = functional.conv2d(maps, kernel)
        return corners.flatten(1)


class CellPolicy(ActorCriticPolicy):
    """PPO's, A2C's and TRPO's policy on `CellFeatures`: the action's logits begin as the features themselves."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        as_identity(self.action_net)


class CellQNetwork(QNetwork):
    """DQN's network on `CellFeatures`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        as_identity(self.q_net[-1])


class CellDQNPolicy(DQNPolicy):
    """DQN's policy on `CellFeatures`: the Q-values begin as the features themselves."""

    def make_q_net(self) -> QNetwork:
        """One of the two networks."""
        args = self._update_features_extractor(self.net_args, features_extractor=None)
        network: QNetwork = CellQNetwork(**args).to(self.device)
        return network


def as_identity(layer: nn.Module) -> None:
    """Make a square linear layer hand on what it gets."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
