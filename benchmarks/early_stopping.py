"""Looking at the judge after every epoch of the game: the best judge and its masker are kept, and enough is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from maskaug.agents.base import Agent
from maskaug.envs.convergence import Patience
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame
from maskaug.envs.pretrain import evaluate_on_clean
from maskaug.envs.rewards import ClassifierReward


class EarlyStopping:
    """The judge's validation scores after every epoch, the weights of the best epoch, and whether to go on.

    The validation loss decides. The weights that the game starts with are no candidate: an epoch has to be played.

    Args:
        patience: epochs without a better loss after which training ends.
        game: whose judge learns.
        val: images that it does not learn from.
    """

    def __init__(self, patience: int, game: MaskGame, val: ImageDataset) -> None:
        if not game.joint or not isinstance(game.reward_model, ClassifierReward):
            raise ConfigurationError(
                "patience waits for a better judge, and needs a classifier that learns along (joint=True); leave it out"
            )
        if game.dataset.split != "train":
            raise ConfigurationError(
                f"patience chooses by the validation split, and this run trains on split={game.dataset.split!r}; train "
                "on the train split, or leave patience out"
            )
        self.patience, self.game, self.val = Patience(patience), game, val
        self._epoch = epoch_timesteps(game)
        self._best_epoch = 0
        self._masker: dict[str, Tensor] = {}
        self._judge: dict[str, Tensor] = {}

    @property
    def over(self) -> bool:
        """Whether it is enough."""
        return self.patience.over

    def look(self, agent: Agent) -> dict[str, float]:
        """After an update: {"judge/val.accuracy", "….auroc", "….loss"}, NaN unless an epoch has just ended."""
        nothing = float("nan")
        scores = {"accuracy": nothing, "auroc": nothing, "loss": nothing}
        if agent.num_timesteps // self._epoch > self.patience.looks:
            model = self.game.reward_model.model
            scores = evaluate_on_clean(model, self.val, self.game.dataset.images, device=self.game.device)
            if self.patience.better(scores):
                self._best_epoch = self.patience.looks
                self._masker, self._judge = _copy(agent.predictor), _copy(model)
        return {f"judge/val.{name}": value for name, value in scores.items()}

    def put_best(self, agent: Agent) -> None:
        """Give the judge of the game and what `agent` predicts with the weights of the best epoch, if one has ended."""
        if self._judge:
            agent.predictor.load_state_dict(self._masker)
            self.game.reward_model.model.load_state_dict(self._judge)

    def results(self) -> dict[str, float]:
        """{"judge.epochs", "judge.best_epoch"}: looked at, and the one whose weights are kept."""
        return {"judge.epochs": float(self.patience.looks), "judge.best_epoch": float(self._best_epoch)}

    def state(self) -> dict[str, Any]:
        """Everything that changes, for an exact resume."""
        return {
            "best": dict(self.patience.best), "waited": self.patience.waited, "looks": self.patience.looks,
            "best_epoch": self._best_epoch, "masker": self._masker, "judge": self._judge,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.patience.best, self.patience.waited = dict(state["best"]), state["waited"]
        self.patience.looks, self._best_epoch = state["looks"], state["best_epoch"]
        self._masker, self._judge = state["masker"], state["judge"]


def epoch_timesteps(game: MaskGame) -> int:
    """Masks of an epoch: of as many updates as it takes all slots together to see as many images as there are."""
    return -(-len(game.dataset) // game.total_envs) * game.total_envs * game.repeat * game.steps


def _copy(model: nn.Module) -> dict[str, Tensor]:
    # On the host: a device has better uses for its memory.
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
