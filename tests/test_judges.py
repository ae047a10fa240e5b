"""Judges by name, by file, or brought along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from env_helpers import BrightnessJudge, pictures
from safetensors.torch import save_file
from torch import Tensor, nn

from maskaug.envs.environment import MaskEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.files import write_safetensors
from maskaug.envs.judges import load_encoder, load_judge, make_judge, resolve_judge, save_judge
from maskaug.envs.networks import ConvTrunk, SmallClassifier, to_float

SHAPE = (1, 36, 36)


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_small_judge_is_small_and_takes_a_batch_of_one_as_any_other() -> None:
    judge = make_judge("small", 1, 2, 0)
    assert 50_000 <= sum(p.numel() for p in judge.parameters()) <= 100_000
    assert any(isinstance(m, nn.GroupNorm) for m in judge.modules())
    images = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = judge(images)
        alone = torch.cat([judge(image[None]) for image in images])
        assert torch.allclose(together, alone, atol=1e-5)
        assert torch.equal(judge.train()(images), judge.eval()(images))
    assert together.std(0).min() > 0


@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 2, 36), (3, 5, 100), (2, 3, 128)])
def test_the_small_judge_takes_any_channels_classes_and_sizes(channels: int, classes: int, size: int) -> None:
    judge = SmallClassifier(channels, classes)
    images = torch.zeros(2, channels, size, size)
    assert judge(images).shape == (2, classes)
    assert judge.features(images).shape == (2, judge.head.in_features)
    assert ConvTrunk(channels, 8)(images).shape[:2] == (2, 32)


def test_first_weights_come_from_the_seed_and_from_nothing_else() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = make_judge("small", 1, 2, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal_weights(one, make_judge("small", 1, 2, 7))
    assert not equal_weights(one, make_judge("small", 1, 2, 8))


def test_to_float_is_the_scale_of_the_networks_and_copies() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert to_float(images).tolist() == pytest.approx([0, 0.2, 1])
    assert images.tolist() == [0, 51, 255]


@pytest.mark.parametrize("width", [8, 16])
def test_what_is_saved_is_loaded(tmp_path: Path, width: int) -> None:
    judge = make_judge("small", 3, 4, 1, width=width)
    save_judge(tmp_path / "judge.safetensors", judge, data="pictures", digest="abc")
    loaded, about = load_judge(tmp_path / "judge.safetensors")
    assert equal_weights(judge, loaded)
    assert (about["data"], about["digest"], about["in_channels"], about["classes"]) == ("pictures", "abc", 3, 4)


def test_only_judges_that_can_be_built_again_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pass the module itself as reward_model"):
        save_judge(tmp_path / "judge.safetensors", BrightnessJudge())
    with pytest.raises(ConfigurationError, match="classes is written from the network itself"):
        save_judge(tmp_path / "judge.safetensors", make_judge("small", 1, 2, 0), classes=["a", "b"])
    assert list(tmp_path.glob("*.safetensors")) == []


def recipe(**changes: Any) -> dict[str, str]:
    about = {"judge": "small", "in_channels": 1, "classes": 2, "width": 16, **changes}
    return {"maskaug_judge": json.dumps({k: v for k, v in about.items() if v is not None})}


def test_a_file_from_before_there_were_reconstructors_holds_a_classifier(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    judge = make_judge("small", 1, 2, 0)
    assert "kind" not in recipe()["maskaug_judge"]
    write_safetensors(path, judge.state_dict(), recipe())
    loaded, _ = load_judge(path)
    assert isinstance(loaded, SmallClassifier)
    assert equal_weights(judge, loaded)
    assert isinstance(resolve_judge(path, SHAPE, 2, 0, joint=False), SmallClassifier)
    with pytest.raises(ConfigurationError, match="holds a classifier, and this objective needs a reconstructor"):
        resolve_judge(path, SHAPE, None, 0, joint=False)
    with pytest.raises(JudgeError, match="holds a classifier; give"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "not the recipe of a MaskAug judge"),
        ({"maskaug_judge": "{"}, "not hold what its header says"),
        ({"maskaug_judge": "[]"}, "not hold what its header says"),
        (recipe(judge="large"), "not hold what its header says"),
        (recipe(classes=3), "not hold what its header says"),
        (recipe(in_channels="many"), "not hold what its header says"),
        (recipe(width=None), "not hold what its header says"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    path = tmp_path / "judge.safetensors"
    write_safetensors(path, make_judge("small", 1, 2, 0).state_dict(), metadata)
    with pytest.raises(JudgeError, match=f"{path} .*{words}"):
        load_judge(path)


def test_a_file_that_is_missing_or_no_safetensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(JudgeError, match=f"{path} cannot be read"):
        resolve_judge(path, SHAPE, 2, 0, joint=False)
    torch.save(make_judge("small", 1, 2, 0).state_dict(), path)
    with pytest.raises(JudgeError, match=f"{path} cannot be read"):
        load_judge(path)


def test_a_file_for_other_data_says_what_it_is_for(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    save_judge(path, make_judge("small", 1, 2, 0))
    assert isinstance(resolve_judge(str(path), SHAPE, 2, 0, joint=False), SmallClassifier)
    with pytest.raises(ConfigurationError, match="1 channels and 2 classes, but the data has 3 channels"):
        resolve_judge(path, (3, 36, 36), 2, 0, joint=False)
    with pytest.raises(ConfigurationError, match="but the data has 1 channels and 3"):
        resolve_judge(path, SHAPE, 3, 0, joint=True)


def test_a_name_stays_a_name_beside_a_folder_that_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert isinstance(resolve_judge("small", SHAPE, 2, 0, joint=True), SmallClassifier)


def test_a_frozen_judge_needs_weights_and_an_unknown_one_lists_the_known() -> None:
    for name in (None, "small"):
        with pytest.raises(ConfigurationError, match="reward_model=FILE from `maskaug pretrain`"):
            resolve_judge(name, SHAPE, 2, 0, joint=False)
    with pytest.raises(ConfigurationError, match="'resnet' is neither a known classifier \\(small, densenet169\\) nor"):
        resolve_judge("resnet", SHAPE, 2, 0, joint=True)


class Returns(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer


def test_a_module_must_return_logits_for_these_images() -> None:
    for answer, got in ((torch.zeros(1, 3), r"\(1, 3\)"), (torch.zeros(2), r"\(2,\)"), ([0, 0], "list")):
        with pytest.raises(ConfigurationError, match=rf"logits \(N, 2\), but it returned {got}"):
            resolve_judge(Returns(answer), SHAPE, 2, 0, joint=False)
    with pytest.raises(ConfigurationError, match=r"fails on images of shape \(1, 3, 36, 36\)"):
        resolve_judge(make_judge("small", 1, 2, 0), (3, 36, 36), 2, 0, joint=False)


def test_a_module_is_used_as_it_is() -> None:
    judge = make_judge("small", 1, 2, 0).train()
    assert resolve_judge(judge, SHAPE, 2, 0, joint=True) is judge
    assert judge.training


def test_weights_beside_a_header_of_another_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    save_file({"x": torch.zeros(1)}, path, recipe())
    with pytest.raises(JudgeError, match="not hold what its header says"):
        MaskEnv(dataset=pictures(), grid=4, joint=False, reward_model=path)
