"""What the tables of `maskaug bench apga` say of results that are made up: no more than their intervals do."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from augmentation_grid import HERE, QUICK, TOYS, sweep
from augmentation_made_up import make_up
from safetensors.numpy import load_file, save_file

from maskaug.benchmarks import augmentation_output as output
from maskaug.benchmarks import paired
from maskaug.benchmarks.augmentation import SWAPPED, Sweep, cells
from maskaug.benchmarks.augmentation_analysis import ITSELF, Block, blocks, results, title_of
from maskaug.benchmarks.augmentation_cells import CURVES
from maskaug.benchmarks.augmentation_comparisons import controls_table, over_tasks, table
from maskaug.benchmarks.augmentation_masks import CURVE_NAMES, masks_tables
from maskaug.benchmarks.augmentation_output import write_analysis
from maskaug.benchmarks.augmentation_presets import PUBLISHED
from maskaug.benchmarks.augmentation_tables import budget_tables, published_tables
from maskaug.benchmarks.clustered_bootstrap import Run, clustered_difference, clustered_metric
from maskaug.benchmarks.grid import Grid, run_cell
from maskaug.benchmarks.statistics import Interval, mean_of_iqms, probability_of_improvement, verdict
from maskaug.benchmarks.tables import Table, read_tables
from maskaug.benchmarks.tasks import PREDICTIONS, Task
from maskaug.envs.errors import ConfigurationError

SEEDS = tuple(range(4))
ARMS = ("none", "none_twice", "random", "cutout", "grad_cam", "apga", "oracle")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)


def done(root: Path, *sweeps: Sweep) -> Grid:
    grid = Grid(root, cells(sweeps, QUICK))
    assert set(grid.run(say=lambda _: None).values()) == {"done"}
    return grid


def blocks_of(grid: Grid) -> list[Block]:
    return list(blocks(results(grid.root, grid.cells.values(), grid.results())))


def rows_of(found: Table, *columns: str) -> dict[str, Any]:
    """First cell of a row → the cells of some columns (of one, that cell)."""
    places = [list(found.columns).index(name) for name in columns]
    return {str(row[0]): row[places[0]] if len(places) == 1 else [row[i] for i in places] for row in found.rows}


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_arms_are_compared_within_one_budget_share_and_setting(made_up: None, tmp_path: Path) -> None:
    grid = done(
        tmp_path,
        sweep("none", "random", "apga", shots=[6, None], hidden=[0.25, 0.6]),
        sweep("none", "random", hidden=[0.25, 0.6], joint=True),
    )
    found = {(b.shots, b.hidden, b.joint): b for b in blocks_of(grid)}
    assert set(found) == {(s, h, False) for s in (6, None) for h in (0.25, 0.6)} | {(6, h, True) for h in (0.25, 0.6)}
    for (shots, hidden, joint), block in found.items():
        assert list(block.runs) == (
            ["none", "random"] if joint else ["none", ITSELF, "random", "apga", f"apga{SWAPPED}"]
        )
        for arm, runs in block.runs.items():
            assert {(r.shots, r.joint) for r in runs.values()} == {(shots, joint)}
            assert arm in ("none", ITSELF) or {r.hidden for r in runs.values()} == {hidden}
    assert found[6, 0.25, True].runs["none"][0].folder.name == "joint-none-h25"
    assert found[6, 0.6, False].title == "toys, 6 labels a class, 60% hidden"
    assert found[None, 0.25, False].title == "toys, all labels, 25% hidden"
    assert found[6, 0.25, True].title == "toys, 6 labels a class, 25% hidden, joint"


def test_a_table_says_whose_share_is_not_exact(made_up: None, tmp_path: Path) -> None:
    grid = done(
        tmp_path, sweep("none", "random_erasing", "ppo", hidden=[0.3]), sweep("none", "cutout", "ppo", joint=True),
        sweep("none", "apga_published", "apga", joint=True, shots=[8]),
    )  # fmt: skip
    apart, along, free = (table(block).note for block in blocks_of(grid))
    assert ("Random erasing" in apart, "PPO chooses" in apart) == (True, False)
    assert ("Random erasing" in along, "PPO chooses" in along) == (False, True)
    # 30 % of 25 cells are no whole number of them.
    assert "Whole cells are hidden: 8 of 25, 32.0%" in apart
    assert "Whole cells are hidden: 15 of 25, 60.0%" in along
    # The published reward has no price of the area, and APGA's judge learns from the best of several tries.
    assert ("PPO" in free, "APGA, published loss, is free" in free, "best-rewarded of 4" in free) == (False, True, True)
    assert "best-rewarded" not in along


def test_a_table_says_which_labels_were_used_besides_the_few(made_up: None, tmp_path: Path) -> None:
    few, whole = (table(b).note for b in blocks_of(done(tmp_path, sweep("none", "random", shots=[6, None]))))
    assert "6 labels a class are what is trained on" in few
    assert "34 labelled images besides" in few
    assert "besides" not in whole


@pytest.mark.parametrize(
    ("seeds", "known", "warned"), [(2, False, True), (4, False, True), (5, True, True), (10, True, False)]
)
def test_few_seeds_have_no_interval_of_resampled_seeds(
    seeds: int, known: bool, warned: bool, made_up: None, tmp_path: Path
) -> None:
    tasks = [TOYS, dataclasses.replace(TOYS, name="toys-two")]
    found = blocks_of(done(tmp_path, sweep("none", "random", "cutout", tasks=tasks, seeds=range(seeds))))
    shown, across = table(found[0]), over_tasks(found)
    assert across is not None
    for name in ("IQM (95 %)", "P(better than random)"):
        assert (name in shown.columns) == known
    assert bool(rows_of(across, "mean of IQMs (95 %)")["Cutout"]) == known
    assert bool(rows_of(across, "P(better than random)")["Cutout"]) == known
    # Student's t knows how few they are.
    assert rows_of(shown, "− random (95 %)")["Cutout"] != ""
    assert [("too short below 10" in note) for note in (shown.note, across.note)] == [warned] * 2


def test_every_arm_has_an_interval_of_its_own(made_up: None, tmp_path: Path) -> None:
    one, several = (blocks_of(done(tmp_path / str(n), sweep("none", "random", seeds=range(n))))[0] for n in (1, 3))
    assert one.interval("none") is None
    assert "AUROC (95 %)" not in table(one).columns
    shown = rows_of(table(several), "AUROC", "AUROC (95 %)")["random cells"]
    runs = [
        tuple(r.predictions[k] for k in ("labels", "groups", "probabilities")) for r in several.runs["random"].values()
    ]
    interval = clustered_metric([Run(*run) for run in runs], shared=several.shared, draws=paired.DRAWS)
    assert shown == [interval.value, interval.text(signed=False)]
    assert interval.low < interval.value < interval.high
    accuracy = several.interval("random", "accuracy")
    assert accuracy is not None
    assert accuracy.value == pytest.approx(several.values("random", "accuracy").mean())


def test_learnt_masks_stand_beside_their_controls(made_up: None, tmp_path: Path) -> None:
    arms = ("none", "none_twice", "random", "centre", "input_gradient", "apga_published", "apga")
    (block,) = blocks_of(done(tmp_path / "some", sweep(*arms, seeds=range(5))))
    found = controls_table(block)
    assert found is not None
    rows = {(row[0], row[1]): row[2:] for row in found.rows}
    beside = ["none_twice", ITSELF, "centre", "input_gradient"]
    expected = {("apga_published", other) for other in (*beside, f"apga_published{SWAPPED}")}
    expected |= {("apga", other) for other in (*beside, f"apga{SWAPPED}", "apga_published")}
    assert set(rows) == {(title_of(arm), title_of(other)) for arm, other in expected}
    gain = block.difference("apga", "input_gradient")
    assert gain is not None
    seeds, told, chance, word = rows["APGA", "|input × gradient|"]
    assert (seeds, told, word) == (5, gain.text(), verdict(gain))
    values = [block.values(arm)[:, None] for arm in ("apga", "input_gradient")]
    assert chance == probability_of_improvement(*values, paired=True).text(2, signed=False)
    few = blocks_of(done(tmp_path / "few", sweep(*arms, seeds=range(3))))[0]
    assert {row[4] for row in (controls_table(few) or found).rows} == {""}
    assert controls_table(blocks_of(done(tmp_path / "none", sweep("none", "random", "cutout")))[0]) is None


def test_rows_with_other_numbers_of_seeds_say_so(made_up: None, tmp_path: Path) -> None:
    both = [
        sweep("none", "random", seeds=range(4), shots=[6, 8]), sweep("none", "cutout", seeds=range(3), shots=[6]),
    ]  # fmt: skip
    found = blocks_of(done(tmp_path, *both))
    uneven, even = (table(block).note for block in found)
    assert "Rows have 3 or 4 seeds" in uneven
    assert "Rows have" not in even
    (shots,) = budget_tables(found)
    assert "Rows have 3 or 4 seeds" in shots.note
    cells_of = {row[0]: row[1] for row in shots.rows}
    assert str(cells_of["Cutout"]).endswith(" (3)")
    assert str(cells_of["random cells"]).endswith(" (4)")


def test_arms_that_were_tested_on_different_images_are_no_table(made_up: None, tmp_path: Path) -> None:
    grid = done(tmp_path, sweep("none", "random", seeds=SEEDS))
    path = grid.root / "toys/k6/seed1/random-h60" / PREDICTIONS
    save_file({**load_file(path), "groups": np.arange(80) + 1}, path)
    (block,) = blocks_of(grid)
    with pytest.raises(
        ConfigurationError, match=r"seed 1, .*/seed1/none and .*/seed1/random-h60: the groups of the scored"
    ):
        table(block)


def test_the_validation_split_is_in_every_title_note_and_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_up(monkeypatch, "mura")
    tasks = [bones("forearm"), bones("wrist")]
    sweeps = [sweep("none", "random", "grad_cam", tasks=tasks, shots=[6, 8], seeds=[0, 1], swapped=False)]
    notes: dict[str, list[str]] = {}
    for split in ("val", "test"):
        grid = Grid(tmp_path / split / "runs", cells(sweeps, QUICK, split))
        grid.run(say=lambda _: None)
        monkeypatch.setattr(output, "_gallery", lambda *_: None)
        shown = write_analysis(grid, tmp_path / split)
        assert {"validation split" in t.title for t in shown} == {split == "val"}
        notes[split] = [t.note for t in shown]
        with (tmp_path / split / "results.csv").open(encoding="utf-8") as file:
            assert {row["split"] for row in csv.DictReader(file)} == {split}
    assert sum("chose nothing here" in note for note in notes["test"]) == 2
    assert not [note for note in notes["val"] if "chose nothing here" in note or "AUROC on held-out" in note]
    assert not [note for note in notes["test"] if "one half of the validation" in note]


def test_the_judge_that_maskers_asked_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_up(monkeypatch, strengths={ITSELF: 3.0})
    tasks = [TOYS, dataclasses.replace(TOYS, name="toys-two")]
    grid = done(
        tmp_path, sweep("none", "random", "grad_cam", tasks=tasks, seeds=SEEDS),
        sweep("none", "random", shots=[8], seeds=SEEDS), sweep("none", "apga", seeds=SEEDS, joint=True),
    )  # fmt: skip
    both = blocks_of(grid)
    asked = [b for b in both if ITSELF in b.runs]
    # Nobody asks it where all masks are drawn; and in the joint setting the judge is what every row is.
    assert [(b.task, b.shots, b.joint) for b in asked] == [("toys", 6, False), ("toys-two", 6, False)]
    shown = table(asked[0])
    assert [row[0] for row in shown.rows][:3] == ["no masks", "the judge itself", "random cells"]
    assert rows_of(shown, "against no masks", "against random")["the judge itself"] == ["better", "better"]
    values = [grid.results()[f"toys/k6/seed{seed}/judge"]["auroc"] for seed in SEEDS]
    assert rows_of(shown, "AUROC")["the judge itself"] == pytest.approx(np.mean(values))
    across = over_tasks(asked)
    assert across is not None
    assert rows_of(across, "against no masks")["the judge itself"] == "better"
    assert "for 3 updates (the others: 3)" in shown.note
    assert not [b for b in both if b not in asked and "judge itself" in table(b).note]
    longer = Grid(tmp_path / "longer", cells([sweep("none", "apga")], dataclasses.replace(QUICK, judge_updates=9)))
    longer.run(say=lambda _: None)
    assert "for 9 updates (the others: 3)" in table(*blocks_of(longer)).note


def test_without_second_views_there_is_a_table_all_the_same(made_up: None, tmp_path: Path) -> None:
    (block,) = blocks_of(done(tmp_path, sweep("none", "none_twice", seeds=SEEDS)))
    assert (block.hidden, block.title) == (None, "toys, 6 labels a class")
    assert block.difference("none_twice", "none") is not None


@pytest.mark.parametrize(
    ("task", "source", "shared", "stand_in"),
    [
        (TOYS, "synthetic", False, False),
        (dataclasses.replace(TOYS, folds=2), "synthetic", True, False),
        (Task("bones", "MaskAug-MURA-v0"), "mura", True, False),
        (Task("bones", "MaskAug-MURA-v0"), "synthetic", False, True),
        (Task("lesions", "MaskAug-BUSI-v0", folds=5), "busi", True, False),
    ],
)
def test_whether_seeds_test_the_same_images(
    task: Task, source: str, shared: bool, stand_in: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_up(monkeypatch, source)
    (block,) = blocks_of(done(tmp_path, sweep("none", "random", tasks=[task], seeds=SEEDS)))
    assert (block.shared, block.stand_in, block.source) == (shared, stand_in, source)
    assert table(block).stand_in == stand_in
    pairs: list[Any] = [block.pair("random", "none", seed) for seed in SEEDS]
    # What is tested ÷ what is not, of two folds and of five.
    share = {0: 0.0, 2: 1.0, 5: 0.25}[task.folds]
    right, wrong = (
        clustered_difference(pairs, shared=s, method=paired.METHOD, draws=paired.DRAWS, test_share=share)
        for s in (shared, not shared)
    )
    assert ("Nadeau & Bengio" in table(block).note) == bool(share)
    assert ("training sets overlap they do not know" in table(block).note) == (shared and not share)
    assert block.difference("random", "none") == right != wrong


# ---- differences and words -------------------------------------------------------------------------------------------


def test_differences_are_paired_by_seed_and_words_follow_their_intervals(made_up: None, tmp_path: Path) -> None:
    (block,) = blocks_of(done(tmp_path, sweep(*ARMS, seeds=SEEDS)))
    for arm in block.runs:
        for other in ("none", "random"):
            found = block.difference(arm, other)
            if arm == other:
                assert found is None
                continue
            assert found is not None
            pairs = [block.runs[arm][s].figures["auroc"] - block.runs[other][s].figures["auroc"] for s in SEEDS]
            assert found.value == pytest.approx(np.mean(pairs))
    shown = table(block)
    words = rows_of(shown, "against no masks", "against random")
    assert words["APGA"] == ["better", "better"]
    assert words["Cutout"] == ["worse", "worse"]
    assert words["no masks, twice the images"][0] == "not established"
    assert (words["no masks"][0], words["random cells"][1]) == ("", "")
    for arm in block.runs:
        plain = block.difference(arm, "none")
        assert words[title_of(arm)][0] == ("" if plain is None else verdict(plain))
        text = rows_of(shown, "− no masks (95 %)")[title_of(arm)]
        assert text == ("" if plain is None else plain.text())
    assert rows_of(shown, "AUROC")["APGA"] == pytest.approx(block.values("apga").mean())
    assert rows_of(shown, "SD")["APGA"] == pytest.approx(block.values("apga").std(ddof=1))


def test_one_seed_has_no_interval_and_no_word(made_up: None, tmp_path: Path) -> None:
    (block,) = blocks_of(done(tmp_path, sweep(*ARMS)))
    shown = table(block)
    assert not [c for c in shown.columns if "95 %" in c or "against" in c or c == "SD"]
    assert "better" not in re.sub(r"better or worse", "", shown.markdown())
    assert rows_of(shown, "AUROC", "seeds")["APGA"] == [pytest.approx(block.values("apga").mean()), 1]


def test_only_seeds_that_both_have_are_compared(made_up: None, tmp_path: Path) -> None:
    grid = done(tmp_path, sweep("none", "apga", seeds=[0, 1, 2]), sweep("random", seeds=[1, 2, 3]))
    (block,) = blocks_of(grid)
    assert block.common("apga", "random") == [1, 2]
    pairs: list[Any] = [block.pair("apga", "random", seed) for seed in (1, 2)]
    assert block.difference("apga", "random") == clustered_difference(
        pairs, shared=False, method=paired.METHOD, draws=paired.DRAWS
    )
    (apart,) = blocks_of(done(tmp_path / "apart", sweep("none", seeds=[0, 1]), sweep("random", seeds=[2, 3])))
    assert apart.difference("random", "none") is None
    assert not [c for c in table(apart).columns if "against" in c]


def test_images_that_are_too_few_are_no_interval_and_the_table_says_why(
    made_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks_of(done(tmp_path, sweep("none", "random", seeds=SEEDS)))
    original = Block.pair

    def one_group(self: Block, *args: Any) -> Any:
        labels, groups, *both = original(self, *args)
        return labels, np.zeros_like(groups), *both

    monkeypatch.setattr(Block, "pair", one_group)
    shown = table(block)
    assert "No interval: run 0" in shown.note
    assert "at least two groups" in shown.note
    assert not [c for c in shown.columns if "against" in c]


# ---- over tasks ------------------------------------------------------------------------------------------------------


def test_over_tasks_an_arm_is_compared_on_all_of_them(made_up: None, tmp_path: Path) -> None:
    tasks = [TOYS, dataclasses.replace(TOYS, name="toys-two"), dataclasses.replace(TOYS, name="toys-three")]
    found = blocks_of(done(tmp_path, sweep(*ARMS, tasks=tasks, seeds=range(5)), sweep("brightness", tasks=tasks[:1])))
    shown = over_tasks(found)
    assert shown is not None
    words = rows_of(shown, "against no masks", "against random")
    assert (words["APGA"], words["Cutout"], words["no masks"][0]) == (["better"] * 2, ["worse"] * 2, "")
    # Only arms that every task has.
    assert "brightness" not in words
    gains = [b.difference("apga", "none") for b in found]
    value = np.mean([g.value for g in gains if g is not None])
    text = rows_of(shown, "− no masks (95 %)")["APGA"]
    assert text.startswith(Interval(float(value), -1, 1).text().split(" ")[0])
    assert rows_of(shown, "P(better than no masks)")["APGA"].startswith("1.00")
    assert all(b.title in shown.note for b in found)
    every = [b.values("apga") for b in found]
    assert rows_of(shown, "mean of IQMs (95 %)")["APGA"].startswith(f"{mean_of_iqms(every):.3f}"[1:])
    # Every seed has images of its own: no patient is in two tasks.
    assert "share patients" not in shown.note
    assert over_tasks(found[:1]) is None


def test_over_tasks_needs_seeds_that_all_have(made_up: None, tmp_path: Path) -> None:
    two = dataclasses.replace(TOYS, name="toys-two")
    grid = done(tmp_path, sweep("none", "random", seeds=[0, 1]), sweep("none", "random", tasks=[two], seeds=[1, 2]))
    shown = over_tasks(blocks_of(grid))
    assert shown is not None
    assert set(rows_of(shown, "against no masks").values()) == {""}


# ---- the paper's tables ----------------------------------------------------------------------------------------------


def bones(part: str) -> Task:
    return Task(f"mura-{part}", "MaskAug-MURA-v0", {"body_part": part, "image_size": 64})


def test_table_1_has_the_published_figures_beside_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_up(monkeypatch, "mura")
    arms = ("none", ITSELF, "random", "cutout", "grad_cam", "apga_published", "apga")
    tasks = [bones("forearm"), bones("wrist")]
    grid = done(
        tmp_path, sweep(*(a for a in arms if a != ITSELF), tasks=tasks, shots=[None, 6], seeds=[0, 1, 2], swapped=False)
    )
    found = blocks_of(grid)
    whole, few = published_tables(found)
    assert whole.title == "Table 1 (MURA), all labels, 60% hidden"
    assert "all labels, masks first, then a new classifier, 64×64 pixels" in whole.note
    assert "6 labels a class" in few.note
    assert [row[:2] for row in whole.rows] == [[p, title_of(a)] for p in ("forearm", "wrist") for a in arms]
    ours = {(row[0], row[1]): row[4] for row in whole.rows}
    theirs = {(row[0], row[1]): list(row[6:]) for row in whole.rows}
    values = 100 * found[0].values("apga", "accuracy")
    assert ours["forearm", "APGA"] == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert theirs["forearm", "APGA, published loss"] == ["83.44 ± 0.53", 301]
    assert theirs["wrist", "no masks"] == ["83.28 ± 0.46", 659]
    # What the paper has not, is left empty, and never filled from another row.
    assert theirs["wrist", "APGA"] == theirs["wrist", "random cells"] == [None, None]
    gain = found[0].difference("apga", "none", "accuracy")
    assert gain is not None
    text = next(row[5] for row in whole.rows if row[:2] == ["forearm", "APGA"])
    assert isinstance(text, str)
    assert text.startswith(f"{100 * gain.value:+.1f}".replace("-", "−"))
    assert {row[3] for row in whole.rows} == {"80"}
    assert len(PUBLISHED) == 7


def test_other_data_have_no_published_figures(made_up: None, tmp_path: Path) -> None:
    tasks = [TOYS, Task("mura-all", "MaskAug-MURA-v0", {"body_part": None})]
    assert published_tables(blocks_of(done(tmp_path, sweep("none", "random", tasks=tasks)))) == []


def test_k_shot_is_a_row_an_arm_and_a_column_a_budget(made_up: None, tmp_path: Path) -> None:
    grid = done(
        tmp_path,
        sweep("none", "random", shots=[25, None, 6], seeds=SEEDS),
        sweep("apga", shots=[6], seeds=SEEDS, swapped=False),
    )
    found = blocks_of(grid)
    (shown,) = budget_tables(found)
    assert shown.title == "toys, 60% hidden: k-shot"
    budgets = ["6 labels a class", "25 labels a class", "all labels"]
    assert list(shown.columns) == ["second view", *(c for b in budgets for c in (b, f"{b}: − no masks (95 %)"))]
    few = next(b for b in found if b.shots == 6)
    values, gain = few.values("random"), few.difference("random", "none")
    assert gain is not None
    assert rows_of(shown, *shown.columns[1:3])["random cells"] == [
        f"{values.mean():.3f} ± {values.std(ddof=1):.3f}", gain.text()
    ]  # fmt: skip
    # What was not run there is empty.
    assert rows_of(shown, *shown.columns[3:])["APGA"] == [""] * 4
    assert budget_tables([few]) == []


# ---- masks by themselves ---------------------------------------------------------------------------------------------


def test_rankings_are_compared_with_random_ones_and_grad_cam(made_up: None, tmp_path: Path) -> None:
    grid = done(tmp_path, sweep(*ARMS, seeds=SEEDS))
    area, curves = masks_tables(grid.root, grid.cells.values(), grid.results())
    assert rows_of(area, "retention", "swapped")["APGA"] == [pytest.approx(0.45), pytest.approx(0.2)]
    assert rows_of(area, "retention")["control: random"] == pytest.approx(0.3)
    rows = {(row[0], row[1]): row[2:] for row in curves.rows}
    assert set(rows) == {
        (name, other) for name in ("Grad-CAM", "APGA", "the true region (oracle)") for other in ("random", "Grad-CAM")
    } - {("Grad-CAM", "Grad-CAM")}
    # Of deletion less is better: what is called better has a negative difference there.
    for other in ("random", "Grad-CAM"):
        seeds, *cells_of_curves = rows["APGA", other]
        assert seeds == len(SEEDS)
        for name, cell in zip(CURVE_NAMES, cells_of_curves, strict=True):
            assert str(cell).startswith("−" if name.startswith("deletion") else "+")
            assert str(cell).endswith(" better")
        assert not [c for c in rows["the true region (oracle)", other][1:] if str(c).endswith(" better")]


def test_runs_without_values_of_single_images_have_intervals_by_seed(made_up: None, tmp_path: Path) -> None:
    grid = done(tmp_path, sweep("grad_cam", "apga", seeds=SEEDS))
    before = masks_tables(grid.root, grid.cells.values(), grid.results())[1]
    (grid.root / HERE / "masks-apga" / CURVES).unlink()
    after = masks_tables(grid.root, grid.cells.values(), grid.results())[1]
    assert "by seed alone" in after.note
    assert "by seed alone" not in before.note
    for old, new in zip(before.rows, after.rows, strict=True):
        # Grad-CAM's own rows stay; APGA's keep their values and change their ends.
        assert (old == new) == (old[0] == "Grad-CAM")
        assert str(old[3]).split(" ")[0] == str(new[3]).split(" ")[0]


def test_one_seed_of_masks_has_values_and_no_intervals(made_up: None, tmp_path: Path) -> None:
    grid = done(tmp_path, sweep("grad_cam", "apga"))
    area, curves = masks_tables(grid.root, grid.cells.values(), grid.results())
    assert rows_of(area, "retention")["APGA"] == pytest.approx(0.45)
    assert {cell for row in curves.rows for cell in row[3:]} == {""}
    assert masks_tables(grid.root, [], {}) == []


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_unfinished_grid_is_marked_in_every_table_and_a_finished_one_is_not(made_up: None, tmp_path: Path) -> None:
    everything = [sweep(*ARMS, seeds=SEEDS, shots=[6, 8], hidden=[0.25, 0.6])]
    grid = Grid(tmp_path / "runs", cells(everything, QUICK))
    order = list(grid.cells.values())
    for cell in order[: len(order) // 2]:
        run_cell(grid.root, cell)
    half = write_analysis(grid, tmp_path)
    assert half
    assert {t.unfinished for t in half} == {grid.say()}
    assert (tmp_path / "tables.md").read_text().count("**UNFINISHED") == len(half)
    grid.run(say=lambda _: None)
    whole = write_analysis(grid, tmp_path)
    assert {t.unfinished for t in whole} == {""}
    assert [t.title for t in read_tables(tmp_path / "tables.json")] == [t.title for t in whole]
    for name in ("forest-toys-6-labels-a-class-25-hidden.png", "map-toys.png", "gallery.safetensors", "gallery.png"):
        assert (tmp_path / name).is_file()
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(cell.work.endswith((":classifier", ":judge")) for cell in order)
    one = next(r for r in rows if (r["arm"], r["shots"], r["seed"], r["hidden"]) == ("apga", "6", "2", "0.25"))
    assert float(one["auroc"]) == grid.results()["toys/k6/seed2/apga-h25"]["auroc"]


def test_a_smaller_call_leaves_no_pictures_of_a_larger_one_and_says_what_it_leaves_out(
    made_up: None, tmp_path: Path
) -> None:
    large = [sweep("none", "random", "apga", seeds=SEEDS, shots=[6, 8], hidden=[0.25, 0.6])]
    done(tmp_path / "runs", *large)
    grid = Grid(tmp_path / "runs", cells(large, QUICK))
    assert not [t for t in write_analysis(grid, tmp_path) if "more runs" in t.note]
    (tmp_path / "mine.png").write_bytes(b"")
    assert {p.name for p in tmp_path.glob("*.png")} > {"map-toys.png", "forest-toys-8-labels-a-class-25-hidden.png"}
    small = Grid(tmp_path / "runs", cells([sweep("none", "random", seeds=SEEDS)], QUICK))
    more = len(grid.cells) - len(small.cells)
    assert {f"Without {more} more runs in runs/" in t.note for t in write_analysis(small, tmp_path)} == {True}
    assert {p.name for p in tmp_path.glob("*.png")} == {"mine.png", "forest-toys-6-labels-a-class-60-hidden.png"}
    assert not list(tmp_path.glob("gallery*"))


def test_a_grid_of_which_nothing_is_done_has_no_tables(made_up: None, tmp_path: Path) -> None:
    assert write_analysis(Grid(tmp_path / "runs", cells([sweep(*ARMS)], QUICK)), tmp_path) == []
