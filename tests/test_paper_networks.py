"""DenseNet-169 and TernausNet-11: sizes, weights from local files, and that nothing in those is executed."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from env_helpers import same
from safetensors.torch import save_file
from torch import Tensor

from maskaug.agents.ternausnet import DECODER, LEVELS, TernausNet11
from maskaug.envs.densenet import DenseNet169
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights
from maskaug.envs.weights import read_weights, to_channels


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def ternausnet(seed: int = 0, **more: Any) -> TernausNet11:
    with seeded_weights(seed):
        return TernausNet11(**more)


# ---- TernausNet-11 ---------------------------------------------------------------------------------------------------

#: torchvision's VGG11: where its convolutions stand, and their channels.
VGG = dict(zip((0, 3, 6, 8, 11, 13, 16, 18), [c for level in LEVELS for c in level], strict=True))


def vgg11(prefix: str = "features") -> dict[str, Tensor]:
    shapes, last = dict[str, tuple[int, ...]](), 3
    for place, channels in VGG.items():
        shapes |= {f"{prefix}.{place}.weight": (channels, last, 3, 3), f"{prefix}.{place}.bias": (channels,)}
        last = channels
    return filled(shapes)


def test_ternausnet_has_the_papers_size_and_shapes() -> None:
    network = ternausnet()
    # 22.93 M parameters, of which VGG11's convolutions are 9.22 M.
    assert sum(p.numel() for p in network.parameters()) == 22_927_393
    assert sum(p.numel() for p in network.encoder.parameters()) == 9_220_480
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 64, 96)
    assert ternausnet(in_channels=1, grid=8)(torch.rand(1, 1, 64, 64)).shape == (1, 8, 8)
    assert len(DECODER) == len(LEVELS) == 5


def test_a_grid_has_the_means_of_the_pixels_scores() -> None:
    images = torch.rand(1, 3, 64, 64)
    pixels, cells = ternausnet()(images), ternausnet(grid=4)(images)
    torch.testing.assert_close(cells, pixels.reshape(1, 4, 16, 4, 16).mean((2, 4)))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_vgg11s_weights_go_into_the_encoder_alone(tmp_path: Path, ending: str) -> None:
    weights, file = vgg11(), tmp_path / f"vgg11.{ending}"
    extra = {**weights, "classifier.0.weight": torch.zeros(4, 4)}
    save_file(extra, file) if ending == "safetensors" else torch.save(extra, file)
    network, before = ternausnet(), ternausnet().state_dict()
    network.load_vgg11(file)
    after = network.state_dict()
    assert {n for n in after if not same(after[n], before[n])} == {n for n in after if n.startswith("encoder.")}
    got = [p for name, p in network.encoder.named_parameters()]
    assert same(got, list(weights.values()))
    grey = ternausnet(in_channels=1)
    grey.load_vgg11(file)
    one = torch.rand(1, 1, 32, 32)
    first, colours = grey.encoder[0], network.encoder[0]
    torch.testing.assert_close(first(one), colours(one.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-6)


def test_whole_weights_by_the_authors_names_and_by_ours(tmp_path: Path) -> None:
    network = ternausnet(seed=1)
    save_file(dict(network.state_dict()), tmp_path / "own.safetensors")
    other = ternausnet(seed=2)
    other.load_whole(tmp_path / "own.safetensors")
    assert same(dict(other.state_dict()), dict(network.state_dict()))
    # Theirs has the encoder's convolutions under two names each, and may have been saved by DataParallel.
    own = dict(network.state_dict())
    theirs = {}
    places = [f"encoder.{i}.{2 * j}" for i, level in enumerate(LEVELS) for j in range(len(level))]
    for place, mine in zip(VGG, places, strict=True):
        for kind in ("weight", "bias"):
            theirs[f"module.encoder.{place}.{kind}"] = theirs[f"module.conv{place}.{kind}"] = own[f"{mine}.{kind}"]
    for kind in ("weight", "bias"):
        for i, block in enumerate(("center", "dec5", "dec4", "dec3", "dec2")):
            theirs[f"module.{block}.block.0.conv.{kind}"] = own[f"decoder.{i}.0.{kind}"]
            theirs[f"module.{block}.block.1.{kind}"] = own[f"decoder.{i}.2.{kind}"]
        theirs[f"module.dec1.conv.{kind}"], theirs[f"module.final.{kind}"] = own[f"last.{kind}"], own[f"head.{kind}"]
    torch.save({"state_dict": theirs}, tmp_path / "carvana.pt")
    another = ternausnet(seed=3)
    another.load_whole(tmp_path / "carvana.pt")
    assert same(dict(another.state_dict()), own)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    weights = vgg11()
    network, before = ternausnet(), ternausnet().state_dict()
    save_file({n: v for n, v in weights.items() if n != "features.8.bias"}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigurationError, match=r"encoder\.2\.2\.bias is missing"):
        network.load_vgg11(tmp_path / "a.safetensors")
    save_file({**weights, "features.3.weight": torch.zeros(128, 64, 5, 5)}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigurationError, match=r"has shape \(128, 64, 5, 5\), not \(128, 64, 3, 3\)"):
        network.load_vgg11(tmp_path / "b.safetensors")
    assert same(dict(network.state_dict()), dict(before))


# ---- DenseNet-169 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def densenet() -> DenseNet169:
    with seeded_weights(0):
        return DenseNet169(3, 5).eval()


def torchvisions(network: DenseNet169) -> dict[str, Tensor]:
    """The same weights by torchvision's names, with 1000 classes."""
    own = {n: v for n, v in network.net.state_dict().items() if not n.startswith("class_layers")}
    named = {re.sub(r"\.layers\.(norm|conv)(\d)", r".\1\2", name): value for name, value in own.items()}
    return {**named, "classifier.weight": torch.zeros(1000, 1664), "classifier.bias": torch.zeros(1000)}


def test_densenet_has_its_size(densenet: DenseNet169) -> None:
    # 14 149 480 with 1000 classes, as it is published.
    assert sum(p.numel() for p in densenet.parameters()) == 12_484_480 + 5 * 1665
    images = torch.rand(2, 3, 64, 64)
    logits = densenet(images)
    assert logits.shape == (2, 5)
    assert densenet.maps(images).shape == (2, 1664, 2, 2)
    torch.testing.assert_close(densenet.net.get_submodule("class_layers.out")(densenet.features(images)), logits)


def test_imagenet_weights_of_any_age_and_for_any_number_of_channels(densenet: DenseNet169, tmp_path: Path) -> None:
    weights = torchvisions(densenet)
    # The files that are downloaded today have a point within the layers' names.
    old = {re.sub(r"(denselayer\d+\.)(norm|conv)(\d)", r"\1\2.\3", name): value for name, value in weights.items()}
    assert old.keys() != weights.keys()
    one = torch.rand(1, 1, 64, 64)
    expected = densenet.features(one.expand(-1, 3, -1, -1))
    for found, channels in ((weights, 3), (old, 1), (weights, 4)):
        save_file({n: v.contiguous() for n, v in found.items()}, tmp_path / "densenet169.safetensors")
        with seeded_weights(9):
            network = DenseNet169(channels, 2).eval()
        last = {n: v.clone() for n, v in network.net.get_submodule("class_layers.out").state_dict().items()}
        network.load_imagenet(tmp_path / "densenet169.safetensors")
        torch.testing.assert_close(network.features(one.expand(-1, channels, -1, -1)), expected, rtol=1e-3, atol=1e-5)
        assert same(dict(network.net.get_submodule("class_layers.out").state_dict()), last)


# ---- files -----------------------------------------------------------------------------------------------------------


class Evil:
    """What a pickle would execute."""

    def __reduce__(self) -> Any:
        return (open, ("/tmp/maskaug-evil", "w"))


@pytest.mark.parametrize("what", ["evil", "text", "list", "nothing", "network", "missing"])
def test_what_is_no_file_of_weights_is_refused_and_never_executed(tmp_path: Path, what: str) -> None:
    file = tmp_path / "weights.pth"
    if what == "evil":
        torch.save({"a": Evil()}, file)
    elif what == "text":
        file.write_text("not weights")
    elif what == "list":
        torch.save([torch.zeros(2)], file)
    elif what == "nothing":
        torch.save({}, file)
    elif what == "network":
        file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigurationError, match=r"weights\.pth"):
        read_weights(file)
    assert not Path("/tmp/maskaug-evil").exists()


def test_channels_share_the_sum_of_the_colours() -> None:
    kernel = torch.rand(4, 3, 3, 3)
    assert to_channels(kernel, 3) is kernel
    for channels in (1, 2, 5):
        fitted = to_channels(kernel, channels)
        assert fitted.shape == (4, channels, 3, 3)
        torch.testing.assert_close(fitted.sum(1), kernel.sum(1))
