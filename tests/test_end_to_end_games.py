"""The end-to-end arm in games of all kinds: mirrored images, several judges, other precisions and layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import FlatJudge, pictures, same, small
from marker_game import MarkerJudge
from torch import Tensor, nn

from maskaug.agents.end_to_end import EndToEnd
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError

DATA = pictures(8, 40, channels=3)
Game = dict[str, Any]


def game(**more: Any) -> MaskVectorEnv:
    play: Game = {"grid": 5, "joint": False, "reward_model": small(DATA), "device": "cpu", **more}
    return MaskVectorEnv(4, dataset=DATA, **play)


def hard_masks_earn(env: MaskVectorEnv) -> tuple[Tensor, Tensor]:
    """(the agent's gain, the game's) of the same cells, the agent's mask not soft."""
    env.reset(seed=0)
    agent = EndToEnd(env, device="cpu")
    cells = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    mask = cells.float().repeat_interleave(8, 1).repeat_interleave(8, 2)
    gain = agent._gain(env, env.game.pictures.at(env.game.picture), mask)
    return gain.detach(), env.game.play(cells).terms["gain"]


@pytest.mark.parametrize("objective", ["adversarial", "preserving"])
@pytest.mark.parametrize(
    "more",
    [
        {"flip": True},
        {"reward_model": [small(DATA, 0), small(DATA, 1), FlatJudge(DATA)]},
        {"precision": "bf16"},
        {"channels_last": True},
        {"precision": "bf16", "flip": True, "reward_model": [small(DATA, 0), small(DATA, 1)]},
    ],
    ids=lambda more: "-".join(more),
)
def test_a_mask_that_is_not_soft_earns_what_the_game_gives(objective: str, more: Game) -> None:
    gain, expected = hard_masks_earn(game(objective=objective, **more))
    assert expected.abs().max() > 0.01
    # In bf16, too, both are the same passes over the same images: those hidden softly are not rounded to bytes.
    torch.testing.assert_close(gain, expected, rtol=1e-4, atol=1e-5)


def test_several_judges_are_asked_each_for_its_own_loss() -> None:
    # The mean of their losses, which is not the loss of their mean.
    judges: list[nn.Module] = [FlatJudge(DATA, seed) for seed in (0, 1)]
    for judge in judges:
        judge.linear.weight.data *= 20  # type: ignore[union-attr, operator]
    both, _ = hard_masks_earn(game(reward_model=judges))
    each = [hard_masks_earn(game(reward_model=judge))[0] for judge in judges]
    torch.testing.assert_close(both, torch.stack(each).mean(0), rtol=1e-4, atol=1e-4)
    agent = EndToEnd(game(reward_model=judges), seed=0, device="cpu").learn(8)
    assert agent.updates == 2


def test_one_of_several_judges_without_a_gradient_is_named() -> None:
    data = pictures(8, 16)
    judges = [FlatJudge(data), MarkerJudge()]
    env = MaskVectorEnv(4, dataset=data, grid=4, joint=False, reward_model=judges, device="cpu")
    with pytest.raises(ConfigurationError, match="MarkerJudge has no gradient"):
        EndToEnd(env, device="cpu").learn(1)


def test_it_learns_from_the_images_as_they_are_shown() -> None:
    env = game(flip=True)
    agent = EndToEnd(env, seed=0, device="cpu")
    gained, mirrored = agent._gain, []

    def spy(env: MaskVectorEnv, pictures: Tensor, mask: Tensor) -> Tensor:
        assert same(pictures.numpy(), env.observe())
        for image, index in zip(pictures.numpy(), env.game.index, strict=True):
            mirrored.append(not np.array_equal(image, DATA.images[index]))
        return gained(env, pictures, mask)

    agent._gain = spy  # type: ignore[method-assign]
    agent.learn(40)
    assert 0 < sum(mirrored) < 40


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_policy_and_judge_are_computed_as_the_environment_says(
    mirror: bool, precision: str, channels_last: bool
) -> None:
    env = game(precision=precision, channels_last=channels_last, reward_model=DeepJudge())
    agent = EndToEnd(env, seed=0, device="cpu", mirror=mirror)
    kinds: set[tuple[str, torch.dtype]] = set()
    layouts: set[bool] = set()

    def hook(name: str) -> Any:
        def note(module: nn.Module, images: tuple[Tensor], out: Tensor) -> None:
            kinds.add((name, out.dtype))
            if name == "judge":
                layouts.add(images[0].is_contiguous(memory_format=torch.channels_last))

        return note

    for name, network in (("judge", env.game.reward_model.model), ("policy", agent.policy)):
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(hook(name))
    agent.learn(12)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert kinds == {("judge", dtype), ("policy", dtype)}
    assert layouts == {channels_last}
    assert {p.grad.dtype for p in agent.policy.parameters() if p.grad is not None} == {torch.float32}


class DeepJudge(nn.Module):
    """A judge that lays out nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images).relu().mean((2, 3)))
        return logits


def test_tensors_are_the_same_game() -> None:
    def learnt(tensors: bool) -> Any:
        agent = EndToEnd(game(flip=True, fill="noise", tensors=tensors), seed=0, device="cpu").learn(24)
        return dict(agent.policy.state_dict())

    assert same(learnt(False), learnt(True))


def made() -> EndToEnd:
    judges = [small(DATA, 0), small(DATA, 1)]
    env = game(flip=True, precision="bf16", channels_last=True, repeat=2, fill="noise", reward_model=judges)
    return EndToEnd(env, seed=0, device="cpu")


def test_all_of_it_together_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, first, second = made().learn(40), made().learn(20), made()
    first.save_checkpoint(tmp_path / "half.safetensors")
    second.load_checkpoint(tmp_path / "half.safetensors")
    second.learn(20)
    assert same(dict(whole.policy.state_dict()), dict(second.policy.state_dict()))
    assert whole.env is not None
    assert second.env is not None
    assert same(whole.env.game.state(), second.env.game.state())


def test_losses_of_a_judge_that_has_changed_since_are_not_kept(tmp_path: Path) -> None:
    def going_on(agent: EndToEnd) -> float:
        found: list[float] = []
        agent.learn(4, lambda _, metrics: found.append(metrics["train/soft_gain"]))
        return found[0]

    def changed() -> EndToEnd:
        agent = EndToEnd(game(reward_model=FlatJudge(DATA)), seed=0, device="cpu").learn(200)
        assert agent.env is not None
        with torch.no_grad():
            for parameter in agent.env.game.reward_model.model.parameters():
                parameter.mul_(3)
        return agent

    changed().save_checkpoint(tmp_path / "c.safetensors")
    other = EndToEnd(game(reward_model=FlatJudge(DATA)), seed=0, device="cpu")
    other.load_checkpoint(tmp_path / "c.safetensors")
    assert going_on(other) == going_on(changed())
