"""`gym.make_vec` plays one game, whether natively, one after the other, or in spawned processes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import maskaug  # noqa: F401
from maskaug.envs.judges import make_judge, save_judge

N, STEPS, SEED = 3, 5, 7


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Games whose judges lie in files: what every process can make for itself."""
    folder = tmp_path_factory.mktemp("judges")
    common = {"n": 24, "image_size": 40, "grid": 5, "joint": False, "repeat": 2, "device": "cpu"}
    found = {}
    for objective, action, classes in (("reconstruction", "patch", None), ("adversarial", "grid", 2)):
        file = folder / f"{objective}.safetensors"
        save_judge(file, make_judge("small", 1, classes, 5))
        found[objective] = {**common, "objective": objective, "action": action, "reward_model": file}
    return found


def played(env: Any) -> list[tuple[Any, ...]]:
    """(observations, rewards, terminations, final observations, final infos) of each step; closes the environment."""
    env.action_space.seed(SEED)
    observation, _ = env.reset(seed=SEED)
    answers: list[tuple[Any, ...]] = [(observation,)]
    for _ in range(STEPS):
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        answers.append((observation, reward, terminated, np.stack([*info["final_obs"]]), info["final_info"]))
    env.close()
    return answers


def agree(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]], absolute: float) -> None:
    np.testing.assert_array_equal(one[0][0], other[0][0])
    for (a, r, ended, final, info), (a2, r2, ended2, final2, info2) in zip(one[1:], other[1:], strict=True):
        np.testing.assert_array_equal(a, a2)
        np.testing.assert_array_equal(ended, ended2)
        np.testing.assert_array_equal(final, final2)
        np.testing.assert_allclose(r, r2, rtol=1e-5, atol=absolute)
        assert info.keys() == info2.keys()
        for name in info:
            exact = name in ("index", "try", "label", "area") or name.startswith(("_", "loss_"))
            # One image a slot: stacked by Gymnasium, an array of arrays.
            np.testing.assert_allclose(
                info[name], np.stack([*info2[name]]), rtol=1e-5, atol=0 if exact else absolute, err_msg=name
            )
    rewards = np.stack([answer[1] for answer in one[1:]])
    assert np.unique(rewards).size > N * STEPS // 2
    assert ended.all()


def make(mode: str, keywords: dict[str, Any], **vector_kwargs: Any) -> Any:
    if mode == "native":
        return gym.make_vec("MaskAug-Synthetic-v0", num_envs=N, **keywords)
    how = {"autoreset_mode": AutoresetMode.SAME_STEP, **vector_kwargs}
    env_id = "maskaug:MaskAug-Synthetic-v0"
    return gym.make_vec(env_id, num_envs=N, vectorization_mode=mode, vector_kwargs=how, **keywords)


# A classifier's reward is the difference of two losses near .7, of which float32 knows seven digits.
@pytest.mark.parametrize(("objective", "absolute"), [("reconstruction", 0.0), ("adversarial", 5e-7)])
def test_one_after_the_other_is_the_same_game(
    objective: str, absolute: float, games: dict[str, dict[str, Any]]
) -> None:
    agree(played(make("native", games[objective])), played(make("sync", games[objective])), absolute)


def test_spawned_processes_play_the_same_game(games: dict[str, dict[str, Any]]) -> None:
    game = games["reconstruction"]
    agree(played(make("native", game)), played(make("async", game, context="spawn")), 0.0)
