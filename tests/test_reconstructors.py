"""The reconstruction networks, the encoder that is kept of them, its statistics, and its file."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import pictures, reconstructor, same
from torch import Tensor, nn

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.files import write_safetensors
from maskaug.envs.judges import load_encoder, load_judge, make_judge, resolve_judge, save_encoder, save_judge
from maskaug.envs.networks import to_float
from maskaug.envs.reconstructors import ContextEncoder, FrozenEncoder, PaperEncoder, SmallContextEncoder
from maskaug.envs.statistics import reestimate_statistics

NAMES = ("small", "context_encoder")


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def close(a: Tensor, b: Tensor) -> None:
    # Not to the bit: which kernel runs depends on gradients and on where in memory the images lie.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def network(name: str, channels: int = 1, seed: int = 0) -> Any:
    settings = {"width": 8} if name == "small" else {}
    return make_judge(name, channels, None, seed, **settings)


# ---- networks --------------------------------------------------------------------------------------------------------


def test_the_papers_network_at_the_papers_size() -> None:
    model = network("context_encoder").eval()
    assert isinstance(model, ContextEncoder)
    assert isinstance(model.down, PaperEncoder)
    assert round(parameters(model) / 1e6, 2) == 1.49
    encoder = model.encoder()
    assert round(parameters(encoder) / 1e6, 2) == 0.66
    images = random_images(1, 1, 288, 288)
    with torch.no_grad():
        assert model(images).shape == images.shape
        # 288 / 32 = 9: the grid of the agent.
        assert encoder(images).shape == (1, 128, 9, 9)
    assert encoder.out_channels == model.out_channels == 128


@pytest.mark.parametrize(("name", "size"), [("small", 40), ("small", 16), ("context_encoder", 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_out_as_they_went_in(name: str, size: int, channels: int) -> None:
    model = network(name, channels).eval()
    images = random_images(2, channels, size, size + model.multiple)
    with torch.no_grad():
        answer, maps = model(images), model.encode(images)
    assert answer.shape == images.shape
    assert maps.shape == (2, model.out_channels, size // model.multiple, size // model.multiple + 1)
    # Near the middle of [0, 1] at first: inside the scale is [−1, 1].
    assert abs(answer.mean().item() - 0.5) < 0.25
    assert (maps.std((2, 3)) > 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns_and_everything_looks_around(name: str) -> None:
    model = network(name)
    images = random_images(3, 1, 64, 64).requires_grad_()
    model(images)[:, :, 20:30, 30:40].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert images.grad is not None
    # What is filled in can know of what is farther away than the hole is wide.
    assert images.grad[:, :, 60, 5].abs().min() > 0


def test_nothing_goes_around_the_part_that_is_kept() -> None:
    model = network("small").eval()
    with torch.no_grad():
        for parameter in model.down.parameters():
            parameter.zero_()
        answers = model(random_images(4, 1, 32, 32))
    assert torch.equal(answers[0], answers[3])


@pytest.mark.parametrize("name", NAMES)
def test_first_weights_come_from_the_seed(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = network(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(dict(one), dict(network(name, seed=3).state_dict()))
    assert not same(dict(one), dict(network(name, seed=4).state_dict()))


@pytest.mark.parametrize("name", NAMES)
def test_a_network_learns_to_fill_in(name: str) -> None:
    model = network(name).train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    side = 2 * model.multiple
    images = random_images(4, 1, 1, 1) * torch.ones(4, 1, side, side)
    hidden = images.clone()
    hidden[:, :, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 0
    losses = []
    for _ in range(20):
        loss = (model(hidden) - images).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# ---- the encoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_encoder_never_changes(name: str) -> None:
    model = network(name).train()
    model(random_images(4, 1, 64, 64))
    encoder = model.encoder()
    images = random_images(4, 1, 64, 64, seed=1)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(m.running_mean is not None and m.running_mean.abs().sum() > 0 for m in norms)
    before, maps = copy.deepcopy(dict(encoder.state_dict())), encoder(images)
    close(maps, model.eval().encode(images))

    head = nn.Sequential(encoder, nn.Flatten(), nn.LazyLinear(2)).train()
    head(images)
    assert not any(m.training for m in encoder.modules())
    optimiser = torch.optim.SGD(head.parameters(), 1.0)
    for _ in range(3):
        head.train()
        head(images).square().sum().backward()
        optimiser.step()
    assert same(before, dict(encoder.state_dict()))
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    close(encoder(images), maps)

    # A copy, in both directions.
    model.train()
    model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    close(encoder(images), maps)
    assert all(p.requires_grad for p in model.parameters())
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):  # noqa: S301
        close(twin.train()(images), maps)


def test_an_encoder_that_is_used_in_a_classifier_stays_as_it_is_after_a_game() -> None:
    data = pictures(8)
    env = MaskVectorEnv(2, dataset=data, grid=4, objective="reconstruction", judge_batch=2, device="cpu")
    model = env.game.reward_model.model
    assert isinstance(model, SmallContextEncoder)
    encoder = model.encoder()
    before = copy.deepcopy(dict(encoder.state_dict()))
    env.reset(seed=0)
    env.step(np.ones((2, 16)))
    assert same(before, dict(encoder.state_dict()))
    moved = dict(model.encoder().state_dict())
    assert all(not torch.equal(before[name], moved[name]) for name in before)


class _Identity(nn.Module):
    """A norm of one channel over what comes in: its statistics can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=0.3)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.norm(images)
        return answer


def norm_of(encoder: FrozenEncoder) -> nn.BatchNorm2d:
    norm = encoder.stages.norm
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


@pytest.mark.parametrize(("n", "most", "batch", "batches"), [(24, 1024, 8, 3), (30, 20, 10, 2), (7, 1024, 64, 1)])
def test_statistics_are_the_plain_mean_over_batches(n: int, most: int, batch: int, batches: int) -> None:
    images = pictures(n, seed=3).images
    encoder = FrozenEncoder(_Identity(), 1)
    norm = norm_of(encoder)
    assert reestimate_statistics(encoder, images, most=most, batch=batch) is encoder
    # Each batch goes evenly through all images.
    used = np.linspace(0, n - 1, min(n, most)).astype(int)
    parts = [2 * (images[used[first::batches]] / 255.0) - 1 for first in range(batches)]
    assert len({len(part) for part in parts}) == 1
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.item() == pytest.approx(np.mean([p.mean() for p in parts]), abs=1e-5)
    assert norm.running_var.item() == pytest.approx(np.mean([p.var(ddof=1) for p in parts]), rel=1e-4)
    assert norm.num_batches_tracked == batches
    assert norm.momentum == 0.3
    assert not any(m.training for m in encoder.modules())


def test_images_that_stand_class_by_class_do_not_narrow_the_statistics() -> None:
    images = np.repeat(np.array([20, 220], np.uint8), 16)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    encoder = reestimate_statistics(FrozenEncoder(_Identity(), 1), images, batch=8)
    variance = norm_of(encoder).running_var
    assert variance is not None
    # Within a batch of neighbours it would be 0.
    assert variance.item() == pytest.approx((2 * (images / 255)).var(ddof=1), rel=0.02)


def test_all_images_weigh_the_same() -> None:
    sizes: list[int] = []

    class Counting(_Identity):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    for n, most, expected in ((25, 1024, [8, 8, 8]), (100, 20, [8, 8]), (5, 3, [3])):
        sizes.clear()
        reestimate_statistics(FrozenEncoder(Counting(), 1), pictures(n).images, most=most, batch=8)
        assert sizes == expected


@pytest.mark.parametrize("name", NAMES)
def test_reestimated_statistics_are_deterministic_and_forget_what_was_before(name: str) -> None:
    data = pictures(12, size=64)
    one, other = network(name), network(name)
    other.train()
    other(random_images(4, 1, 64, 64) * 3)
    encoders = [reestimate_statistics(model.encoder(), data.images, batch=4) for model in (one, one, other)]
    for encoder in encoders[1:]:
        assert same(dict(encoders[0].state_dict()), dict(encoder.state_dict()))
    images = to_float(torch.from_numpy(data.images))
    assert not torch.equal(encoders[0](images), one.encoder()(images))
    # Weights and the network that the encoder came from stay.
    assert all(torch.equal(a, b) for a, b in zip(encoders[0].parameters(), one.encoder().parameters(), strict=True))
    assert all(float(m.num_batches_tracked or 0) == 0 for m in one.modules() if isinstance(m, nn.BatchNorm2d))


def test_no_images_have_no_statistics() -> None:
    encoder = network("small").encoder()
    before = copy.deepcopy(dict(encoder.state_dict()))
    for most, n in ((1024, 0), (0, 4)):
        with pytest.raises(ConfigurationError, match="give at least one"):
            reestimate_statistics(encoder, pictures(4).images[:n], most=most)
    assert same(before, dict(encoder.state_dict()))


# ---- files and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    path = tmp_path / "judge.safetensors"
    model = network(name, 3).train()
    model(random_images(2, 3, 64, 64))
    model.eval()
    save_judge(path, model, data="pictures")
    loaded, about = load_judge(path)
    assert type(loaded) is type(model)
    assert same(dict(model.state_dict()), dict(loaded.state_dict()))
    recipe = {"kind": "reconstructor", "judge": name, "in_channels": 3, "data": "pictures"}
    assert {key: about[key] for key in recipe} == recipe
    encoder = load_encoder(path)
    images = random_images(2, 3, 64, 64, seed=2)
    assert isinstance(model, SmallContextEncoder | ContextEncoder)
    close(encoder(images), model.encode(images))
    assert same(dict(encoder.state_dict()), dict(model.encoder().state_dict()))
    assert not any(m.training for m in encoder.train().modules())


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_is_saved_with_the_statistics_of_clean_images(tmp_path: Path, name: str) -> None:
    path, data = tmp_path / "encoder.safetensors", pictures(8, size=64)
    model = network(name).train()
    model(random_images(2, 1, 64, 64))
    before = copy.deepcopy(dict(model.state_dict()))
    save_encoder(path, model, data.images)
    assert same(before, dict(model.state_dict()))
    expected = reestimate_statistics(model.encoder(), data.images)
    assert same(dict(expected.state_dict()), dict(load_encoder(path).state_dict()))
    assert not same(dict(model.encoder().state_dict()), dict(expected.state_dict()))


def test_a_game_of_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    data, path = pictures(8), tmp_path / "judge.safetensors"
    model = reconstructor(data)
    save_judge(path, model)
    rewards = []
    for reward_model in (model, path, str(path)):
        env = MaskVectorEnv(
            2, dataset=data, grid=4, objective="reconstruction", joint=False, reward_model=reward_model, device="cpu"
        )
        env.reset(seed=0)
        rewards.append(env.step(np.ones((2, 16)))[1])
    assert same(rewards[0], rewards[1])
    assert same(rewards[0], rewards[2])


def test_an_encoder_comes_from_a_reconstructors_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(JudgeError, match=f"{path} cannot be read"):
        load_encoder(path)
    save_judge(path, make_judge("small", 1, 2, 0))
    with pytest.raises(
        JudgeError, match=f"{path} holds a classifier; give the .* of a run with objective='reconstruction'"
    ):
        load_encoder(path)


def test_a_file_of_the_other_kind_says_so(tmp_path: Path) -> None:
    classifier, rebuilder = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_judge(classifier, make_judge("small", 1, 2, 0))
    # Whatever else is written beside it.
    save_judge(rebuilder, network("small"), classes=["a", "b"])
    data = pictures(4)
    for objective, wrong, words in (
        ("reconstruction", classifier, "holds a classifier, and this objective needs a reconstructor"),
        ("adversarial", rebuilder, "holds a reconstructor, and this objective needs a classifier"),
        ("sensitivity", rebuilder, "holds a reconstructor, and this objective needs a classifier"),
    ):
        for joint in (False, True):
            with pytest.raises(ConfigurationError, match=f"{wrong} {words}"):
                MaskEnv(dataset=data, grid=4, objective=objective, joint=joint, reward_model=wrong)
    assert isinstance(resolve_judge(rebuilder, (1, 40, 40), None, 0, joint=False), SmallContextEncoder)
    with pytest.raises(ConfigurationError, match="judges 1 channels, but the data has 3 channels"):
        resolve_judge(rebuilder, (3, 40, 40), None, 0, joint=False)


@pytest.mark.parametrize("changes", [{"judge": "large"}, {"kind": "classifier"}, {"width": 16}, {"in_channels": None}])
def test_a_wrong_recipe_is_an_error_that_names_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "judge.safetensors"
    model = network("small")
    about = {"kind": "reconstructor", "judge": "small", **model.recipe, **changes}
    header = {"maskaug_judge": json.dumps({k: v for k, v in about.items() if v is not None})}
    write_safetensors(path, model.state_dict(), header)
    with pytest.raises(JudgeError, match=f"{path} does not hold what its header says"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("name", "size", "multiple"),
    [
        ("small", 36, 8),
        ("small", 8, 8),
        ("context_encoder", 40, 32),
        ("context_encoder", 300, 32),
        ("context_encoder", 32, 32),
    ],
)
def test_sizes_that_do_not_fit_say_so(name: str, size: int, multiple: int) -> None:
    words = f"takes sizes that are multiples of {multiple} from {2 * multiple} on, not {size}×{size}; choose another"
    with pytest.raises(ConfigurationError, match=words):
        MaskEnv(dataset=pictures(2, size=size), grid=2, objective="reconstruction", reward_model=name)
    with pytest.raises(ConfigurationError, match=words):
        MaskEnv(dataset=pictures(2, size=size), grid=2, objective="reconstruction", reward_model=network(name))


@pytest.mark.parametrize(("name", "size"), [("small", 16), ("context_encoder", 64)])
def test_one_image_at_the_smallest_size_is_enough_to_learn_from(name: str, size: int) -> None:
    env = MaskEnv(
        dataset=pictures(2, size=size), grid=2, objective="reconstruction", reward_model=network(name), judge_batch=1,
        device="cpu",
    )  # fmt: skip
    env.reset(seed=0)
    env.step(np.array([1, 0, 0, 0]))
    assert env.game.reward_model.version == 1


class Returns(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer


def test_a_module_must_return_images_of_the_shape_that_it_is_given() -> None:
    for answer, got in ((torch.zeros(1, 1, 20, 40), r"\(1, 1, 20, 40\)"), (torch.zeros(1, 2), r"\(1, 2\)"), (0, "int")):
        with pytest.raises(ConfigurationError, match=rf"images of the shape .*\(1, 1, 40, 40\), but it returned {got}"):
            resolve_judge(Returns(answer), (1, 40, 40), None, 0, joint=False)
    with pytest.raises(ConfigurationError, match=r"fails on images of shape \(1, 3, 40, 40\)"):
        resolve_judge(network("small"), (3, 40, 40), None, 0, joint=False)
    model = network("small").train()
    before = copy.deepcopy(dict(model.state_dict()))
    assert resolve_judge(model, (1, 40, 40), None, 0, joint=True) is model
    assert model.training
    assert same(before, dict(model.state_dict()))


def test_names() -> None:
    for name, kind in (
        (None, SmallContextEncoder),
        ("small", SmallContextEncoder),
        ("context_encoder", ContextEncoder),
    ):
        assert isinstance(resolve_judge(name, (1, 64, 64), None, 0, joint=True), kind)
        with pytest.raises(ConfigurationError, match="joint=False freezes the judge"):
            resolve_judge(name, (1, 64, 64), None, 0, joint=False)
    with pytest.raises(ConfigurationError, match=r"'unet' is neither a known reconstructor \(small, context_encoder\)"):
        resolve_judge("unet", (1, 64, 64), None, 0, joint=True)
    with pytest.raises(ConfigurationError, match=r"'context_encoder' is neither a known classifier"):
        resolve_judge("context_encoder", (1, 64, 64), 2, 0, joint=True)
