"""What a mask is worth: the judge's gain, minus the price of leaving the area, plus the terms that the user brings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from maskaug.envs.actions import ActionRule
from maskaug.envs.masking import area_price, cells_to_mask
from maskaug.envs.terms import RewardTerm, RewardTerms

#: what infos hold of every game besides the judge's terms.
_TAKEN = frozenset({"index", "try", "label", "step", "reward", "area", "price", "final_obs", "final_info"})
#: of the other kind of judge, of Gymnasium's and Stable-Baselines3's statistics, and of its ends.
_TAKEN_ELSEWHERE = frozenset({"cell_error", "episode", "terminal_observation"})


class Worth:
    """The terms of the reward beside the judge's, and their sum.

    Args:
        rule: which area is to be selected, and the price of leaving it.
        reward_terms: the user's; see `RewardTerms`.
        judged: the names of the judge's terms, "gain" among them.
        device: where masks are judged.

    Attributes:
        own_terms: what the user adds.
    """

    def __init__(
        self,
        rule: ActionRule,
        reward_terms: Mapping[str, RewardTerm] | None,
        judged: Collection[str],
        device: torch.device,
    ) -> None:
        self.own_terms = RewardTerms(reward_terms, {*_TAKEN, *_TAKEN_ELSEWHERE, *judged})
        total, self._priced = math.prod(rule.shape), bool(rule.price)
        # The area of 0, 1, … all cells, and the price of selecting so many.
        shares = torch.arange(total + 1) / total
        self._shares_and_prices = torch.stack([shares, rule.price * area_price(shares, rule.area)]).to(device)

    def own(self, images: Tensor, cells: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The user's terms, (N,) each, of images (N, C, H, W), cells (N, *rule.shape) bool and labels (N,).

        Raises:
            JudgeError: see `RewardTerms`.
        """
        if not self.own_terms.functions:
            return {}
        return self.own_terms(images, cells_to_mask(cells, *images.shape[2:]), labels)

    def of(
        self, judged: Mapping[str, Tensor], cells: Tensor, own: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(worth (N,), every term) of cells (N, *rule.shape) bool; `judged` and `own` are the terms known so far."""
        area, price = self._shares_and_prices.index_select(1, cells.flatten(1).sum(1))
        terms = {"area": area, **judged}
        worth = terms["gain"]
        if self._priced:
            terms["price"] = price
            worth = worth - price
        for name, value in own.items():
            terms[name] = value
            worth = worth + value
        return worth, terms

    def blank(self, judged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every term where no mask is chosen yet: those of the judge as they are `judged` then, all others 0."""
        terms = {"area": torch.zeros_like(judged["gain"]), **judged}
        if self._priced:
            terms["price"] = torch.zeros_like(judged["gain"])
        return terms | {name: torch.zeros_like(judged["gain"]) for name in self.own_terms.functions}
