"""Whether a batch fits is asked before anything starts; with a device that is made up, since the tests have none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import judge_for, pictures, same
from torch import Tensor, nn

from maskaug.agents.apga import APGA
from maskaug.agents.distilled import Distilled
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.envs import memory
from maskaug.envs.acceleration import PLAIN
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.memory import Demand, Trial, largest_batch

DATA = pictures(8, 40)
CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
KiB = 2**10
Game = dict[str, Any]


# ---- the answer ------------------------------------------------------------------------------------------------------


def linear(fixed: int, each: int, asked: list[int] | None = None) -> Callable[[int], int]:
    def peak(count: int) -> int:
        if asked is not None:
            asked.append(count)
        return fixed + each * count

    return peak


@pytest.mark.parametrize(
    ("fixed", "each", "free", "wanted", "fits"),
    [
        (0, 10, 1000, 512, 100),
        (100, 10, 1000, 512, 90),
        (100, 10, 1000, 90, 90),
        (100, 10, 1000, 91, 90),
        (100, 10, 1000, 16, 16),
        (100, 10, 260, 17, 16),
        (100, 10, 259, 17, 15),
        (100, 10, 105, 512, 0),
        (2000, 10, 1000, 512, 0),
        (100, 0, 1000, 10**9, 10**9),
        (2000, 0, 1000, 512, 0),
        (0, 10, 25, 3, 2),
        (0, 10, 9, 1, 0),
        (0, 10, 10, 1, 1),
    ],
)
def test_the_largest_batch_follows_from_two_small_ones(
    fixed: int, each: int, free: int, wanted: int, fits: int
) -> None:
    asked: list[int] = []
    assert largest_batch(linear(fixed, each, asked), free, wanted) == fits
    assert max(asked) <= min(wanted, 16)
    assert len(asked) <= 2


@pytest.mark.parametrize(("limit", "fits"), [(16, 9), (15, 8), (7, 4), (3, 2), (1, 1), (0, 0)])
def test_a_batch_that_cannot_even_be_tried_is_halved(limit: int, fits: int) -> None:
    def peak(count: int) -> int:
        if count > limit:
            raise torch.OutOfMemoryError
        return 10 * count

    assert largest_batch(peak, 95, 512) == fits


# ---- a device that is made up ----------------------------------------------------------------------------------------


class Device:
    """What torch says of a CUDA device, if every image that goes through a network took one KiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, free: int, held: int = 0, used: int = 0) -> None:
        self.used, self.peak, self.resets = used, used, 0
        fakes: dict[str, Callable[..., Any]] = {
            "mem_get_info": lambda device: (free, 4 * free),
            "memory_reserved": lambda device: held,
            "memory_allocated": lambda device: self.used,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": self.reset,
            "get_per_process_memory_fraction": lambda device: 1.0,
            "current_device": lambda: 2,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def reset(self, device: torch.device) -> None:
        self.resets += 1
        self.peak = self.used

    def takes(self, size: int) -> None:
        self.peak = max(self.peak, self.used + size)


class Counting(nn.Module):
    """A judge, or a policy, whose passes take memory on a made-up device, and which remembers them; all copies do."""

    passes: list[tuple[int, bool, bool]] = []
    device: Device | None = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        Counting.passes.append((len(images), self.training, torch.is_grad_enabled()))
        if Counting.device is not None:
            # A pass that is to be learnt from keeps what it has seen.
            Counting.device.takes(len(images) * KiB * (3 if self.training else 1))
        answer: Tensor = self.network(images)
        return answer


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Device]:
    """Makes a device with so many free KiB, on which all that is on the CPU is taken to be."""

    def make(free: int, **more: int) -> Device:
        device = Device(monkeypatch, free=free * KiB, **more)
        check, explained = memory.check, memory.explained
        monkeypatch.setattr(memory, "check", lambda demands, _: check(demands, CUDA))
        monkeypatch.setattr(memory, "explained", lambda work, demands, _, *key: explained(work, demands, CUDA, *key))
        Counting.device = device
        return device

    Counting.passes.clear()
    monkeypatch.setattr(Counting, "device", None)
    return make


def game(num_envs: int = 4, objective: str = "adversarial", **more: Any) -> MaskVectorEnv:
    keywords: Game = {"dataset": DATA, "grid": 5, "objective": objective, "device": "cpu", **more}
    return MaskVectorEnv(num_envs, **{"reward_model": Counting(judge_for(objective, DATA)), **keywords})


def test_free_is_what_the_device_and_torch_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, free=1000, held=500, used=200)
    assert memory.free_bytes(CUDA) == 1300
    # 4 000 bytes in all, of which this process may have 1 000 and holds 500.
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.25)
    assert memory.free_bytes(CUDA) == 800


def test_nothing_is_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    for name in ("mem_get_info", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, never)
    monkeypatch.setattr(memory, "_measure", never)
    monkeypatch.setattr(Trial, "__call__", never)
    APGA(game(repeat=2)).learn(16)


@pytest.mark.parametrize(
    ("keywords", "free", "words"),
    [
        ({"num_envs": 400}, 100,
            "num_envs=400 does not fit: about 100 fit into the 0.0 GiB that are free on cuda:0; use num_envs=100"),
        ({"num_envs": 80, "objective": "both"}, 100, "num_envs=80 does not fit: about 50 fit .* use num_envs=50"),
        ({"judge_batch": 64}, 100, "judge_batch=64 does not fit: about 16 fit .* use judge_batch=16"),
        (
            {"num_envs": 90, "objective": "reconstruction", "judge_batch": 128}, 100,
            "num_envs=90 does not fit: about 33 fit .* use num_envs=33",
        ),
        ({"num_envs": 8, "judge_batch": 2}, 0, "not even 1 fits into .* use a smaller image_size or network"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_when_the_environment_is_made(
    keywords: Game, free: int, words: str, made_up: Callable[..., Device]
) -> None:
    made_up(free)
    with pytest.raises(ConfigurationError, match=words):
        game(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_envs": 100, "judge_batch": 16},
        # An update's masks at most are learnt from at once.
        {"num_envs": 400, "objective": "reconstruction", "judge_batch": 32},
        {"num_envs": 100, "objective": "reconstruction", "joint": False},
    ],
)
def test_what_fits_is_played(keywords: Game, made_up: Callable[..., Device]) -> None:
    device = made_up(100)
    env = game(**keywords)
    assert device.resets
    assert max(count for count, *_ in Counting.passes) <= 16
    env.reset(seed=0)
    env.step(env.action_space.sample())


def test_a_compiled_network_is_not_measured_beforehand(
    made_up: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda module, options: None)
    device = made_up(1)
    env = game(400, compile=True, repeat=2)
    assert device.resets == 0
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="does not fit"):
        game(400)


class Normed(nn.Sequential):
    """A judge with batch norm and dropout: whatever a pass could leave behind, it does."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, 4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 2),
        )  # fmt: skip


def test_a_trial_leaves_nothing_behind(made_up: Callable[..., Device]) -> None:
    model = Normed()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy([*model.state_dict().values()])
    random = torch.get_rng_state()
    device = made_up(100)
    env = game(4, reward_model=model)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    version, known = env.game.reward_model.weights_version(), env.game.judging.state()
    memory.check(env.game.judging.demands, CPU)
    assert device.resets > 2
    assert same(before, [*model.state_dict().values()])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert env.game.reward_model.weights_version() == version
    assert same(known, env.game.judging.state())
    assert torch.equal(random, torch.get_rng_state())
    assert not model.training


def test_a_trial_learns_as_an_update_does(made_up: Callable[..., Device]) -> None:
    made_up(100)
    game(4, judge_batch=3)
    assert {(training, gradients) for _, training, gradients in Counting.passes} >= {(False, False), (True, True)}
    assert {count for count, training, _ in Counting.passes if training} == {4, 6}
    Counting.passes.clear()
    game(4, joint=False)
    assert {training for _, training, _ in Counting.passes} == {False}


def test_a_network_that_cannot_be_copied_is_played_unmeasured(made_up: Callable[..., Device]) -> None:
    class Single(Counting):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("there is only one")

    device = made_up(1)
    env = game(400, reward_model=Single(judge_for("adversarial", DATA)))
    assert device.resets == 0
    env.reset(seed=0)


# ---- agents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keywords", "settings", "fits"),
    [
        # The policy's pass, three to an image, waits while the judge's one is done.
        (APGA, {"repeat": 2}, {}, 100 // 4),
        (IntelligentMasking, {"objective": "reconstruction", "judge_batch": 128}, {}, 100 // 6),
        # The environment's judge is not asked.
        (Distilled, {}, {}, 100 // 3),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_agents_own_pass_is_asked_about_when_it_begins_to_learn(
    kind: type[Any], keywords: Game, settings: Game, fits: int, made_up: Callable[..., Device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    env = game(40, **{"judge_batch": 2, **keywords})
    agent = kind(env, **settings)
    agent.policy = Counting(agent.policy)
    device = made_up(100)

    # What waits for its gradient is held while the judge works.
    def waiting(trial: Trial, count: int, meanwhile: Callable[[], None] | None = None) -> None:
        size = count * KiB * (3 if trial.learns else 1)
        device.takes(size)
        if meanwhile is not None:
            device.used += size
            meanwhile()
            device.used -= size

    monkeypatch.setattr(Trial, "__call__", waiting)
    before = env.game.state()
    with pytest.raises(ConfigurationError, match=f"num_envs=40 does not fit: about {fits} fit"):
        agent.learn(100_000)
    assert same(before, env.game.state())
    assert agent.num_timesteps == 0
    assert agent.updates == 0


def test_a_replayed_batch_is_asked_about(made_up: Callable[..., Device]) -> None:
    agent = IntelligentMasking(game(2, "reconstruction", judge_batch=2), replay_batch=512)
    agent.policy = Counting(agent.policy)
    made_up(60)
    with pytest.raises(ConfigurationError, match="replay_batch=512 does not fit: about 20 fit"):
        agent.learn(8)


# ---- when it happens after all ---------------------------------------------------------------------------------------


class Exhausted(nn.Module):
    """A judge that runs out of memory when it is told to: in a forward pass, or in a backward pass."""

    def __init__(self, objective: str) -> None:
        super().__init__()
        self.judge, self.norm = judge_for(objective, DATA), nn.BatchNorm2d(1)
        self.when: str | None = None

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.judge(self.norm(images))
        if self.when == "forward" or (self.when == "learning" and self.training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.when == "backward" and answer.requires_grad:
            # The first layer's gradient comes last: those of the others have been added up by then.
            next(self.parameters()).register_hook(self._fail)  # type: ignore[no-untyped-call]
        return answer

    def _fail(self, gradient: Tensor) -> None:
        if self.when == "backward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("objective", "when"), [("adversarial", "forward"), ("reconstruction", "forward"), ("reconstruction", "backward")]
)
@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_a_step_that_ran_out_of_memory_can_be_taken_again(objective: str, when: str, waiting: int) -> None:
    judge = Exhausted(objective)
    env = game(2, objective, reward_model=judge, judge_batch=5, fill="noise")
    env.reset(seed=0)
    for _ in range(waiting):
        env.step(np.eye(25, dtype=np.int8)[:2])
    twin = copy.deepcopy(env)
    before, gradients = env.game.state(), [copy.deepcopy(p.grad) for p in judge.parameters()]
    judge.when = when
    with pytest.raises(ConfigurationError, match=r"cpu ran out of memory \(CUDA out of memory.*smaller num_envs"):
        env.step(np.ones((2, 25)))
    assert same(before, env.game.state())
    if waiting:
        assert all(
            (a is None) == (p.grad is None) and (a is None or torch.equal(a, p.grad))  # type: ignore[arg-type]
            for a, p in zip(gradients, judge.parameters(), strict=True)
        )
    assert not judge.training
    judge.when = None
    for _ in range(4):
        assert same(env.step(np.ones((2, 25))), twin.step(np.ones((2, 25))))
    assert same(env.game.state(), twin.game.state())


def test_moments_for_which_there_is_no_memory_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_moments() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    env, twin = (game(2, "reconstruction", judge_batch=2) for _ in range(2))
    for one in (env, twin):
        one.reset(seed=0)
    before, optimiser = env.game.state(), env.game.reward_model.optimiser
    with monkeypatch.context() as patched:
        patched.setattr(optimiser, "step", no_moments)
        with pytest.raises(ConfigurationError, match="ran out of memory"):
            env.step(np.ones((2, 25)))
    assert same(before, env.game.state())
    for _ in range(3):
        assert same(env.step(np.ones((2, 25))), twin.step(np.ones((2, 25))))


@pytest.mark.parametrize("when", ["learning", "backward"])
def test_an_update_that_ran_out_of_memory_leaves_the_judge_as_it_was(when: str) -> None:
    judge = Exhausted("adversarial")
    env = game(2, reward_model=judge, judge_batch=2)
    env.reset(seed=0)
    before = env.game.reward_model.state()
    judge.when = when
    with pytest.raises(ConfigurationError, match=r"ran out of memory .* use a smaller judge_batch"):
        env.step(np.eye(25, dtype=np.int8)[:2])
    assert same(before, env.game.reward_model.state())
    assert not judge.training
    judge.when = None
    env.step(np.eye(25, dtype=np.int8)[:2])
    assert env.game.reward_model.version == 2


def test_an_agent_that_ran_out_of_memory_says_so() -> None:
    agent = APGA(game(2, repeat=2))
    agent.policy.register_forward_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(ConfigurationError, match=r"cpu ran out of memory .* use a smaller num_envs"):
        agent.learn(8)


def test_a_crash_on_cuda_says_what_would_have_fitted(made_up: Callable[..., Device]) -> None:
    made_up(100)

    def demands() -> list[Demand]:
        trial = Trial.of(Counting(judge_for("adversarial", DATA)), DATA.shape, CPU, PLAIN, learns=False)
        return [Demand("num_envs", 50, 50, trial), Demand("judge_batch", 300, 600, trial, each=2)]

    def crash() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(ConfigurationError, match="judge_batch=300 does not fit: about 50 fit"):
        memory.explained(crash, demands, CPU)
    # That one would have fitted: it is something else that takes the memory.
    with pytest.raises(ConfigurationError, match=r"cuda:0 ran out of memory .*; use a smaller num_envs, or free what"):
        memory.explained(crash, demands, CPU, "num_envs")
    assert memory.explained(lambda: 3, demands, CPU) == 3


def test_the_device_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, free=0)
    demand = Demand("num_envs", 5, 5, lambda count: None)
    monkeypatch.setattr(memory, "_measure", lambda *_: (2, 3 * 2**30))
    for device, name in (("cuda", "cuda:2"), ("cuda:1", "cuda:1")):
        with pytest.raises(ConfigurationError, match=f"about 2 fit into the 3.0 GiB that are free on {name}; use"):
            memory.check(lambda: [demand], torch.device(device))
