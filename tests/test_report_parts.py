"""The parts of a report, each by hand: tables.json, galleries, charts, pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from maskaug.benchmarks.gallery import gallery_picture, read_gallery, write_gallery
from maskaug.benchmarks.report_charts import Line, axis, chart, labels, number, thinned
from maskaug.benchmarks.report_html import Budget, cell, sort_value
from maskaug.benchmarks.report_pictures import embedded, overlay, small_image
from maskaug.benchmarks.tables import Table, read_tables, write_tables
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_safetensors
from maskaug.envs.rendering import MASK, REGION

# ---- tables.json -----------------------------------------------------------------------------------------------------


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    tables = [
        Table("a", ["x", "y"], [[1, "b"], [None, 0.5]], "note", "2 are left", stand_in=True),
        Table("b", ["x"], []),
    ]
    write_tables(tmp_path / "tables.json", tables)
    assert read_tables(tmp_path / "tables.json") == tables


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    row: list[Any] = [np.float32(0.5), np.int64(3), np.str_("x")]
    write_tables(tmp_path / "tables.json", [Table("a", ["x", "y", "z"], [row])])
    assert read_tables(tmp_path / "tables.json")[0].rows == [[0.5, 3, "x"]]


GOOD: dict[str, Any] = {"title": "t", "columns": ["a", "b"], "rows": [[1, 2]]}


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ({}, "must be a list of tables"),
        ([1], "table 1 must be an object"),
        ([GOOD, {"title": "t", "columns": ["a"]}], "table 2 must be an object of title, columns, rows"),
        ([{**GOOD, "colour": "red"}], "note, stand_in, unfinished"),
        ([{**GOOD, "title": 3}], "title must be a string"),
        ([{**GOOD, "unfinished": True}], "unfinished must be a string"),
        ([{**GOOD, "stand_in": "no"}], "stand_in must be true or false"),
        ([{**GOOD, "columns": []}], "columns must be a list of strings"),
        ([{**GOOD, "columns": ["a", 1]}], "columns must be a list of strings"),
        ([{**GOOD, "rows": 3}], "rows must be a list of lists"),
        ([{**GOOD, "rows": [[1, 2], [1]]}], "row 2 must be a list of 2 cells"),
        ([{**GOOD, "rows": [[1, [2]]]}], r"row 1 holds \[2\]"),
        ([{**GOOD, "rows": [[1, float("nan")]]}], "row 1 holds nan; a cell is a finite number"),
        ([{**GOOD, "rows": [[1, True]]}], "row 1 holds True"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, value: Any, cause: str) -> None:
    (tmp_path / "tables.json").write_text(json.dumps(value))
    with pytest.raises(ConfigurationError, match=cause):
        read_tables(tmp_path / "tables.json")


def test_a_bad_table_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="row 1 holds inf"):
        write_tables(tmp_path / "tables.json", [Table("a", ["x"], [[float("inf")]])])
    with pytest.raises(ConfigurationError, match=r"must be called tables\.json"):
        write_tables(tmp_path / "mine.json", [])
    assert list(tmp_path.iterdir()) == []


# ---- galleries -------------------------------------------------------------------------------------------------------


def some(m: int = 3, channels: int = 1, height: int = 6, width: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    masks = {arm: rng.random((m, height, width)) < 0.5 for arm in ("zebra", "apga")}
    images = rng.integers(0, 256, (m, channels, height, width)).astype(np.uint8)
    return {"images": images, "masks": masks, "regions": rng.integers(0, 3, (m, height, width))}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gallery_comes_back_as_it_was_written(tmp_path: Path, channels: int) -> None:
    given, path = some(channels=channels), tmp_path / "new/gallery.safetensors"
    write_gallery(path, **given, names=["a", "b", "c"], title="T", note="N", stand_in=True)
    read = read_gallery(path)
    np.testing.assert_array_equal(read.images, given["images"])
    assert list(read.masks) == ["zebra", "apga"]
    for arm, masks in given["masks"].items():
        np.testing.assert_array_equal(read.masks[arm], masks)
    assert read.regions is not None
    np.testing.assert_array_equal(read.regions, given["regions"] != 0)
    assert (read.names, read.title, read.note, read.stand_in, read.left_out) == (("a", "b", "c"), "T", "N", True, 0)
    few = read_gallery(path, 2)
    np.testing.assert_array_equal(few.images, given["images"][:2])
    assert (few.names, few.left_out, few.masks["apga"].shape) == (("a", "b"), 1, (2, 6, 4))
    before = path.read_bytes()
    write_gallery(path, **given, names=["a", "b", "c"], title="T", note="N", stand_in=True)
    assert path.read_bytes() == before


def test_what_a_gallery_may_leave_out(tmp_path: Path) -> None:
    given = some()
    write_gallery(tmp_path / "gallery.safetensors", given["images"], given["masks"])
    read = read_gallery(tmp_path / "gallery.safetensors")
    assert (read.regions, read.names, read.title, read.note, read.stand_in) == (None, ("0", "1", "2"), "", "", False)


def test_the_picture_of_a_gallery_has_a_line_for_the_images_and_for_every_arm(tmp_path: Path) -> None:
    path, side = tmp_path / "gallery.safetensors", 40
    masks = {name: np.zeros((3, 8, 8), np.bool_) for name in ("none of it", "left half", "right × half")}
    masks["left half"][:, :, :4] = masks["right × half"][:, :, 4:] = True
    regions = np.zeros((3, 8, 8), np.bool_)
    regions[1, 2:6, 2:6] = True
    write_gallery(path, np.full((3, 1, 8, 8), 100, np.uint8), masks, regions, title="T")
    found = gallery_picture(read_gallery(path), side, columns=2)
    assert np.array_equal(found, gallery_picture(read_gallery(path), side, columns=2))

    def where(*colour: int) -> npt.NDArray[np.bool_]:
        return np.asarray((np.abs(found.astype(int) - colour) <= 2).all(2))

    grey, tinted, turquoise, orange = where(100, 100, 100), where(169, 118, 55), where(*REGION), where(*MASK)
    middle = found.shape[1] // 2
    # Left: the images and "left half"; right: "none of it" and "right × half". No image is hidden by its mask.
    for columns in (slice(middle), slice(middle, None)):
        assert all(some[:, columns].any() for some in (tinted, orange, turquoise))
    top, bottom = found[: found.shape[0] // 2], found[found.shape[0] // 2 :]
    assert not (top == MASK).all(2).any()
    assert (bottom == MASK).all(2).any()
    assert grey[:, :middle].sum() > grey.sum() // 4
    assert gallery_picture(read_gallery(path), 2 * side).shape[1] > 1.5 * found.shape[1]
    assert gallery_picture(read_gallery(path), side, columns=1).shape[0] > 1.5 * found.shape[0]
    write_gallery(path, np.full((3, 3, 8, 8), 100, np.uint8), masks, title="T", stand_in=True)
    plain = gallery_picture(read_gallery(path), side)
    assert not (plain == REGION).all(2).any()


def changed(name: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> dict[str, Any]:
    given = some()
    return {**given, name: change(given[name])}


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (changed("images", lambda x: x.astype(np.float32)), "images must be uint8, got float32"),
        (changed("images", lambda x: x[:, 0]), r"images must be \(M, C, H, W\)"),
        (changed("images", lambda x: np.repeat(x, 2, 1)), "1 or 3 channels"),
        (changed("images", lambda x: x[:0]), "images must be"),
        (changed("images", lambda x: x[:2]), r"must be \(2, 6, 4\), got \(3, 6, 4\)"),
        (changed("regions", lambda x: x[:, :3]), r"regions must be \(3, 6, 4\)"),
        (changed("regions", lambda x: x / 2), "regions must be bool or integers"),
        ({**some(), "masks": {}}, "no masks"),
        ({**some(), "masks": {"apga": np.zeros((3, 6, 5), bool)}}, r"mask\.apga must be"),
        ({**some(), "masks": {"apga": np.zeros((3, 6, 4))}}, r"mask\.apga must be bool or integers"),
        ({**some(), "names": ["a"]}, "1 names for 3 images"),
    ],
)
def test_a_bad_gallery_is_not_written(tmp_path: Path, given: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        write_gallery(tmp_path / "gallery.safetensors", **given)
    with pytest.raises(ConfigurationError, match=r"must end in \.safetensors"):
        write_gallery(tmp_path / "gallery.npz", **some())
    assert list(tmp_path.iterdir()) == []


ABOUT: dict[str, Any] = {"title": "", "note": "", "names": ["a"], "arms": ["x"], "stand_in": False}


@pytest.mark.parametrize(
    ("header", "tensors", "cause"),
    [
        (None, {}, "is no gallery"),
        ("{", {}, "cannot be read"),
        ("[]", {}, "header without title"),
        (json.dumps({**ABOUT, "names": "a"}), {}, "names must be a list"),
        (json.dumps({**ABOUT, "names": [1]}), {}, "names and arms must be strings"),
        (json.dumps({**ABOUT, "arms": ["x", "x"]}), {}, "the masks are"),
        (json.dumps({**ABOUT, "arms": ["y"]}), {}, "the masks are"),
        (json.dumps(ABOUT), {"images": torch.zeros(1, 1, 4, 4)}, "uint8 alone, but has F32"),
        (json.dumps(ABOUT), {"other": torch.zeros(1, 4, 4, dtype=torch.uint8)}, "the masks are"),
        (json.dumps(ABOUT), {"mask.x": torch.zeros(1, 4, 5, dtype=torch.uint8)}, r"mask\.x must be"),
    ],
)
def test_other_peoples_galleries_are_checked(
    tmp_path: Path, header: str | None, tensors: dict[str, torch.Tensor], cause: str
) -> None:
    good = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in
            (("images", (1, 1, 4, 4)), ("mask.x", (1, 4, 4)))}  # fmt: skip
    path = tmp_path / "gallery.safetensors"
    write_safetensors(path, {**good, **tensors}, {} if header is None else {"maskaug-gallery-1": header})
    with pytest.raises(ConfigurationError, match=cause):
        read_gallery(path)


def test_what_is_no_gallery_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_gallery(tmp_path / "gallery.safetensors")
    (tmp_path / "gallery.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_gallery(tmp_path / "gallery.safetensors")


# ---- charts ----------------------------------------------------------------------------------------------------------


def curve(x: Any, y: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def points(svg: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'points="([^"]*)"', svg)
    pairs = [one.split(",") for one in found.split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_a_line_lies_where_its_axes_say() -> None:
    svg = chart("t", [Line("", 0, curve([0, 5, 10], [0, 1, 2]))], "x")
    # From 58 to 328 across; 156 to 26 down, less 4 % of the range (2 ± 0.08).
    assert points(svg) == [(58.0, 151.2), (193.0, 91.0), (328.0, 30.8)]
    ticks = re.findall(r'text-anchor="(end|middle)">([^<]*)<', svg)
    assert [text for kind, text in ticks if kind == "end"] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert [text for kind, text in ticks if kind == "middle"] == ["0", "2", "4", "6", "8", "10", "x"]
    heights = [float(y) for y in re.findall(r'class="g" d="M58 ([\d.]+)h', svg)]
    assert heights == [151.2, 121.1, 91.0, 60.9, 30.8]


def test_spikes_survive_thinning() -> None:
    y = np.zeros(10_000)
    y[[1234, 9999]] = 5, -7
    x, thin = thinned(curve(np.arange(10_000), y), 50)
    assert len(x) <= 100
    assert x[thin == 5].tolist() == [1234]
    assert x[thin == -7].tolist() == [9999]
    assert (np.diff(x) > 0).all()
    short = curve(np.arange(100), np.arange(100))
    assert thinned(short, 50) is short


@pytest.mark.parametrize("y", [[3, 3, 3], [0, 0], [1e308, -1e308], [1e-320, 2e-320], [1, 1 + 1e-12], [-5e200, 3]])
def test_extreme_values_stay_inside(y: list[float]) -> None:
    svg = chart("t", [Line("", 0, curve(np.arange(len(y)), y))], "x")
    assert all(58 <= a <= 328 and 26 <= b <= 156 for a, b in points(svg))
    assert "nan" not in svg
    assert "inf" not in svg


def test_one_point_is_a_dot() -> None:
    svg = chart("t", [Line("", 2, curve([7], [0.5]))], "x")
    assert '<circle class="s2" cx="193.0" cy="91.0"' in svg


def test_colours_go_round_and_are_dashed_then() -> None:
    svg = chart("<t>", [Line(f"<{i}>", i, curve([0, 1], [0, i])) for i in (0, 7, 8, 16)], "<x>")
    assert re.findall(r'polyline class="([^"]*)"', svg) == ["s0", "s7", "s0 d", "s0"]
    assert svg.count("&lt;") == 4 + 3
    assert "<0>" not in svg


def test_axes_and_labels() -> None:
    assert axis(np.array([0.0, 1.0]))[0] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert labels([0, 20000, 40000]) == ["0", "20\u202f000", "40\u202f000"]
    assert labels([0.0, 1e-9]) == ["0", "1e-09"]
    assert number(0.1 + 0.2) == "0.3"
    for low in (0.0, -3.7, 1e6):
        for width in (1e-3, 0.7, 13.0, 4e5):
            ticks, start, end = axis(np.array([low, low + width]))
            assert 2 <= len(ticks) <= 7
            assert start < low < low + width < end
            assert len(set(labels(ticks))) == len(ticks)


# ---- cells and room --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5", 1.5), ("+3 %", 3), ("−0.25 ± 0.1", -0.25), ("1e-3", 1e-3), ("12\u202f345", 12345), ("8×8", 8), ("3/5", 3),
     ("0.8(1)", 0.8), ("1.2.3", None), ("2024-01-01", None), ("12abc", None), ("", None), ("x 1", None),
     ("9" * 400, None)],
)  # fmt: skip
def test_words_sort_by_the_number_they_begin_with(text: str, value: float | None) -> None:
    assert sort_value(text) == value


def test_cells() -> None:
    assert cell(0.5) == '<td class="n" data-v="0.5">0.5</td>'
    assert cell(10**400) == '<td class="n">100000000000…</td>'
    assert cell("<b>") == "<td>&lt;b&gt;</td>"
    assert cell(None) == cell("") == "<td>–</td>"


def test_room_is_counted_in_bytes() -> None:
    budget = Budget(10)
    assert budget.take("x", "ééé") == "ééé"
    assert budget.left == 4
    assert budget.take("x", "abc", keep=2) == ""
    assert budget.take("x", "abc", keep=1) == "abc"
    assert budget.take("y", "ab") == ""
    assert budget.dropped == {"x": 1, "y": 1}


# ---- pictures --------------------------------------------------------------------------------------------------------


def decoded(uri: str) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", uri).groups()  # type: ignore[union-attr]
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.format == kind.upper()
    return picture


def test_an_overlay_is_clear_where_nothing_is_selected() -> None:
    mask, region = np.zeros((2, 8, 16), np.bool_)
    mask[:, 8:], region[2:6, 2:6] = True, True
    picture = decoded(overlay(mask, region)).convert("RGBA")
    assert picture.size == (288, 144)
    values = np.asarray(picture)
    assert values[72, 12, 3] == 0  # neither
    assert tuple(values[72, 220]) == (255, 140, 0, 96)  # inside of the mask
    assert tuple(values[72, 145]) == (255, 140, 0, 255)  # its border
    assert tuple(values[72, 36]) == (64, 224, 208, 255)  # the region's border
    assert values[72, 72, 3] == 0  # its inside
    plain = np.asarray(decoded(overlay(None, region)).convert("RGBA"))
    assert plain[72, 220, 3] == 0
    assert tuple(plain[72, 36]) == (64, 224, 208, 255)


@pytest.mark.parametrize(("shape", "size", "kind"), [((1, 8, 16), (16, 8), "PNG"), ((3, 300, 200), (96, 144), "JPEG")])
def test_small_images(shape: tuple[int, int, int], size: tuple[int, int], kind: str) -> None:
    image = np.full(shape, 100, np.uint8)
    image[0] = 200
    picture = decoded(small_image(image))
    assert (picture.size, picture.format) == (size, kind)
    expected = (200, 100, 100) if shape[0] == 3 else 200
    np.testing.assert_allclose(np.array(picture.getpixel((3, 3))), expected, atol=3)


def test_figures_are_drawn_anew(tmp_path: Path) -> None:
    clear = np.zeros((30, 40, 4), np.uint8)
    clear[:, 20:] = 10, 20, 30, 255
    Image.fromarray(clear).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.write(b"<script>hidden at the end</script>")
    uri, width, height = embedded(tmp_path / "a.png", 1000)
    picture = decoded(uri)
    assert (picture.size, width, height) == ((40, 30), 40, 30)
    # What is clear becomes paper: charts are drawn for it.
    assert [picture.convert("RGB").getpixel((x, 5)) for x in (5, 30)] == [(255, 255, 255), (10, 20, 30)]
    assert len(base64.b64decode(uri.split(",")[1])) < (tmp_path / "a.png").stat().st_size
    assert embedded(tmp_path / "a.png", 20)[1:] == (20, 15)
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    assert decoded(embedded(tmp_path / "b.png", 1000)[0]).format == "JPEG"


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ConfigurationError, match="bomb"):
        embedded(tmp_path / "bomb.png", 1000)
    Image.new("1", (9_000, 9_000)).save(tmp_path / "large.png")
    with pytest.raises(ConfigurationError, match="9000×9000"):
        embedded(tmp_path / "large.png", 1000)
    Image.new("RGB", (9, 9)).save(tmp_path / "jpeg.png", format="JPEG")
    with pytest.raises(ConfigurationError, match="not readable as PNG"):
        embedded(tmp_path / "jpeg.png", 1000)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        embedded(tmp_path / "gone.png", 1000)
