"""`SB3Agent` wherever our own agents are: keeping, continuing to the bit, scores, callbacks, nobody else's draws."""

import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import same
from gymnasium.wrappers import TimeLimit, vector
from marker_game import marker_env, marker_images
from patch_game import frozen_env, joint_env, square_images
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from maskaug.agents.apga import APGA
from maskaug.agents.base import GridSpec
from maskaug.agents.checkpoint import CheckpointError
from maskaug.agents.masker import load_agent, load_masker
from maskaug.agents.sb3 import as_vec_env
from maskaug.agents.sb3_agent import SB3Agent, _depth
from maskaug.agents.sb3_defaults import DEFAULTS, keywords
from maskaug.agents.sb3_zip import load_sb3_zip
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import box_to_mask

#: TRPO takes seconds an update: two of its four actions will do.
ROWS = [
    pytest.param(*row, marks=pytest.mark.slow) if row in (("trpo", "pixel"), ("trpo", "box")) else row
    for row in sorted(DEFAULTS)
]
RESUMED = [row for row in sorted(DEFAULTS) if row[1] == "patch" or row in (("sac", "box"), ("ppo", "grid"))]
SHORT = {"n_steps": 4, "n_epochs": 2, "learning_starts": 16, "batch_size": 8, "train_freq": 2, "gradient_steps": 2}


def agent_for(algorithm: str, kind: str, **more: Any) -> SB3Agent:
    quick = {name: value for name, value in SHORT.items() if name in DEFAULTS[algorithm, kind]}
    env = more.pop("env", None) or marker_env(4, 1, action=kind, images=20, **more.pop("play", {}))
    return SB3Agent(env, algorithm=algorithm, device="cpu", **{**quick, **more})


def record(agent: SB3Agent, timesteps: int) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    agent.learn(timesteps, lambda _, metrics: found.append({k: v for k, v in metrics.items() if k != "time/fps"}))
    return found


# ---- keeping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "kind"), ROWS)
def test_a_saved_agent_says_the_same(algorithm: str, kind: str, tmp_path: Path) -> None:
    agent = agent_for(algorithm, kind, seed=3)
    images = np.array(marker_images(5, 7).images)
    agent.learn(32)
    agent.save(tmp_path / "masker.safetensors")
    for other in (
        SB3Agent.load(tmp_path / "masker.safetensors", device="cpu"),
        SB3Agent.load(tmp_path / "masker.safetensors", env=marker_env(4, 1, action=kind), device="cpu"),
        load_agent(tmp_path / "masker.safetensors", device="cpu"),
    ):
        assert other.about() == agent.about()
        assert same(other.scores(images), agent.scores(images))
        assert same(other.predict(images, deterministic=True)[0], agent.predict(images, deterministic=True)[0])
    masks = load_masker(tmp_path / "masker.safetensors", device="cpu")(images)
    assert masks.shape == (5, 32, 32)
    assert masks.any((1, 2)).all()
    with pytest.raises(ConfigurationError, match="without an environment"):
        load_agent(tmp_path / "masker.safetensors", device="cpu").learn(1)


def test_actions_are_those_of_the_environment() -> None:
    images = np.array(marker_images(3, 1).images)
    for kind, shape, dtype in (
        ("grid", (16,), np.int8), ("patch", (), np.int64), ("pixel", (32, 32), np.float32), ("box", (4,), np.float32),
    ):  # fmt: skip
        agent = agent_for("ppo", kind)
        actions, _ = agent.predict(images)
        assert actions.shape == (3, *shape)
        assert actions.dtype == np.dtype(dtype)
        one, _ = agent.predict(images[0])
        assert one.shape == shape
        assert agent.spec.cells_of(actions).shape == ((3, 32, 32) if kind == "pixel" else (3, 4, 4))
        assert all(agent.env is not None and agent.env.single_action_space.contains(a) for a in actions)


def test_other_images_and_other_environments_are_refused(tmp_path: Path) -> None:
    agent = agent_for("ppo", "grid")
    with pytest.raises(ConfigurationError, match="uint8 images of shape"):
        agent.scores(np.zeros((1, 1, 40, 40), np.uint8))
    agent.save(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="was trained on"):
        SB3Agent.load(tmp_path / "a.safetensors", env=marker_env(4, 1, area=0.5), device="cpu")
    with pytest.raises(ConfigurationError, match="tensors"):
        agent_for("ppo", "grid", play={"tensors": True})
    with pytest.raises(ConfigurationError, match="SAME_STEP"):
        agent_for("ppo", "grid", play={"autoreset_mode": "DISABLED"})


# ---- continuing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "kind"), RESUMED)
def test_a_continued_run_equals_a_calm_one_to_the_bit(algorithm: str, kind: str, tmp_path: Path) -> None:
    calm, half = agent_for(algorithm, kind), agent_for(algorithm, kind)
    rows = record(calm, 96)
    kept: list[dict[str, float]] = []

    def stop(current: SB3Agent, metrics: Any) -> bool:
        kept.append({k: v for k, v in metrics.items() if k != "time/fps"})
        if current.num_timesteps < 48:
            return True
        current.save_checkpoint(tmp_path / "c.safetensors", note="here")
        return False

    half.learn(96, stop)
    half.predict(np.array(marker_images(4, 1).images))  # whoever plays on meanwhile is none of its business
    again = agent_for(algorithm, kind)
    assert again.load_checkpoint(tmp_path / "c.safetensors") == {"note": "here"}
    assert again.num_timesteps == half.num_timesteps
    kept += record(again, 96 - again.num_timesteps)
    assert same(kept, rows)
    assert (again.num_timesteps, again.updates) == (calm.num_timesteps, calm.updates)
    assert same(dict(again.policy.state_dict()), dict(calm.policy.state_dict()))
    assert calm.env is not None
    assert again.env is not None
    assert same(again.env.game.state(), calm.env.game.state())


def test_continuing_in_the_middle_of_an_episode_is_exact_too(tmp_path: Path) -> None:
    for algorithm in ("recurrentppo", "dqn", "maskableppo"):

        def made(algorithm: str = algorithm) -> SB3Agent:
            return agent_for(algorithm, "patch", env=frozen_env(4, 20, steps=3))

        calm, half = made(), made()
        rows = record(calm, 96)
        kept = record(half, 32) if algorithm != "dqn" else []
        if algorithm == "dqn":
            # DQN's exploration follows the length of the call; so stop a call of the same length.
            def stop(current: SB3Agent, metrics: Any, kept: list[Any] = kept) -> bool:
                kept.append({k: v for k, v in metrics.items() if k != "time/fps"})
                return current.num_timesteps < 32

            half.learn(96, stop)
        half.save_checkpoint(tmp_path / f"{algorithm}.safetensors")
        again = made()
        again.load_checkpoint(tmp_path / f"{algorithm}.safetensors")
        assert same([*kept, *record(again, 96 - again.num_timesteps)], rows)


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    agent = agent_for("ppo", "patch")
    agent.learn(16)
    agent.save_checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="other settings"):
        agent_for("ppo", "patch", learning_rate=1e-4).load_checkpoint(tmp_path / "c.safetensors")


# ---- randomness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "kind"), [("ppo", "grid"), ("dqn", "patch"), ("sac", "box")])
def test_a_seed_says_all_and_nobody_elses_draws_are_touched(algorithm: str, kind: str) -> None:
    def whole(seed: int, noise: int) -> Any:
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        agent = agent_for(algorithm, kind, seed=seed)
        rows = record(agent, 48)
        images = np.array(marker_images(6, 1).images)
        found = rows, dict(agent.policy.state_dict()), agent.predict(images)[0]
        after = torch.get_rng_state(), np.random.get_state(), random.getstate()
        assert same(list(before), list(after))
        return found

    first = whole(0, 1)
    assert same(first, whole(0, 2))
    assert not same(first[1], whole(1, 1)[1])


# ---- learning --------------------------------------------------------------------------------------------------------


def test_callbacks_see_every_update_and_can_end_it() -> None:
    agent = agent_for("ppo", "patch")
    rows = record(agent, 64)
    assert len(rows) == agent.updates == 4
    assert agent.num_timesteps == 64
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert {"rollout/reward", "train/loss"} <= rows[0].keys()
    agent.learn(64, lambda current, _: current.num_timesteps < 96)
    assert agent.num_timesteps == 96


def test_replay_algorithms_report_nothing_before_they_learn() -> None:
    agent = agent_for("dqn", "patch", learning_starts=40)
    steps: list[int] = []
    agent.learn(64, lambda current, _: steps.append(current.num_timesteps))
    assert steps == [48, 56, 64]


def test_the_reward_that_is_reported_is_the_environments() -> None:
    agent = agent_for("a2c", "patch", n_steps=3)
    seen: list[float] = []
    assert agent.env is not None
    step = agent.env.step
    agent.env.step = lambda actions: (seen.append(float(np.mean((out := step(actions))[1]))), out)[1]  # type: ignore[method-assign, func-returns-value]
    rows = record(agent, 24)
    assert [row["rollout/reward"] for row in rows] == pytest.approx([np.mean(seen[:3]), np.mean(seen[3:])])


def test_whoever_played_on_meanwhile_is_seen() -> None:
    agent = agent_for("dqn", "patch")
    agent.learn(32)
    assert agent.env is not None
    agent.env.step(np.zeros(4, np.int64))
    seen, replay = agent.env.observe(), agent.algorithm.replay_buffer
    begun = replay.pos
    agent.learn(16)
    assert np.array_equal(replay.observations[begun], seen)


def test_whoever_ended_episodes_meanwhile_is_heard() -> None:
    agent = agent_for("recurrentppo", "patch", env=frozen_env(4, 20, steps=3), n_steps=4)
    agent.learn(16)
    assert agent.env is not None
    # After 4 steps the second episode is under way; a reset begins another one in two of the slots.
    assert not agent.env.game.begun.any()
    agent.env.reset(options={"reset_mask": np.array([True, False, True, False])})
    agent.learn(16)
    # Of each slot, its four steps.
    starts = agent.algorithm.rollout_buffer.episode_starts.reshape(4, 4)
    assert starts.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]] * 2


def test_learning_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="total_timesteps=0"):
        agent_for("ppo", "patch").learn(0)


def test_evaluate_policy_of_stable_baselines_takes_the_agent() -> None:
    agent = agent_for("recurrentppo", "patch", env=frozen_env(4, 20, steps=2))
    assert agent.env is not None
    mean, _ = evaluate_policy(agent, as_vec_env(agent.env.evaluation(dataset=square_images(8, 5))), 8, warn=False)  # type: ignore[arg-type]
    assert np.isfinite(mean)


def test_exploration_is_drawn_unless_the_best_is_asked_for() -> None:
    agent = agent_for("dqn", "patch", exploration_initial_eps=1.0, exploration_final_eps=1.0)
    agent.learn(48)
    images = np.repeat(np.array(marker_images(1, 1).images), 64, 0)
    assert len(set(agent.predict(images, deterministic=True)[0].tolist())) == 1
    assert len(set(agent.predict(images)[0].tolist())) > 3


def test_a_joint_judge_learns_with_it() -> None:
    env = joint_env(4, 30)
    before = [p.clone() for p in env.game.reward_model.model.parameters()]
    agent_for("ppo", "patch", env=env).learn(32)
    assert not same(before, [p.clone() for p in env.game.reward_model.model.parameters()])


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_patches_are_means_over_those_that_cover_a_cell() -> None:
    agent = SB3Agent(GridSpec((1, 36, 36), 3, 4, 2), algorithm="dqn", device="cpu")
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    agent.policy.values = lambda _: values
    scores = agent.scores(np.zeros((1, 1, 36, 36), np.uint8))
    assert scores[0].tolist() == [[1, 1.5, 2], [2, 2.5, 3], [3, 3.5, 4]]


def test_scores_of_boxes_are_positive_inside() -> None:
    boxes = torch.tensor([[0.0, 0.5, -0.5, 0.0], [-1.0, -1.0, -1.0, -1.0]])
    depth = _depth(boxes, 8)
    assert torch.equal(depth[:1] > 0, box_to_mask(boxes[:1], 8, 8))
    assert depth[1].flatten().argmax() == 0
    sizes = [int((depth[0] > low).sum()) for low in (0.2, 0.0, -0.5)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


def test_the_grid_of_the_map_can_be_finer_than_the_environments() -> None:
    coarse, fine = agent_for("ppo", "pixel"), agent_for("ppo", "pixel", grid=8)
    assert coarse.settings.grid == 4
    image = np.array(marker_images(1, 0).images)
    assert coarse.scores(image).shape == fine.scores(image).shape == (1, 32, 32)
    assert fine.policy.features_extractor.features_dim == 64


# ---- zips ------------------------------------------------------------------------------------------------------------


def test_a_zip_is_read_only_with_trust(tmp_path: Path) -> None:
    for algorithm, kind in (("ppo", "grid"), ("dqn", "patch"), ("sac", "pixel"), ("maskableppo", "patch")):
        agent = agent_for(algorithm, kind)
        agent.learn(32)
        file = tmp_path / f"{algorithm}.zip"
        agent.algorithm.save(file)
        with pytest.raises(ConfigurationError, match=r"runs whatever code .*--trust"):
            load_sb3_zip(file, algorithm)
        read = load_sb3_zip(file, algorithm, trust=True, device="cpu")
        assert read.spec == agent.spec
        assert read.num_timesteps == 32
        images = np.array(marker_images(3, 1).images)
        assert same(read.scores(images), agent.scores(images))
        assert agent.env is not None
        load_sb3_zip(file, algorithm, agent.env, trust=True, device="cpu").learn(16)


def test_zips_that_have_no_place_here(tmp_path: Path) -> None:
    env = marker_env(4, 1, action="patch")
    model = PPO("MlpPolicy", as_vec_env(env), device="cpu", n_steps=4, batch_size=8)
    model.save(tmp_path / "other.zip")
    (tmp_path / "text.zip").write_text("no zip")
    own = PPO(env=as_vec_env(env), device="cpu", **keywords("ppo", env))
    own.save(tmp_path / "own.zip")
    for name, algorithm, cause in (
        ("other.zip", "ppo", "holds a ActorCriticPolicy"), ("text.zip", "ppo", "is no zip file"),
        ("gone.zip", "ppo", "is no zip file"), ("own.zip", "dqn", "cannot be read as a model of DQN|holds a"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=cause):
            load_sb3_zip(tmp_path / name, algorithm, trust=True)
    with pytest.raises(CheckpointError, match="was trained on"):
        load_sb3_zip(tmp_path / "own.zip", "ppo", marker_env(4, 1), trust=True)


# ---- wrappers --------------------------------------------------------------------------------------------------------


def test_wrappers_that_an_agent_would_drop_are_refused() -> None:
    clipped: Any = vector.RecordEpisodeStatistics(vector.ClipReward(marker_env(4, 1), -0.001, 0.001))
    own: Any = OwnStatistics(marker_env(4, 1))
    with pytest.raises(ConfigurationError, match=r"inside ClipReward, so what that changes would be lost; .*reward_"):
        SB3Agent(clipped, device="cpu")
    with pytest.raises(ConfigurationError, match="inside ClipReward"):
        APGA(clipped, device="cpu")
    with pytest.raises(ConfigurationError, match="inside OwnStatistics"):
        SB3Agent(own, device="cpu")
    made = gym.make("MaskAug-Synthetic-v0", n=40, image_size=40, grid=5)
    with pytest.raises(ConfigurationError, match="inside TimeLimit"):
        SB3Agent(TimeLimit(made, 2), device="cpu")
    many: Any = gym.vector.SyncVectorEnv([lambda: made])
    with pytest.raises(ConfigurationError, match="got SyncVectorEnv"):
        SB3Agent(many, device="cpu")


class OwnStatistics(vector.RecordEpisodeStatistics):
    """Whatever a subclass may change."""


def test_wrappers_that_change_nothing_are_played_past() -> None:
    inner = marker_env(4, 1, images=20)
    agent = agent_for("ppo", "grid", env=vector.RecordEpisodeStatistics(inner))
    assert agent.env is inner
    assert same(record(agent, 16), record(agent_for("ppo", "grid"), 16))
    made = gym.make("MaskAug-Synthetic-v0", n=40, image_size=40, grid=5)
    assert made is not made.unwrapped
    assert SB3Agent(made, device="cpu").env is not None


def test_keywords_take_the_adapted_environment_too() -> None:
    env = marker_env(4, 1, action="patch")
    adapted = as_vec_env(vector.ClipReward(env, -0.001, 0.001))
    for form in (adapted, VecMonitor(adapted), adapted.env):
        assert keywords("ppo", form) == keywords("ppo", env)
    with pytest.raises(ConfigurationError, match="got DummyVecEnv"):
        keywords("ppo", DummyVecEnv([lambda: gym.make("CartPole-v1")]))
