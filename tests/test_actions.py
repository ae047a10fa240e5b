"""What an action means, and that nothing which is not one gets through."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, pictures, same
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from maskaug.envs.actions import ActionRule
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, InvalidAction

KINDS = ("grid", "patch", "pixel", "box")
GRID = 4
RULES = {kind: ActionRule(kind, GRID, (16, 16), None, None, None) for kind in KINDS}


def test_spaces_and_defaults() -> None:
    grid, patch = RULES["grid"], RULES["patch"]
    assert grid.space == spaces.MultiBinary(16)
    assert (grid.area, grid.price, grid.cells) == (0.25, 1.0, 4)
    assert patch.space == spaces.Discrete(9)
    assert (patch.patch_cells, patch.area, patch.price, patch.cells) == (2, 0.25, 0.0, 4)
    assert RULES["pixel"].space == spaces.Box(-1, 1, (16, 16), np.float32)
    assert RULES["box"].space == spaces.Box(-1, 1, (4,), np.float32)
    for kind in ("pixel", "box"):
        assert (RULES[kind].area, RULES[kind].price, RULES[kind].cells, RULES[kind].shape) == (0.25, 1.0, 4, (16, 16))
    assert grid.shape == patch.shape == (4, 4)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"kind": "circle"}, "use one of"),
        ({"grid": 1}, "at least 2"),
        ({"grid": 4.0}, "integer"),
        ({"grid": 5}, "choose a grid that does"),
        ({"area": 0}, "above 0"),
        ({"area": 1.0}, "below 1"),
        ({"area": 0.001}, "at least one of the 4×4 cells"),
        ({"area": 0.99}, "not all of them"),
        ({"area": math.nan}, "above 0"),
        ({"area": "0.25"}, "above 0"),
        ({"area_price": -1}, "finite number ≥ 0"),
        ({"area_price": math.inf}, "finite number ≥ 0"),
        ({"area_price": "much"}, "finite number ≥ 0"),
        ({"patch_cells": 2}, "patch_cells goes with action='patch'; with action='grid' give area"),
        ({"kind": "patch", "area": 0.25}, "patch_cells alone, or use another action"),
        ({"kind": "patch", "area_price": 1.0}, "patch_cells alone, or use another action"),
        ({"kind": "pixel", "patch_cells": 2}, "with action='pixel' give area"),
        ({"kind": "box", "area": 1.5}, "below 1"),
        ({"kind": "patch", "patch_cells": 4}, "from 1 to grid − 1 = 3"),
        ({"kind": "patch", "patch_cells": 0}, "from 1 to grid − 1 = 3"),
        ({"kind": "patch", "patch_cells": 2.0}, "integer"),
    ],
)
def test_impossible_rules_say_what_is_possible(keywords: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"kind": "grid", "grid": 4, "area": None, "area_price": None, "patch_cells": None}
    with pytest.raises(ConfigurationError, match=words):
        ActionRule(image_size=(16, 16), **{**arguments, **keywords})


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", ">i4", "int64", "uint64", "float16", "float32", "float64"])
def test_any_numeric_type_is_cast(dtype: str) -> None:
    cells = np.zeros((2, 16), dtype)
    cells[0, [0, 5]] = 1
    got = RULES["grid"].to_cells(cells, 2)
    assert got.dtype == torch.bool
    assert got.nonzero().tolist() == [[0, 0, 0], [0, 1, 1]]
    corner = np.array([1, 0]).astype(dtype)
    assert RULES["patch"].to_cells(corner, 2)[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_a_pixel_is_selected_above_zero() -> None:
    action = np.zeros((1, 16, 16), np.float32)
    action[0, 2, 3], action[0, 2, 4], action[0, 5, 6] = 1e-30, -1e-30, 1
    assert RULES["pixel"].to_cells(action, 1).nonzero().tolist() == [[0, 2, 3], [0, 5, 6]]


@pytest.mark.parametrize(
    ("action", "rows", "columns"),
    [
        ([0, 0, 0, 0], (4, 12), (4, 12)),  # the middle half of both sides
        ([0, 0, 1, 1], (0, 16), (0, 16)),  # everything
        ([0, 0, -1, 1], (0, 0), (0, 0)),  # no height
        ([-1, 1, 0, 0], (0, 4), (12, 16)),  # half of it lies beyond the top and the right border
        ([0.5, -0.5, -0.5, -0.875], (10, 14), (4, 4)),  # one pixel wide, but its middle lies on a border of pixels
        ([0.5, -0.4375, -0.5, -0.875], (10, 14), (4, 5)),  # half a pixel further
    ],
)
def test_a_box_is_its_centre_and_its_size(action: Any, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    expected[0, slice(*rows), slice(*columns)] = True
    got = RULES["box"].to_cells(action, None)
    if action == [0.5, -0.5, -0.5, -0.875]:
        # Middles at −.5625 and −.4375, the box from −.5625 to −.4375: the first is in, the second is not.
        expected[0, slice(*rows), 3] = True
    assert torch.equal(got, expected)


def test_boxes_need_not_be_square_nor_images() -> None:
    rule = ActionRule("box", 4, (8, 16), None, None, None)
    assert rule.to_cells([[0, 0, 0, 0], [-1, -1, 1, 0]], 2).flatten(1).sum(1).tolist() == [4 * 8, 4 * 4]
    assert rule.space == spaces.Box(-1, 1, (4,), np.float32)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16])
def test_tensors_and_lists_are_taken(dtype: torch.dtype) -> None:
    one = torch.zeros(16).to(dtype)
    one[3] = True
    for action in (one, one.tolist()):
        assert RULES["grid"].to_cells(action, None).nonzero().tolist() == [[0, 0, 3]]
    assert RULES["patch"].to_cells(torch.ones((), dtype=dtype), None).sum() == 4
    with_gradient = torch.zeros(1, 16, requires_grad=True)
    assert not RULES["grid"].to_cells(with_gradient, 1).any()


class Explosive:
    """Whatever an object raises when numpy asks it for numbers is no business of the caller's."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    def __len__(self) -> int:
        raise KeyError("x")


NOT_NUMBERS: list[Any] = [
    None,
    "1111111111111111",
    b"0",
    ["0"] * 16,
    [[0] * 16, [0]],
    [None] * 16,
    {},
    {"action": 0},
    object(),
    Explosive(),
    [Explosive()] * 16,
    np.zeros(16, complex),
    np.zeros(16, "datetime64[s]"),
    np.zeros(16, [("a", int)]),
    np.array([0] * 16, object),
    torch.zeros(16, dtype=torch.complex64),
    torch.zeros(16).to_sparse(),
    torch.zeros(16, device="meta"),
    1 << 80,
    [1 << 80] * 16,
    lambda: 0,
    2 + 0j,
    np.timedelta64(1),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", NOT_NUMBERS, ids=lambda action: type(action).__name__)
def test_what_is_not_a_number_is_refused(kind: str, action: Any) -> None:
    for batch in (None, 1, 16):
        with pytest.raises(InvalidAction):
            RULES[kind].to_cells(action, batch)
    with pytest.raises(InvalidAction):
        RULES[kind].to_cells([action], 1)


@pytest.mark.parametrize(
    ("kind", "action", "words"),
    [
        ("grid", np.full((2, 16), 0.5), r"only 0 and 1, got .*0.5.* at position \(0, 0\)"),
        ("grid", np.zeros((2, 15)), r"must have shape \(2, 16\), got \(2, 15\)"),
        ("patch", [0, 9], r"from 0 to 8, got .*9.* at position \(1,\)"),
        ("patch", [0, 1.5], "whole number"),
        ("patch", ["0", "1"], r"array of numbers of shape \(2,\)"),
        ("pixel", np.full((2, 16, 16), 1.5), r"from −1 to 1, got .*1.5.* at position \(0, 0, 0\)"),
        ("pixel", np.zeros((2, 256)), r"must have shape \(2, 16, 16\), got \(2, 256\)"),
        ("box", [[0, 0, 0, 0], [0, math.nan, 0, 0]], r"from −1 to 1, got .*nan.* at position \(1, 1\)"),
        ("box", np.zeros((2, 2, 2)), r"must have shape \(2, 4\)"),
    ],
)
def test_the_message_names_the_cause_and_the_cure(kind: str, action: Any, words: str) -> None:
    with pytest.raises(InvalidAction, match=words):
        RULES[kind].to_cells(action, 2)


SHAPES: dict[str, tuple[int, ...]] = {"grid": (GRID**2,), "patch": (), "pixel": (16, 16), "box": (4,)}


def expected_cells(kind: str, action: np.ndarray[Any, Any], num_envs: int) -> list[list[int]] | None:
    """The cells that each action selects, or None where it is none; in plain Python, as another way to say it."""
    if action.shape != (num_envs, *SHAPES[kind]) or action.dtype.kind not in "biuf":
        return None
    chosen = []
    for row in action.reshape(num_envs, -1).tolist():
        if kind == "patch":
            if row[0] not in range((GRID - 1) ** 2):
                return None
            top, left = divmod(int(row[0]), GRID - 1)
            chosen.append(sorted((top + y) * GRID + left + x for y in (0, 1) for x in (0, 1)))
        elif any(value not in (0, 1) if kind == "grid" else not -1 <= value <= 1 for value in row):
            return None
        elif kind == "box":
            row_, column, height, width = (float(np.float32(value)) for value in row)
            middles = [(2 * i + 1) / 16 - 1 for i in range(16)]
            spans = [
                [i for i, m in enumerate(middles) if centre - (size + 1) / 2 <= m < centre + (size + 1) / 2]
                for centre, size in ((row_, height), (column, width))
            ]
            chosen.append([y * 16 + x for y in spans[0] for x in spans[1]])
        else:
            chosen.append([i for i, value in enumerate(row) if value > 0])
    return chosen


BATCH = 25  # numbers are drawn by numpy: hypothesis alone would take a minute for as many
NUMERIC = ["?", "b", "B", "h", "i", "i8", "u8", ">f4", "e", "f", "d", "g", "F", "D", "O", "U3", "S2", "m8[s]"]
ODD = [0, 1, 2, 8, 9, -1, -128, 0.5, 1 + 1e-7, 255, 2**31, -(2**62), math.inf, -math.inf, math.nan, -0.0, 1e-300]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=450, derandomize=True, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(NUMERIC),
    shape=st.sampled_from([None, None, None, (), (1,), (2,), (16,), (2, 15), (1, 16), (2, 16, 1), (0,), (0, 16)]),
    odd=st.sampled_from([0.0, 0.0, 0.02, 0.5]),
    as_tensor=st.booleans(),
)
def test_ten_thousand_numeric_actions(
    kind: str, seed: int, dtype: str, shape: tuple[int, ...] | None, odd: float, as_tensor: bool
) -> None:
    rng = np.random.default_rng(seed)
    right = (2, *SHAPES[kind])
    for _ in range(BATCH if kind != "pixel" else 2):
        values = rng.integers(0, 2 if kind == "grid" else 9, right if shape is None else shape).astype(object)
        if kind in ("pixel", "box"):
            values = np.asarray(values / 4 - 1, object)
        if values.ndim:
            wrong = np.flatnonzero(rng.random(values.size) < odd)
            values.flat[wrong] = [ODD[i] for i in rng.integers(0, len(ODD), len(wrong))]
        with np.errstate(all="ignore"):
            try:
                action = np.asarray(values).astype(dtype)
            except (TypeError, ValueError, OverflowError):
                action = np.asarray(values).astype("d")
        sent: Any = action
        if as_tensor and action.dtype.kind in "biufc" and action.dtype.isnative and action.dtype.char != "g":
            sent = torch.from_numpy(action)
        expected = expected_cells(kind, action, 2)
        if expected is None:
            with pytest.raises(InvalidAction):
                RULES[kind].to_cells(sent, 2)
        else:
            cells = RULES[kind].to_cells(sent, 2)
            assert cells.shape == (2, *RULES[kind].shape)
            assert [row.nonzero().flatten().tolist() for row in cells.flatten(1)] == expected


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.complex_numbers(), st.dates(), st.fractions(), st.decimals(),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=17),
        st.tuples(inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
        st.frozensets(st.integers(), max_size=2),
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(action=ANYTHING)
def test_any_object_is_an_action_or_is_refused(kind: str, action: Any) -> None:
    for batch in (None, 1):
        try:
            cells = RULES[kind].to_cells(action, batch)
        except InvalidAction:
            continue
        array = np.asarray(action) if batch else np.asarray(action)[None]
        expected = expected_cells(kind, array, 1)
        assert [row.nonzero().flatten().tolist() for row in cells.flatten(1)] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_a_refused_action_changes_nothing(kind: str, fill: str) -> None:
    data = pictures()
    keywords: dict[str, Any] = {"dataset": data, "action": kind, "grid": GRID, "fill": fill, "judge_batch": 3}
    single, vector = MaskEnv(**keywords, reward_model=BrightnessJudge()), MaskVectorEnv(2, **keywords)
    single.reset(seed=0)
    vector.reset(seed=0)
    vector.action_space.seed(0)
    vector.step(vector.action_space.sample())
    twin = MaskEnv(**keywords, reward_model=BrightnessJudge())
    twin.reset(seed=0)
    wrong = [*NOT_NUMBERS, -1, 99, math.nan, np.zeros(3), np.full(16, 2), np.full(16, math.nan)]
    for action in wrong:
        before = single.game.state(), vector.game.state()
        with pytest.raises(InvalidAction):
            single.step(action)
        with pytest.raises(InvalidAction):
            vector.step(action)
        assert same(before, (single.game.state(), vector.game.state()))
        # The episode goes on, as if nothing had been tried.
        valid = single.action_space.sample()
        assert same(single.step(valid), twin.step(valid))
        assert same(single.reset(), twin.reset())


def test_a_judges_own_error_is_not_the_actions_fault() -> None:
    class Broken(BrightnessJudge):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(self.seen) > 0:
                raise TypeError("inside the judge")
            return super().forward(images)

    env = MaskEnv(dataset=pictures(), grid=GRID, joint=False, reward_model=Broken())
    env.reset(seed=0)
    with pytest.raises(TypeError, match="inside the judge"):
        env.step(np.zeros(16))


def test_actions_pass_through_gymnasiums_wrappers() -> None:
    env = gym.make("MaskAug-Synthetic-v0", n=12)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="only 0 and 1"):
        env.unwrapped.step(np.full(64, 3))
    assert env.step(env.action_space.sample().astype(np.float32))[2] is True
