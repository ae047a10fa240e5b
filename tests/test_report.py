"""The report's page: everything is there, nothing in it runs, fetches or breaks it, and it says what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from report_page import Page, made
from report_toy import EVIL, cell, everything, gallery, picture, trained, write

from maskaug.benchmarks.report import report
from maskaug.benchmarks.report_found import collect
from maskaug.benchmarks.tables import Table, write_tables
from maskaug.envs.errors import ConfigurationError


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("report")
    return made(root / "page.html", everything(root / "all"))


# ---- a page that is safe to open -------------------------------------------------------------------------------------


def test_nothing_runs_and_nothing_is_fetched(page: Page) -> None:
    (script,) = page.raw["script"]
    assert "owned" not in script
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        assert attributes.get("src", "data:").startswith("data:image/") if tag == "img" else "src" not in attributes
        assert attributes.get("href", "#").startswith("#") or (tag, attributes["href"]) == ("link", "data:,")
    for style in page.raw["style"]:
        assert all(url.startswith('url("data:image/') for url in re.findall(r"url\([^)]{0,20}", style))
        assert "@import" not in style


def test_the_policy_lets_only_this_script_and_these_styles_through(page: Page) -> None:
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}

    def fingerprint(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert rules["script-src"] == [fingerprint(text) for text in page.raw["script"]]
    assert rules["style-src"] == [fingerprint(text) for text in page.raw["style"]]
    assert len(page.raw["style"]) == 2


def test_hostile_names_are_shown_as_they_are(page: Page) -> None:
    # In a run's name, an arm, an error's message and trace, a table's every part, a figure's and a gallery's captions.
    assert page.text.count(EVIL) > 12
    assert any(EVIL in attributes.get("alt", "") for _, attributes in page.tags)
    assert f"all/{EVIL}" not in page.text
    assert f"grid/{EVIL}" in page.column("runs", "run")


def test_what_cannot_be_shown_is_escaped(tmp_path: Path) -> None:
    name = "seed\u202e0\x07"
    folder = trained(tmp_path / "runs" / os.fsdecode(name.encode() + b"\xff"))
    config = json.loads((folder / "config.json").read_text())
    config["asked"]["agent"] = "A\ud800\x00B"
    write(folder / "config.json", config)
    page = made(tmp_path / "page.html", tmp_path / "runs")
    assert page.column("runs", "run") == ["seed\\u202e0\\x07\\udcff"]
    assert page.column("runs", "agent") == ["A\\ud800\\x00B"]


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert targets
    assert set(targets) <= set(page.ids)
    for row in page.rows["runs"][1:]:
        assert row["data-run"] in page.ids


def test_the_same_folders_are_the_same_bytes(tmp_path: Path) -> None:
    root = everything(tmp_path / "all")
    for name in ("a.html", "b.html"):
        report([root], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


# ---- what it shows ---------------------------------------------------------------------------------------------------


def test_one_table_of_all_runs(page: Page) -> None:
    assert page.titles("runs")[:6] == ["run", "state", "agent", "environment", "data", "seed"]
    assert page.column("runs", "run")[:4] == ["apga/seed0", "apga/seed1", "apga/seed10", "dqn/seed1"]
    rows = dict(zip(page.column("runs", "run"), page.body("runs"), strict=True))
    at = page.titles("runs").index("test.auroc")
    assert rows["grid/cell2"][at] == ("0.861", {"class": "n", "data-v": "0.861"})
    assert rows["grid/cell3"][at] == ("-1.5e-07", {"class": "n", "data-v": "-1.5e-07"})
    assert rows["apga/seed0"][at] == ("–", {})
    assert rows["apga/seed10"][page.titles("runs").index("val.retention.agent")][0] == "1.5"
    # k_shot differs between the cells and is a column; area is 0.25 wherever it is said.
    assert rows["grid/cell3"][page.titles("runs").index("k_shot")][1]["data-v"] == "75.0"
    heads = [a for tag, a in page.tags if tag == "th" and a.get("scope") == "col"]
    assert heads
    assert {a["aria-sort"] for a in heads} == {"none"}
    assert sum(tag == "button" and a == {"type": "button"} for tag, a in page.tags) == len(heads)


def test_a_setting_is_a_column_where_it_differs(tmp_path: Path) -> None:
    for i in range(3):
        cell(tmp_path / f"grid/{i}", {"auroc": 0.5}, arm="apga", budget=25 * i, area=0.25)
    titles = made(tmp_path / "page.html", tmp_path / "grid").titles("runs")
    assert titles == ["run", "state", "agent", "budget", "auroc"]


def test_more_than_fits_is_counted(tmp_path: Path) -> None:
    for i in range(2):
        cell(tmp_path / f"grid/{i}", {f"m{k:02}": k for k in range(30)}, **{f"s{k:02}": i for k in range(12)})
    page = made(tmp_path / "page.html", tmp_path / "grid")
    assert len(page.titles("runs")) == 2 + 8 + 10
    assert "4 more settings that differ" in page.text
    assert "20 more metrics" in page.text


def test_metrics_are_chosen(tmp_path: Path) -> None:
    cell(tmp_path / "grid/a", {"val.auroc": 0.5, "test.auroc": 0.6, "loss": 1.0})
    page = made(tmp_path / "page.html", tmp_path / "grid", metrics=["loss", "*.auroc"])
    assert page.titles("runs") == ["run", "state", "loss", "test.auroc", "val.auroc"]
    with pytest.raises(ConfigurationError, match=r"'f1'; there are loss, test\.auroc, val\.auroc"):
        report([tmp_path / "grid"], tmp_path / "page.html", metrics=["f1"])


def test_stand_ins_are_never_shown_under_the_real_name(page: Page) -> None:
    rows = dict(zip(page.column("runs", "run"), page.body("runs"), strict=True))
    environment, data = (page.titles("runs").index(title) for title in ("environment", "data"))
    for seed in (0, 1, 10):
        assert rows[f"apga/seed{seed}"][environment][0] == "stand-in for MaskAug-BUSI-v0"
        assert rows[f"apga/seed{seed}"][data][0] == "synthetic-ultrasound stand-in"
    assert rows["dqn/seed1"][environment][0] == "MaskAug-BUSI-v0"
    assert rows["dqn/seed1"][data][0] == "busi"
    assert "3 of 10 runs used made-up images" in page.text
    assert page.text.count("MaskAug-BUSI-v0") - page.text.count("stand-in for MaskAug-BUSI-v0") == 2 + 4  # dqn, configs
    assert page.column("data", "data")[0] == "synthetic-ultrasound (stand-in)"


@pytest.mark.parametrize(
    ("data", "asked", "marked"),
    [
        ({"source": "synthetic"}, {"env_id": "MaskAug-BUSI-v0"}, True),
        ({"source": "synthetic"}, {"dataset": "mura"}, True),
        ({"source": "synthetic"}, {"dataset": "synthetic"}, False),
        ({"source": "synthetic"}, {"env_id": "MaskAug-Synthetic-v0"}, False),
        ({"source": "busi"}, {"env_id": "MaskAug-BUSI-v0"}, False),
        ({"source": "synthetic"}, {"task": {"env_id": "MaskAug-BUSI-v0"}}, True),
        ({"source": "synthetic"}, {"task": {"env_id": "MaskAug-Synthetic-v0"}}, False),
        ({}, {"env_id": "MaskAug-BUSI-v0"}, False),
    ],
)
def test_what_a_stand_in_is(tmp_path: Path, data: dict[str, str], asked: dict[str, str], marked: bool) -> None:
    cell(tmp_path / "grid/a", {"auroc": 0.5}, {"name": "x", **data}, **asked)
    (run,) = collect([tmp_path / "grid"]).runs
    assert run.stand_in is marked


def test_a_benchmarks_cell_says_what_it_ran_on(tmp_path: Path) -> None:
    long = {"train": "0123456789abcdef", "val": "1123456789abcdef", "test": "2123456789abcdef"}
    counts = {"train": 63, "val": 14, "test": 13}
    data = {"name": "busi", "source": "user", "images": counts, **{f"digest_{k}": v for k, v in long.items()}}
    asked = {"task": {"name": "busi", "env_id": "MaskAug-BUSI-v0"}, "arm": "none", "seed": 0, "split": "test"}
    cell(tmp_path / "grid/a", {"auroc": 0.5}, data, **asked)
    page = made(tmp_path / "page.html", tmp_path / "grid")
    assert page.column("runs", "environment") == ["MaskAug-BUSI-v0"]
    assert page.column("data", "images") == ["train 63, val 14, test 13"]
    assert page.column("data", "split") == ["test"]
    assert page.column("data", "digest") == ["train 0123456789ab, val 1123456789ab, test 2123456789ab"]
    assert "digest train 0123456789abcdef, val 1123456789abcdef, test 2123456789abcdef" in page.text
    assert "images train 63, val 14, test 13" in page.text


def test_what_failed_and_what_is_left_is_said_on_top(page: Page) -> None:
    top = page.text[: page.text.index("Galleries")]
    assert "8 of 10 runs done, 1 failed, 1 unfinished" in top
    assert f"RuntimeError: out of memory {EVIL}" in top
    assert "grid/left: unfinished no results.json" in top
    assert "3 of 20 runs are left" in top
    assert 'File "x.py"' in page.text[len(top) :]


def test_all_done_is_said_too(tmp_path: Path) -> None:
    cell(tmp_path / "grid/a", {"auroc": 0.5})
    text = made(tmp_path / "page.html", tmp_path / "grid").text
    assert "1 of 1 runs done" in text
    assert "unfinished" not in text


def test_a_run_that_goes_on_after_its_results_is_unfinished(tmp_path: Path) -> None:
    folder = trained(tmp_path / "runs/a")
    with (folder / "metrics.csv").open("a") as file:
        file.write("\n656,0.5,0.5\n")
    (run,) = collect([tmp_path / "runs"]).runs
    assert run.state == "unfinished"
    assert "continued to 656 timesteps" in run.told
    (folder / "results.json").unlink()
    (run,) = collect([tmp_path / "runs"]).runs
    assert run.told == "no results.json; it has come to 656 timesteps"


def test_results_without_a_run_are_shown(tmp_path: Path) -> None:
    write(tmp_path / "demo/results.json", {"summary": {"auroc": 0.75, "n": 3}, "unfinished": False, "who": "me"})
    page = made(tmp_path / "page.html", tmp_path / "demo")
    assert page.titles("runs") == ["run", "state", "summary.auroc", "summary.n"]
    assert page.column("runs", "summary.auroc") == ["0.75"]


def test_tables_of_an_analysis(page: Page) -> None:
    assert page.titles("table-1") == ["arm", "AUROC", "with interval", "words"]
    keys = [[attributes.get("data-v") for _, attributes in row] for row in page.body("table-1")]
    assert keys[1] == [None, "0.861", "0.861", "12.0"]
    assert keys[2] == [None, None, None, None]
    assert keys[3] == [None, "-2.0", "-0.3", None]
    assert "95 % intervals, clustered by patient" in page.text
    assert page.body("table-2")[0][0][0] == EVIL


def test_galleries_show_every_arm_and_sort_by_what_it_selects(page: Page) -> None:
    assert page.titles("gallery-1") == ["image", "known region", "hit", "half", EVIL]
    for i, row in enumerate(page.body("gallery-1")):
        assert [float(a["data-v"]) for _, a in row[1:]] == [64 / 1024, 1, 0.5, 1]
        assert row[0][0].startswith(f"image {i} ")
        assert row[3][0] == "50% of the region, 3.1% of the image"
    classes = [a["class"] for tag, a in page.tags if tag == "span" and a.get("class", "").startswith("pic ")]
    assert len(classes) == 4 * 5
    for i in range(4):
        rule = f'.gallery-1-{i + 1} {{ background-image: url("data:image/png;base64,'
        assert page.raw["style"][1].count(rule) == 1
        assert classes.count(f"pic gallery-1 gallery-1-{i + 1}") == 5


def test_curves_of_a_run_and_of_runs_together(page: Page) -> None:
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    # Four runs with two each, and the three that play the same game together.
    assert charts.count("rollout/ep_rew_mean") == charts.count("train/judge_loss") == 4 + 1
    lines = [attributes["points"].split() for tag, attributes in page.tags if tag == "polyline"]
    assert len(lines) == 2 * (4 + 3)
    assert {len(points) for points in lines} == {40, 34}  # the loss is not a number until step 112


def test_versions_and_data_stand_once(page: Page) -> None:
    assert page.column("versions", "commit") == ["0123abc"]
    assert page.column("versions", "runs") == ["10"]
    assert sorted(page.column("data", "digest")) == ["d1g35t", "d1g35t", "m1"]


# ---- how large it is -------------------------------------------------------------------------------------------------


def test_it_stays_as_small_as_asked_and_says_what_is_left_out(tmp_path: Path) -> None:
    for i in range(12):
        trained(tmp_path / f"runs/{i}", i)
        picture(tmp_path / f"runs/{i}/masks.png", 700, 500, noisy=True)
    gallery(tmp_path / "runs/0/gallery.safetensors", 40, 96)
    small = made(tmp_path / "small.html", tmp_path / "runs", megabytes=1)
    assert (tmp_path / "small.html").stat().st_size < 1_000_000
    assert "stay below 1 MB" in small.text
    assert re.search(r"\d pictures", small.text)
    assert "pictures are reduced to 400 pixels across" in small.text
    assert "16 more stand in its file" in small.text
    large = made(tmp_path / "large.html", tmp_path / "runs")
    assert 1_000_000 < (tmp_path / "large.html").stat().st_size < 20_000_000
    assert "stay below" not in large.text
    assert len([1 for tag, a in large.tags if tag == "img" and a["alt"] == "masks.png" and a["width"] == "700"]) == 12


def test_hundreds_of_runs_are_all_in_the_table(tmp_path: Path) -> None:
    for i in range(300):
        cell(tmp_path / f"grid/{i}", {f"metric{k}": k / 7 for k in range(60)}, arm="apga", seed=i)
    page = made(tmp_path / "page.html", tmp_path / "grid", megabytes=1)
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert len(page.body("runs")) == 300
    assert re.search(r"\d+ runs' details", page.text)
    assert page.column("runs", "run")[:12:10] == ["0", "10"]


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_tables(tmp_path / "a/tables.json", [Table("t", ["n"], [[i] for i in range(2500)])])
    page = made(tmp_path / "page.html", tmp_path / "a")
    assert len(page.body("table-1")) == 2000
    assert "The first 2000 of 2500 rows" in page.text
    assert "500 rows of tables" in page.text
