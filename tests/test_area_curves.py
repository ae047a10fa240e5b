"""`maskaug bench area`: what is measured, what is not done again, that every option counts, and the figure."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskaug.agents.apga import APGA
from maskaug.benchmarks import area_curves
from maskaug.benchmarks.area_curves import (
    ARMS,
    MEASURES,
    AreaSettings,
    area,
    area_picture,
    area_table,
    judge_of,
    look,
    one_arm,
    summary_of,
    titles,
)
from maskaug.benchmarks.charts import Curves, Panel, line_chart
from maskaug.benchmarks.training import dataset_of
from maskaug.cli import main
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError

DATA: dict[str, Any] = {"n": 40, "image_size": 64}
TINY = AreaSettings(env=DATA, updates=2, num_envs=2, judge_updates=2, learning_rate=1e-3, held_out=4)


@dataclasses.dataclass(frozen=True)
class Light(AreaSettings):
    """The same arms with a small network, where the network is not what is tested."""

    def agent(self, arm: str) -> dict[str, Any]:
        return {**super().agent(arm), "network": "grid"}


LIGHT = Light(env={"n": 40, "image_size": 40}, updates=2, num_envs=2, judge_updates=2, learning_rate=1e-2, held_out=4)


def found(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "curves.json").read_text())
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("area") / "run"
    area(TINY, (7,), out, "cpu", say=lambda _: None)
    return out


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_every_arm_has_every_measure_before_and_after_each_update(run: Path) -> None:
    row = found(run)["seeds"]["7"]
    assert set(row) == set(ARMS)
    for arm in ARMS:
        assert set(row[arm]) == set(MEASURES)
        for values in row[arm].values():
            assert len(values) == TINY.updates + 1
            assert all(0 <= v <= 1 and v == round(v, 4) for v in values)
    # The threshold starts by parting the pixels, ours with the probability of the target.
    assert row["published"]["area"][0] == pytest.approx(0.5, abs=0.1)
    assert row["ours"]["drawn"][0] == pytest.approx(0.25, abs=0.05)
    # One start, two rates.
    start, slow, fast = (row[arm]["drawn"] for arm in ("published", "published", "published_rate"))
    assert fast[0] == start[0]
    assert abs(fast[-1] - fast[0]) > abs(slow[-1] - slow[0])
    with Image.open(run / "area.png") as picture:
        assert picture.size == (1060, 454)


def test_the_arms_differ_in_what_they_say_they_do() -> None:
    slow, fast, ours = (TINY.agent(arm) for arm in ARMS)
    assert {k for k in fast if fast[k] != slow[k]} == {"learning_rate"}
    assert (slow["learning_rate"], fast["learning_rate"], ours["learning_rate"]) == (1e-5, 1e-3, 1e-3)
    paper = {"loss": "published", "loss_scale": 100.0, "penalty_none": 0.1, "penalty_all": 0.01, "baseline_decay": 0.5}
    assert paper.items() <= slow.items()
    assert (ours["loss"], ours["estimator"]) == ("reinforce", "bernoulli")
    assert all(agent["network"] == "ternausnet" for agent in (slow, fast, ours))
    assert all((agent["average"], agent["mirror"]) == (0.0, False) for agent in (slow, fast, ours))


class Says:
    """An agent with fixed scores."""

    def scores(self, images: Any) -> Any:
        result = np.full((len(images), 10, 20), -20.0, np.float32)
        result[1] = 20.0
        result[2, :5] = 1e-9  # of which the sigmoid is .5 sharp
        result[3, 0, :2] = 20.0  # 1 %: not nothing
        result[3, 0, 2] = 0.0
        return result


def test_the_measures_by_hand() -> None:
    seen = look(Says(), np.zeros((4, 1, 10, 20), np.uint8))  # type: ignore[arg-type]
    expected = {
        "area": (0 + 1 + 0.5 + 0.01) / 4, "nothing": 0.25, "everything": 0.25,
        "drawn": (0 + 1 + 0.25 + 0.0125) / 4, "drawn_nothing": 0.25, "drawn_everything": 0.25,
    }  # fmt: skip
    assert seen == pytest.approx(expected, abs=1e-6)


def test_the_threshold_is_the_action_that_the_published_loss_plays() -> None:
    judge, quality = judge_of(LIGHT, 3, "cpu")
    assert 0 <= quality["auroc"] <= 1
    keywords = {**LIGHT.keywords, "seed": 3, "reward_model": judge, "device": "cpu"}
    agent = APGA(MaskVectorEnv(2, **keywords), seed=3, device="cpu", **LIGHT.agent("published"))
    images = np.array(dataset_of(keywords, "test").images[:4])
    played = (agent.predict(images)[0] > 0).mean((1, 2))
    assert look(agent, images)["area"] == pytest.approx(played.mean())
    assert 0 < played.mean() < 1


def test_a_seed_gives_the_same_and_every_setting_counts() -> None:
    judge, _ = judge_of(LIGHT, 3, "cpu")

    def curve(arm: str = "ours", seed: int = 3, **changes: Any) -> area_curves.Curve:
        return one_arm(dataclasses.replace(LIGHT, **changes), arm, seed, judge, "cpu")

    first = curve()
    assert first == curve()
    assert first != curve(seed=4)
    assert first != curve(num_envs=3)
    assert first != curve(learning_rate=2e-2)
    assert first != curve(held_out=1)
    assert first != curve(env={**LIGHT.env, "area": 0.4})
    assert first != curve(env={**LIGHT.env, "area_price": 500.0})
    assert len(curve(updates=1)["area"]) == 2
    published = curve("published")
    assert published == curve("published", learning_rate=2e-2)
    assert curve("published_rate") != curve("published_rate", learning_rate=2e-2)
    weights = [next(judge_of(dataclasses.replace(LIGHT, judge_updates=n), 3, "cpu")[0].parameters()) for n in (2, 3)]
    assert not torch.equal(*weights)


def test_other_ids_are_played_on_pixels_too() -> None:
    busi = dataclasses.replace(LIGHT, env_id="MaskAug-BUSI-v0", env={"image_size": 40})
    with pytest.warns(UserWarning, match="no real data"):
        env = MaskVectorEnv(2, **{**busi.keywords, "joint": True})
    assert (env.game.rule.kind, env.game.objective) == ("pixel", "adversarial")
    assert env.game.rule.area == busi.target == 0.25
    assert dataclasses.replace(busi, env={"area": 0.4}).target == 0.4


# ---- not twice -------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_done_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "copy"
    out.mkdir()
    whole = found(run)
    part = {**whole, "seeds": {"7": {arm: whole["seeds"]["7"][arm] for arm in ("published", "ours")}}}
    (out / "curves.json").write_text(json.dumps(part))
    done: list[tuple[str, int]] = []
    really = area_curves.one_arm

    def noted(settings: AreaSettings, arm: str, seed: int, *more: Any) -> area_curves.Curve:
        done.append((arm, seed))
        return really(settings, arm, seed, *more)

    monkeypatch.setattr(area_curves, "one_arm", noted)
    said: list[str] = []
    area(TINY, (7,), out, "cpu", say=said.append)
    assert done == [("published_rate", 7)]
    assert found(out) == whole
    assert (out / "area.png").read_bytes() == (run / "area.png").read_bytes()
    area(TINY, (7,), out, "cpu", say=said.append)
    assert len(done) == 1
    assert any("seed 7: found" in line for line in said)


def test_a_killed_run_keeps_its_finished_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(settings: AreaSettings, arm: str, *more: Any) -> area_curves.Curve:
        if arm == "ours":
            raise KeyboardInterrupt
        return {name: [0.5, 0.5, 0.5] for name in MEASURES}

    monkeypatch.setattr(area_curves, "one_arm", dies)
    with pytest.raises(KeyboardInterrupt):
        area(LIGHT, (0,), tmp_path, "cpu", say=lambda _: None)
    assert set(found(tmp_path)["seeds"]["0"]) == {"published", "published_rate"}
    assert found(tmp_path)["summary"] == {}


def test_curves_of_other_settings_are_left_alone(run: Path) -> None:
    before = (run / "curves.json").read_bytes()
    for changed in ({"updates": 3}, {"learning_rate": 2e-3}, {"env": {**DATA, "area": 0.3}}):
        with pytest.raises(ConfigurationError, match=r"of other .*settings"):
            area(dataclasses.replace(TINY, **changed), (7,), run, "cpu", say=lambda _: None)
    assert (run / "curves.json").read_bytes() == before


# ---- what is said and drawn ------------------------------------------------------------------------------------------


def curves_of(*ends: float) -> dict[str, dict[str, area_curves.Curve]]:
    return {
        str(seed): {arm: {name: [0.5, end + 0.1 * i] for name in MEASURES} for i, arm in enumerate(ARMS)}
        for seed, end in enumerate(ends)
    }


def test_the_summary_and_the_table_are_of_the_last_update() -> None:
    summary = summary_of(curves_of(0.1, 0.3))
    assert summary["published.area.mean"] == pytest.approx(0.2)
    assert summary["ours.nothing.mean"] == pytest.approx(0.4)
    assert summary["ours.area.sd"] == pytest.approx(np.std([0.3, 0.5], ddof=1))
    assert summary_of(curves_of(0.1))["ours.area.sd"] == 0
    table = area_table(summary, 2)
    assert "2 seeds" in table
    assert "0.400 ± 0.141" in table.splitlines()[-1]
    assert titles(2.5e-4)["ours"] == "ours, rate 2.5e-4"


def near(picture: Any, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    """Whether a colour is within two pixels above or below (x, y)."""
    x, y = at
    return bool((np.abs(picture[y - 2 : y + 3, x].astype(int) - colour).max(1) < 40).any())


def test_lines_lie_where_their_values_are() -> None:
    blue, red = (0, 0, 255), (255, 0, 0)
    low_high = np.array([[0.25, 0.25, 0.25], [0.75, 0.75, 0.75]])
    panels = [Panel("t", "y", [Curves("a", blue, low_high), Curves("b", red, np.full((1, 3), 1.0))])] * 2
    picture = line_chart(panels, "x", "heading", ("target", 0.6))
    plain = line_chart(panels, "x", "heading", ("target", 0.9))
    rows = np.flatnonzero((picture != plain).any((1, 2)))
    # Panels are 530 wide with their axes 70 from the left; y runs from 1.03 down to −.03 in 300 pixels.
    top = 98
    y_of = {level: round(top + (1.03 - level) / 1.06 * 300) for level in (0.25, 0.5, 0.6, 0.75, 0.9, 1.0)}
    assert (rows.min(), rows.max()) == (pytest.approx(y_of[0.9], abs=2), pytest.approx(y_of[0.6], abs=2))
    assert picture.shape == (454, 1060, 3)
    assert (picture[0, 0] == 255).all()
    for x in (290, 820):
        assert near(picture, (x, y_of[0.5]), blue)
        assert near(picture, (x, y_of[1.0]), red)
        for level in (0.25, 0.75):
            # Thin and pale: bluish, and nowhere as blue as the mean.
            thin = picture[y_of[level] - 2 : y_of[level] + 3, x].astype(int)
            assert 40 < (thin[:, 2] - thin[:, 0]).max() < 160


def test_the_figure_shows_its_target_and_its_seeds() -> None:
    one, other = (
        area_picture(dataclasses.replace(TINY, env={"area": share}), curves_of(0.1, 0.3), "x") for share in (0.25, 0.7)
    )
    assert one.shape == other.shape
    assert (one != other).any()
    assert (one != area_picture(TINY, curves_of(0.1), "x")).any()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_every_flag_reaches_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(area_curves, "area", lambda *arguments: calls.append(arguments))
    words = "--seeds 3 4 --updates 5 --num-envs 6 --judge-updates 7 --learning-rate 0.5 --held-out 8 --device cpu"
    more = ["--out", str(tmp_path), "--env-id", "MaskAug-MURA-v0", "--env.area", "0.3"]
    assert main(["bench", "area", *words.split(), *more]) == 0
    assert main(["bench", "area"]) == 0
    assert calls[0] == (AreaSettings("MaskAug-MURA-v0", {"area": 0.3}, 5, 6, 7, 0.5, 8), (3, 4), tmp_path, "cpu")
    assert calls[1] == (AreaSettings(), (0, 1, 2, 3, 4), None, "auto")


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--updates", "0"], "updates=0"),
        (["--held-out", "0"], "held_out=0"),
        (["--env.action", "grid"], "action cannot be given"),
        (["--env.joint", "True", "--env.repeat", "2"], "joint, repeat cannot be given"),
        (["--env.area", "1.5"], "area=1.5"),
        (["--env.image-size", "40"], "multiples of 32"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--seeds", "1", "1"], "each once"),
        (["--device", "tpu-v9"], "tpu-v9"),
        (["--env-id", "CartPole-v1"], "CartPole-v1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    words: list[str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(area_curves, "judge_of", lambda *_: pytest.fail("a judge was trained"))
    assert main(["bench", "area", "--out", str(tmp_path / "new"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cause in line
    assert not (tmp_path / "new").exists()
