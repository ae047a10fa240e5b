"""Pictures for people: what must be visible in them is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from env_helpers import BrightnessJudge, pictures
from gymnasium.error import ResetNeeded
from PIL import Image

from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.rendering import (
    MASK,
    REGION,
    label,
    mask_row,
    outline,
    save_animation,
    save_picture,
    sheet,
    tint,
    to_rgb,
)


def has(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=-1).any())


def test_to_rgb_keeps_pixels_as_squares_and_colours_in_order() -> None:
    grey = np.array([[[0, 100], [200, 255]]], np.uint8)
    big = to_rgb(grey, 6)
    assert big.shape == (6, 6, 3)
    np.testing.assert_array_equal(big[:, :, 1], np.kron(grey[0], np.ones((3, 3))))
    colour = np.zeros((3, 4, 4), np.uint8)
    colour[0] = 250
    assert to_rgb(colour, 8)[0, 0].tolist() == [250, 0, 0]
    assert to_rgb(np.full((1, 64, 64), 7, np.uint8), 16).shape == (16, 16, 3)


def test_outline_and_tint_mark_what_they_should_and_change_no_argument() -> None:
    picture = np.full((40, 40, 3), 100, np.uint8)
    mask = np.zeros((10, 10), np.bool_)
    mask[2:5, 2:5] = True
    lined, tinted = outline(picture, mask, REGION), tint(picture, mask, MASK)
    assert (picture == 100).all()
    assert has(lined, REGION)
    assert lined[14, 14].tolist() == [100, 100, 100]
    assert tinted[14, 14].tolist() == [int(0.55 * 100 + 0.45 * c) for c in MASK]
    for drawn in (lined, tinted):
        assert (drawn[30:, 30:] == 100).all()
    np.testing.assert_array_equal(outline(picture, np.zeros((10, 10), np.bool_), REGION), picture)


def test_mask_row_shows_region_mask_and_what_the_mask_keeps() -> None:
    image = np.full((1, 16, 16), 200, np.uint8)
    region, mask = np.zeros((2, 16, 16), np.bool_)
    region[:4, :4] = True
    mask[8:, 8:] = True
    plain, known, chosen, aiding = mask_row(image, region, mask, 64)
    assert not has(plain, REGION)
    assert has(known, REGION)
    assert not has(known, MASK)
    assert has(chosen, REGION)
    assert has(chosen, MASK)
    assert aiding[48, 48].tolist() == [200] * 3
    assert aiding[10, 10].tolist() == [0] * 3
    np.testing.assert_array_equal(mask_row(image, None, mask, 64)[1], plain)
    np.testing.assert_array_equal(mask_row(image, np.zeros_like(region), mask, 64)[1], plain)


def test_label_writes_below() -> None:
    picture = np.full((20, 120, 3), 90, np.uint8)
    one, other = label(picture, "reward +1.00"), label(picture, "reward −2.00")
    assert one.shape == (42, 120, 3)
    np.testing.assert_array_equal(one[:20], picture)
    assert (one[20:] != other[20:]).any()


def test_sheet_lays_out_rows_under_titles() -> None:
    rows = [[np.full((10, 12, 3), 10 * (1 + i + 3 * j), np.uint8) for i in range(3)] for j in range(2)]
    picture = sheet(rows, ["a", "b", "c"])
    for row in rows:
        for part in row:
            assert (picture == part[0, 0]).all(axis=-1).sum() >= part.shape[0] * part.shape[1]
    headed = sheet(rows, ["a", "b", "c"], heading="results")
    assert headed.shape == (picture.shape[0] + 30, *picture.shape[1:])
    assert (headed[:30] > 128).any()


def test_pictures_are_saved_as_they_are(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    path = str(tmp_path / "a.png")
    save_picture(path, picture)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


@pytest.mark.parametrize("objective", ["adversarial", "preserving", "both"])
def test_every_view_that_was_judged_is_drawn(objective: str) -> None:
    data = dataclasses.replace(pictures(4), images=np.full((4, 1, 16, 16), 200, np.uint8), regions=None)
    env = MaskVectorEnv(
        2, dataset=data, grid=4, objective=objective, render_mode="rgb_array", joint=False, device="cpu",
        reward_model=BrightnessJudge(),
    )  # fmt: skip
    env.reset(seed=0)
    before = env.render()
    # The first slot selects the upper half, the second one nothing.
    env.step(np.stack([np.arange(16) < 8, np.zeros(16)]))
    frames = env.render()
    assert before is not None
    assert frames is not None
    assert before[0].shape == frames[0].shape
    side = 192
    # The middles of the upper and of the lower half of every panel after region and mask.
    middles = [(row, left + side // 2) for left in range(2 * side, frames[0].shape[1], side) for row in (40, 150)]
    brightness = [[int(frame[row, column, 0]) for row, column in middles] for frame in frames]
    hidden, kept = ([0, 200], [200, 200]), ([200, 0], [0, 0])
    expected = {"adversarial": hidden, "preserving": kept, "both": [hidden[i] + kept[i] for i in range(2)]}
    assert brightness == list(expected[objective])


def test_a_single_environment_renders_what_was_judged() -> None:
    data = pictures(4).subset([1])
    env = MaskEnv(dataset=data, grid=4, render_mode="rgb_array", joint=False, reward_model=BrightnessJudge())
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=0)
    before = env.render()
    assert before is not None
    assert before.dtype == np.uint8
    assert has(before, REGION)
    assert not has(before, MASK)
    frames = []
    for cells in (np.zeros(16), np.ones(16)):
        hidden, _, _, _, _ = env.step(cells)
        frame = env.render()
        assert frame is not None
        assert frame.shape == before.shape
        frames.append(frame)
        # What was handed out may be written into; the picture stays.
        hidden[:] = 77
        np.testing.assert_array_equal(env.render(), frame)
        env.reset()
    nothing, everything = frames
    assert has(everything, MASK)
    assert not has(nothing, MASK)
    side = before.shape[1] // 3
    assert everything[:side, 2 * side :].max() == 0
    assert nothing[:side, 2 * side :].max() > 0
    assert (nothing[side:] != everything[side:]).any()
    np.testing.assert_array_equal(env.render(), before)


def test_a_vector_environment_renders_a_frame_for_each_slot() -> None:
    env = MaskVectorEnv(3, dataset=pictures(8), grid=4, render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.stack([np.zeros(16), np.ones(16), np.eye(16)[3]]))
    frames = env.render()
    assert frames is not None
    assert [has(frame, MASK) for frame in frames] == [False, True, True]
    info["final_info"]["area"][:] = 9
    info["final_obs"][:] = 77
    again = env.render()
    assert again is not None
    np.testing.assert_array_equal(again, frames)
    env.reset()
    after = env.render()
    assert after is not None
    assert not any(has(frame, MASK) for frame in after)


def test_without_a_render_mode_there_is_no_picture_and_windows_are_refused() -> None:
    for env in (MaskEnv(dataset=pictures(), grid=4), MaskVectorEnv(2, dataset=pictures(), grid=4)):
        env.reset(seed=0)
        assert env.render() is None
    for make in (MaskEnv, MaskVectorEnv):
        with pytest.raises(ConfigurationError, match="use 'rgb_array'"):
            make(dataset=pictures(), grid=4, render_mode="human")


def frames_of(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    env = MaskEnv(dataset=pictures(4), reward_model=BrightnessJudge(), grid=4, render_mode="rgb_array", device="cpu")
    env.action_space.seed(0)
    shown = []
    for seed in range(count):
        env.reset(seed=seed)
        env.step(env.action_space.sample())
        shown.append(env.render())
    return [frame for frame in shown if frame is not None]


@pytest.mark.parametrize(("fps", "milliseconds"), [(2, 500), (10, 100), (50, 20), (0.01, 100_000)])
def test_an_animation_shows_its_frames_one_after_the_other_again_and_again(
    fps: float, milliseconds: int, tmp_path: Path
) -> None:
    frames = frames_of(6)
    before = [frame.copy() for frame in frames]
    save_animation(frames, tmp_path / "new" / "folder" / "masks.gif", fps)
    np.testing.assert_array_equal(before, frames)
    with Image.open(tmp_path / "new" / "folder" / "masks.gif") as gif:
        assert gif.n_frames == 6  # type: ignore[attr-defined]
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert gif.info["duration"] == milliseconds
            assert gif.info["loop"] == 0
            # 256 colours for all frames: near, and much nearer than any other frame.
            away = [np.abs(np.asarray(gif.convert("RGB")).astype(int) - other).mean() for other in frames]
            assert away[i] < 4
            assert np.argmin(away) == i
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).max() < 64


def test_an_animation_is_a_gif(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must end in \.gif; for other formats use RecordVideo"):
        save_animation([np.full((8, 8, 3), 100, np.uint8)], tmp_path / "masks.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 2, "no frames to write; make the environment with render_mode"),
        ([None], 2, "got NoneType"),
        ([(np.zeros((8, 8, 3), np.uint8),)], 2, r"got tuple; of a vector environment take render\(\)\[slot\]"),
        ([np.zeros((8, 8), np.uint8)], 2, r"got uint8 of shape \(8, 8\)"),
        ([np.zeros((8, 8, 3), np.float32)], 2, "got float32"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], 2, "all have one size"),
        ([np.zeros((8, 8, 3), np.uint8)], 0, "fps=0 must be"),
        ([np.zeros((8, 8, 3), np.uint8)], 0.001, "fps=0.001 must be a number from 0.01 to 50"),
        ([np.zeros((8, 8, 3), np.uint8)], 51, "fps=51 must be"),
        ([np.zeros((8, 8, 3), np.uint8)], True, "fps=True must be"),
    ],
)
def test_what_cannot_be_animated_is_said_and_no_file_is_left(
    frames: Any, fps: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        save_animation(frames, tmp_path / "masks.gif", fps)
    assert not list(tmp_path.iterdir())
