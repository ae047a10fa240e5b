"""The same policies for sb3-contrib's algorithms; imported only where that package is needed."""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from maskaug.agents.sb3_policies import action_output, read_out


class CellMaskablePolicy(MaskableActorCriticPolicy):
    """MaskablePPO's policy. A bit has two logits here, off and on: off begins at 0, on as the feature."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        read_out(self.features_extractor, self.action_net, "pairs" if self._pairs else "one")

    @property
    def _pairs(self) -> bool:
        return bool(self.action_space.shape)

    def values(self, observation: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → the action's logits, (N, A)."""
        logits = action_output(self, observation)
        if not self._pairs:
            return logits
        pairs = logits.reshape(len(logits), -1, 2)
        return pairs[:, :, 1] - pairs[:, :, 0]


class CellRecurrentPolicy(RecurrentActorCriticPolicy):
    """RecurrentPPO's policy: what the memory says is added to what the image says, and begins without weight."""

    def _build_mlp_extractor(self) -> None:
        self.lstm_output_dim += self.features_dim
        super()._build_mlp_extractor()

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        # SB3's optimiser is made after this.
        self.action_net = read_out(self.features_extractor, self.action_net)

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> Any:  # SB3's own annotation is of one tensor less
        remembered, states = RecurrentActorCriticPolicy._process_sequence(features, lstm_states, episode_starts, lstm)
        return torch.cat([features, remembered], 1), states

    def evaluate_actions(  # type: ignore[override]  # contrib's own does not fit SB3's either
        self, obs: Tensor, actions: Tensor, lstm_states: Any, episode_starts: Tensor
    ) -> Any:
        """See SB3. Its buffer of rollouts keeps bits as int8, whose likelihood torch does not know (2.9.2)."""
        return super().evaluate_actions(obs, actions.float(), lstm_states, episode_starts)

    def values(self, observation: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → the action's logits, or its mean, with an empty memory: (N, A)."""
        layers, _, width = self.lstm_hidden_state_shape
        empty = torch.zeros(layers, len(observation), width, device=self.device)
        features = self.extract_features(observation, self.pi_features_extractor)
        starts = torch.zeros(len(observation), device=self.device)
        assert isinstance(features, Tensor)
        assert isinstance(self.mlp_extractor, MlpExtractor)
        latent, _ = self._process_sequence(features, (empty, empty), starts, self.lstm_actor)
        result: Tensor = self.action_net(self.mlp_extractor.forward_actor(latent))
        return result


class CellQuantileNetwork(QuantileNetwork):
    """QR-DQN's network: every quantile begins as the features themselves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        read_out(self.features_extractor, self.quantile_net[-1], "rows")


class CellQRDQNPolicy(QRDQNPolicy):
    """QR-DQN's policy."""

    def make_quantile_net(self) -> QuantileNetwork:
        """One of the two networks."""
        args = self._update_features_extractor(self.net_args, features_extractor=None)
        return CellQuantileNetwork(**args).to(self.device)

    def values(self, observation: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → the mean of the quantiles, (N, A)."""
        result: Tensor = self.quantile_net(observation).mean(1)
        return result
