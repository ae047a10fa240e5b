"""Precision, layout and compilation change how fast a game is played, and its last digits; not the game."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from env_helpers import judge_for, pictures, same
from marker_game import joint_env, marker_env, marker_images
from scipy.stats import spearmanr
from torch import Tensor, nn

from maskaug import load_masker
from maskaug.agents.agent import MaskAgent
from maskaug.agents.apga import APGA
from maskaug.agents.distilled import Distilled
from maskaug.agents.end_to_end import EndToEnd
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.benchmarks.masks import mask_report
from maskaug.envs.acceleration import PLAIN, Acceleration, load_optimiser
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import load_judge, make_judge, save_judge
from maskaug.envs.pretrain import FitSettings, fit_classifier

DATA = pictures(8, 40, channels=3)
OBJECTIVES = ("adversarial", "preserving", "sensitivity", "reconstruction")
AGENTS: list[tuple[type[Any], dict[str, Any], dict[str, Any]]] = [
    (APGA, {"repeat": 2}, {}),
    (IntelligentMasking, {"objective": "reconstruction"}, {}),
    (Distilled, {}, {"judges": 2, "judge_updates": 2}),
    (EndToEnd, {"joint": False}, {}),
]
Game = dict[str, Any]


def game(objective: str = "adversarial", dataset: ImageDataset = DATA, **more: Any) -> MaskVectorEnv:
    """A joint game of three slots that learns often, or with joint=False a frozen one."""
    play: Game = {"grid": 5, "device": "cpu", "reward_model": judge_for(objective, dataset), **more}
    if play.get("joint", True):
        play = {"judge_batch": 4, "judge_lr": 0.01, **play}
    return MaskVectorEnv(3, dataset=dataset, objective=objective, **play)


def moves(steps: int, slots: int = 3, cells: int = 25) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 2, (steps, slots, cells))


def played(env: MaskVectorEnv, steps: int = 8) -> list[Any]:
    env.reset(seed=0)
    return [env.step(action) for action in moves(steps)]


def weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def numbers(value: Any) -> list[npt.NDArray[Any]]:
    """All arrays and tensors in what an environment returned."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [n for v in value for n in numbers(v)]
    return [value.numpy() if isinstance(value, Tensor) else np.asarray(value)]


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """`torch.compile` without a C++ compiler: traced and guarded as always, then run as it is. The modules it got."""
    compiled: list[nn.Module] = []
    compile_as_it_is = nn.Module.compile

    def compile_quickly(module: nn.Module, options: dict[str, bool] | None) -> None:
        compiled.append(module)
        compile_as_it_is(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    yield compiled
    torch._dynamo.reset()


def is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


# ---- bf16 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def radiographs() -> ImageDataset:
    return load_dataset("synthetic", n=80, image_size=40, difficulty="easy", seed=0)


@pytest.fixture(scope="module")
def trained(radiographs: ImageDataset) -> nn.Module:
    judge = make_judge("small", 1, 2, 0)
    fit_classifier(judge, radiographs, None, FitSettings(updates=60), device=torch.device("cpu"))
    return judge


def rewards(judge: nn.Module, dataset: ImageDataset, **keywords: Any) -> tuple[list[Any], npt.NDArray[np.float32]]:
    """(observations, rewards (32 masks, 6 images)) of random masks."""
    env = MaskVectorEnv(
        6, dataset=dataset, joint=False, reward_model=judge, repeat=32, area_price=0, device="cpu", **keywords
    )
    observations: list[Any] = [env.reset(seed=0)[0]]
    gained = []
    for action in moves(32, 6, 64):
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        gained.append(reward)
    return observations, np.stack(gained)


@pytest.mark.parametrize("objective", ["adversarial", "preserving", "sensitivity"])
def test_bf16_is_the_same_game_and_ranks_masks_as_fp32_does(
    objective: str, trained: nn.Module, radiographs: ImageDataset
) -> None:
    seen, exact = rewards(trained, radiographs, objective=objective)
    seen_too, rounded = rewards(trained, radiographs, objective=objective, precision="bf16")
    assert same(seen, seen_too)
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.03)
    assert np.abs(rounded - exact).max() < 0.1 * exact.std()
    assert spearmanr(exact.ravel(), rounded.ravel()).statistic > 0.999
    assert min(spearmanr(exact[:, i], rounded[:, i]).statistic for i in range(6)) > 0.99


def test_bf16_reconstruction_errors_rank_as_those_of_fp32(radiographs: ImageDataset) -> None:
    env = MaskVectorEnv(16, dataset=radiographs, objective="reconstruction", judge_batch=16, device="cpu")
    env.reset(seed=0)
    for _ in range(30):
        env.step(env.action_space.sample())
    judge = env.game.reward_model.model
    _, exact = rewards(judge, radiographs, objective="reconstruction")
    _, rounded = rewards(judge, radiographs, objective="reconstruction", precision="bf16")
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.003)
    assert min(spearmanr(exact[:, i], rounded[:, i]).statistic for i in range(6)) > 0.99


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tensors", [False, True])
def test_with_bf16_all_that_is_returned_and_all_that_is_kept_is_float32(objective: str, tensors: bool) -> None:
    env = game(objective, precision="bf16", tensors=tensors, action="patch")
    found = numbers(env.reset(seed=0))
    for corner in (0, 3, 5):
        found += numbers(env.step(np.full(3, corner)))
    found.append(env.game.action_rewards())
    kinds = {array.dtype for array in found if array.dtype.kind == "f"}
    assert kinds == {np.dtype(np.float32)}
    assert env.game.reward_model.version == 2
    optimiser = env.game.reward_model.optimiser
    assert optimiser is not None
    kept = [*env.game.reward_model.model.parameters(), *(m for s in optimiser.state.values() for m in s.values())]
    kept += [p.grad for p in env.game.reward_model.model.parameters() if p.grad is not None]
    assert {value.dtype for value in kept} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
@pytest.mark.parametrize("joint", [False, True])
def test_precision_is_that_of_every_pass_of_the_judge(precision: str, objective: str, joint: bool) -> None:
    env = game(objective, precision=precision, joint=joint)
    kinds: list[tuple[torch.dtype, bool]] = []
    first = next(m for m in env.game.reward_model.model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, _, out: kinds.append((out.dtype, module.training)))
    played(env, 4)
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    assert {kind for kind, _ in kinds} == {expected}
    modes = {training for _, training in kinds}
    assert modes == ({False} if not joint else {True} if objective == "reconstruction" else {False, True})


def test_a_judge_learns_in_bf16() -> None:
    def accuracy(env: MaskVectorEnv) -> float:
        images, labels = torch.from_numpy(np.array(env.dataset.images)), env.dataset.labels
        assert labels is not None
        answers = env.game.reward_model.answers(images).argmax(1).numpy()  # type: ignore[attr-defined]
        return float((answers == labels).mean())

    data = pictures(40, 40)
    np.asarray(data.images)[data.labels == 1, :, :8, :8] = 255
    env = MaskVectorEnv(8, dataset=data, grid=5, judge_batch=8, device="cpu", precision="bf16")
    assert accuracy(env) <= 0.7
    env.reset(seed=0)
    for _ in range(60):
        env.step(env.action_space.sample())
    assert accuracy(env) >= 0.95


def test_an_agent_learns_the_known_answer_in_bf16() -> None:
    agent = APGA(marker_env(precision="bf16")).learn(8_000)
    held_out = marker_images(100, seed=99)
    report = mask_report(agent.scores(np.asarray(held_out.images)), held_out, marker_images(64, 0), agent.spec)
    assert report.retention["agent"] > 0.8
    assert {p.dtype for p in agent.policy.parameters()} == {torch.float32}


# ---- layout ----------------------------------------------------------------------------------------------------------


def laid_out(module: nn.Module) -> set[bool]:
    """Whether the module's kernels are channels last; those of one channel or pixel are both."""
    kernels = [p for p in module.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    return {k.is_contiguous(memory_format=torch.channels_last) for k in kernels}


@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
def test_channels_last_lays_out_the_judges_weights_and_changes_nothing_else(objective: str) -> None:
    plain, other = game(objective), game(objective, channels_last=True)
    assert laid_out(plain.game.reward_model.model) == {False}
    assert laid_out(other.game.reward_model.model) == {True}
    for one, two in zip(numbers(played(plain)), numbers(played(other)), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4)
    assert laid_out(other.game.reward_model.model) == {True}
    for first, second in zip(
        weights(plain.game.reward_model.model), weights(other.game.reward_model.model), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_gets_its_images_channels_last(channels: int) -> None:
    strides: list[tuple[int, ...]] = []

    def network(images: Tensor) -> Tensor:
        strides.append(images.stride())
        return images

    for acceleration in (PLAIN, Acceleration(channels_last=True)):
        acceleration.forward(network, torch.zeros(2, channels, 4, 6))
    assert strides == [(24 * channels, 24, 6, 1), (24 * channels, 1, 6 * channels, channels)]


def test_moments_of_another_layout_are_put_where_their_weights_are() -> None:
    # A fused Adam on a CPU takes the layouts for equal: without this, weights end about 1e-3 apart, without a word.
    kernel = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    steps = [torch.randn(kernel.shape, generator=torch.Generator().manual_seed(i)) for i in range(1, 4)]

    def learnt(resumed: bool) -> Tensor:
        weight = nn.Parameter(kernel.clone(memory_format=torch.channels_last))
        optimiser = torch.optim.Adam([weight], fused=True)
        for i, step in enumerate(steps):
            if resumed and i == 2:
                state = optimiser.state_dict()
                plain = {name: value.contiguous() for name, value in state["state"][0].items()}
                load_optimiser(optimiser, {**state, "state": {0: plain}})
            weight.grad = step.clone(memory_format=torch.channels_last)
            optimiser.step()
        return weight.detach()

    assert torch.equal(learnt(True), learnt(False))


@pytest.mark.parametrize("how", ["channels_last", "bf16", "compile"])
@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
def test_a_run_is_resumed_to_the_bit(how: str, objective: str, tmp_path: Path, quick_compiler: list[nn.Module]) -> None:
    keywords: Game = {"precision": "bf16"} if how == "bf16" else {how: True}

    def made() -> Any:
        env = game(objective, repeat=2, judge_batch=5, **keywords)
        return APGA(env) if objective == "adversarial" else IntelligentMasking(env)

    agent = made()
    agent.horizon = 60
    agent.learn(24)
    if objective == "reconstruction":
        assert agent.env.game.reward_model.waiting
    agent.save_checkpoint(tmp_path / "half.safetensors")
    agent.learn(30)
    twin = made()
    twin.load_checkpoint(tmp_path / "half.safetensors")
    twin.learn(30)
    assert same(weights(agent.policy), weights(twin.policy))
    assert same(agent.env.game.state(), twin.env.game.state())


def test_a_state_goes_only_into_a_game_of_the_same_precision() -> None:
    state = joint_env(2).game.state()
    joint_env(2, channels_last=True).game.load_state(state)
    with pytest.raises(ConfigurationError, match="with precision='fp32', and this environment has precision='bf16'"):
        joint_env(2, precision="bf16").game.load_state(state)


# ---- compilation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
def test_a_compiled_judge_plays_the_same_game(objective: str, quick_compiler: list[nn.Module], tmp_path: Path) -> None:
    plain, other = game(objective), game(objective, compile=True)
    assert quick_compiler == [other.game.reward_model.model]
    for one, two in zip(numbers(played(plain)), numbers(played(other)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    model = other.game.reward_model.model
    assert list(model.state_dict()) == list(plain.game.reward_model.model.state_dict())
    save_judge(tmp_path / "judge.safetensors", model)
    assert same(weights(load_judge(tmp_path / "judge.safetensors")[0]), weights(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_of_a_compiled_game_is_compiled_and_goes_on(copied: Any, quick_compiler: list[nn.Module]) -> None:
    env = game(compile=True, channels_last=True)
    played(env, 3)
    twin = copied(env)
    assert is_compiled(twin.game.reward_model.model)
    assert laid_out(twin.game.reward_model.model) == {True}
    for action in moves(6):
        assert same(env.step(action), twin.step(action))
    assert same(env.game.state(), twin.game.state())


def test_what_torch_cannot_compile_is_an_error_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    compile_as_it_is = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, options: compile_as_it_is(module, backend=no_compiler))
    env = game(compile=True)
    env.reset(seed=0)
    before = env.game.state()
    with pytest.raises(ConfigurationError, match=r"No working C\+\+ compiler found.*or use compile=False"):
        env.step(moves(1)[0])
    assert same(before, env.game.state())
    torch._dynamo.reset()


def test_compiled_bf16_rounds_where_it_would_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, options: asked.append(options))
    for precision in ("fp32", "bf16"):
        Acceleration(precision, compile=True).apply(nn.Linear(1, 1))
    assert asked == [None, {"emulate_precision_casts": True}]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["adversarial", "reconstruction"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_judge_that_is_really_compiled_plays_the_same_game(objective: str) -> None:
    keywords: Game = {"channels_last": True, "precision": "bf16"}
    for more in ({}, keywords):
        # An update of as many images as there are slots: each shape more is another minute.
        plain, other = (
            played(game(objective, **more, judge_batch=3, compile=compiled), 5) for compiled in (False, True)
        )
        atol = 0.02 if more else 1e-4
        for one, two in zip(numbers(plain), numbers(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=atol)
    torch._dynamo.reset()


# ---- who gets it -----------------------------------------------------------------------------------------------------


# Tracing asks for the gradient of EndToEnd's soft images, which nobody needs to have kept.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(("kind", "keywords", "settings"), AGENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_policies_follow_their_environment_and_a_masker_is_plain(
    kind: type[Any], keywords: Game, settings: Game, tmp_path: Path, quick_compiler: list[nn.Module]
) -> None:
    env = game(**{"objective": "adversarial", **keywords}, precision="bf16", channels_last=True, compile=True)
    agent = kind(env, **settings)
    assert {id(m) for m in quick_compiler} == {
        id(m) for m in (env.game.reward_model.model, agent.policy, agent.averaged.module)
    }
    assert laid_out(agent.policy) == laid_out(agent.averaged.module) == {True}
    kinds = set()
    for network in (agent.policy, agent.averaged.module):
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_hook(lambda module, _, out: kinds.add((module.training, out.dtype)))
    agent.learn(200 if kind is Distilled else 12)  # its judges' training counts
    images = DATA.images[:4]
    scores = agent.scores(images)
    assert kinds == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert scores.dtype == np.float32
    twin = copy.deepcopy(agent)
    assert is_compiled(twin.policy)
    assert is_compiled(twin.averaged.module)
    assert same(twin.scores(images), scores)

    agent.save(tmp_path / "masker.safetensors")
    masker = load_masker(tmp_path / "masker.safetensors")
    assert isinstance(masker.agent, MaskAgent)
    assert masker.agent.acceleration == PLAIN
    assert not is_compiled(masker.agent.policy)
    plain = masker.agent.scores(images)
    assert not np.array_equal(plain, scores)
    np.testing.assert_allclose(plain, scores, atol=0.05 * max(1, np.abs(scores).max()))
    assert kind.load(tmp_path / "masker.safetensors", env=env).acceleration == env.game.acceleration


def test_an_evaluation_is_played_as_the_training_is(quick_compiler: list[nn.Module]) -> None:
    for keywords in ({"precision": "bf16"}, {"channels_last": True}, {"compile": True}):
        env = MaskVectorEnv(2, n=60, image_size=40, grid=5, device="cpu", **keywords)
        assert env.game.acceleration == Acceleration(**keywords)
        assert env.evaluation("val").game.acceleration == env.game.acceleration


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"precision": "fp16"}, r"precision='fp16' is unknown; use one of \('fp32', 'bf16'\)"),
        ({"channels_last": 1}, "channels_last=1 must be True or False"),
        ({"compile": "yes"}, "compile='yes' must be True or False"),
    ],
)
def test_what_is_neither_is_refused(keywords: Game, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        MaskEnv(dataset=DATA, grid=5, **keywords)
