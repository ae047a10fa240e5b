import concurrent.futures
import dataclasses
import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from picture_files import animated, png_16_bit_rgb
from PIL import Image, ImageOps

from maskaug.envs.errors import ConfigurationError, ImageError
from maskaug.envs.images import Reading, fit_region, read_fitted, read_grey, read_mask, resize, resize_mask


def ramp(h: int = 20, w: int = 30) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return (np.arange(h * w).reshape(h, w) % 251).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_grey_values_are_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(ramp()).save(path)
    read = read_grey(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, ramp())


def test_colour_with_equal_channels_is_that_grey(tmp_path: Path) -> None:
    Image.fromarray(ramp()).convert("RGB").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), ramp())


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (255, 0, 0), 76),
        ("RGBA", (200, 200, 200, 255), 200),
        ("RGBA", (200, 200, 200, 0), 0),
        ("LA", (200, 0), 0),
        ("1", 1, 255),
        ("CMYK", (0, 0, 0, 255), 0),
    ],
)
def test_modes_become_grey_as_documented(tmp_path: Path, mode: str, colour: object, expected: int) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (10, 9), colour).save(path)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_grey(path), np.full((9, 10), expected))


def test_palette_means_its_colours_and_not_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((9, 9), np.uint8), "P")
    image.putpalette([10, 10, 10] * 256)
    image.save(tmp_path / "a.png")
    assert (read_grey(tmp_path / "a.png") == 10).all()
    assert read_mask(tmp_path / "a.png").all()
    image.save(tmp_path / "b.png", transparency=b"\x00")
    assert (read_grey(tmp_path / "b.png") == 0).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), np.rot90(ramp(), -1))


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0])).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is no picture", "not a picture"),
        (picture()[:1500], "truncated"),
        (picture("JPEG")[:1500], "truncated or damaged"),
        (picture("TIFF")[:1500], "truncated"),
        (picture(size=(64, 7)), "at least 8 a side"),
        (deep(), "more than 8 bits"),
        (png_16_bit_rgb(), "more than 8 bits"),
        (animated("GIF"), "animated or has several pages"),
        (animated("TIFF"), "animated or has several pages"),
        (animated("PNG"), "animated or has several pages"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad one.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read_grey(path)
    assert caught.value.path == str(path)
    assert "bad one.png" in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_grey(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_grey(tmp_path)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_bombs_are_errors_and_not_warnings(tmp_path: Path, side: int) -> None:
    # 100 million pixels make Pillow warn, 400 million make it raise; warnings are errors in this suite.
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="64000000"):
        read_grey(tmp_path / "a.png")
    Image.new("1", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="more than 50"):
        read_grey(tmp_path / "b.png", max_pixels=50)


@pytest.mark.parametrize("inside", [1, 255])
def test_masks_are_true_where_not_zero(tmp_path: Path, inside: int) -> None:
    mask = ramp() > 100
    Image.fromarray(mask.astype(np.uint8) * np.uint8(inside)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(inside)).convert("RGB").save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png"), mask)


def test_deep_and_one_bit_masks_are_read_and_jpeg_masks_refused(tmp_path: Path) -> None:
    mask = ramp() > 100
    Image.fromarray(mask.astype(np.uint16) * 4000).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), mask)
    (tmp_path / "c.png").write_bytes(picture("JPEG"))
    with pytest.raises(ImageError, match="JPEG"):
        read_mask(tmp_path / "c.png")


def test_resize_averages_where_it_shrinks_and_keeps_constants() -> None:
    image = np.zeros((4, 4), np.uint8)
    image[:2, :2] = [[0, 40], [80, 120]]
    assert resize(image, 2).tolist() == [[60, 0], [0, 0]]
    for size in (5, 64, (3, 40)):
        out = resize(np.full((10, 20), 77, np.uint8), size)
        assert out.dtype == np.uint8
        assert out.shape == ((size, size) if isinstance(size, int) else size)
        assert (out == 77).all()


def test_resized_masks_follow_half_coverage_and_never_vanish() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[:32, :] = True
    assert resize_mask(mask, 8).sum() == 32
    assert resize_mask(mask, 128).mean() == pytest.approx(0.5, abs=0.01)
    tiny = np.zeros((512, 512), np.bool_)
    tiny[100, 300] = True
    small = resize_mask(tiny, 64)
    assert small.sum() == 1
    assert small[12, 37]
    assert not resize_mask(np.zeros((99, 99), np.bool_), 64).any()


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"size": 0}, "size=0 must be an integer of at least 1"),
        ({"size": 6.5}, "size=6.5 must be"),
        ({"channels": 2}, "channels=2 .* use 1"),
        ({"channels": True}, "channels=True"),
        ({"fit": "pad"}, "fit='pad' is unknown; use one of stretch, letterbox, crop"),
        ({"window": "soft"}, "window='soft' is no window; use two numbers"),
        ({"window": "1,2,3"}, "is no window"),
        ({"window": (5, 5)}, "low must be less than high"),
        ({"window": (0, float("nan"))}, "both finite"),
        ({"window": "-inf,3"}, "both finite"),
        ({"window": 7}, "is no window"),
        ({"frame": -1}, "frame=-1 must be an integer of at least 0"),
        ({"max_pixels": 0}, "max_pixels=0 must be"),
    ],
)
def test_readings_that_cannot_be_are_refused(options: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        Reading(**{"size": 16, **options})  # type: ignore[arg-type]


def test_readings_are_equal_hashable_and_json_however_they_are_written() -> None:
    written = [Reading(16, window=w) for w in ("-160,240", (-160, 240), [-160.0, 240.0])]  # type: ignore[arg-type]
    assert len(set(written)) == 1
    assert written[0].window == (-160.0, 240.0)
    assert json.loads(json.dumps(dataclasses.asdict(written[0])))["window"] == [-160, 240]
    assert Reading(np.int64(16)) == Reading(16)  # type: ignore[arg-type]
    json.dumps(dataclasses.asdict(Reading(np.int64(16), window="minmax")))  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_the_colours_or_their_luma(tmp_path: Path, channels: int) -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[:, :8], rgb[:, 8:] = (255, 0, 0), (10, 20, 30)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    read, shape = read_fitted(tmp_path / "a.png", Reading(16, channels))
    assert (read.shape, shape) == ((channels, 16, 16), (16, 16))
    assert read[:, 0, 0].tolist() == ([76] if channels == 1 else [255, 0, 0])
    assert read[:, 0, 15].tolist() == ([18] if channels == 1 else [10, 20, 30])
    Image.fromarray(ramp(16, 16)).save(tmp_path / "b.png")
    assert (read_fitted(tmp_path / "b.png", Reading(16, channels))[0] == ramp(16, 16)).all()


def test_max_pixels_is_the_limit_of_read_fitted(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    read_fitted(tmp_path / "a.png", Reading(16, max_pixels=600))
    with pytest.raises(ImageError, match="20 × 30 pixels, more than 599"):
        read_fitted(tmp_path / "a.png", Reading(16, max_pixels=599))


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("h", "w"), [(100, 60), (60, 100), (101, 61), (33, 97), (20, 21), (9, 64)])
@pytest.mark.parametrize("size", [32, 48, 51, 224])
def test_a_picture_and_its_region_land_in_the_same_place(
    tmp_path: Path, fit: str, orientation: int, h: int, w: int, size: int
) -> None:
    region = np.zeros((h, w), np.bool_)
    # Left and above of the middle, so that a mirrored or a shifted one would be seen.
    region[h // 4 : h // 2, int(w * 0.3) : int(w * 0.5)] = True
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(region) if orientation == 6 else region
    Image.fromarray(stored.astype(np.uint8) * 255).save(tmp_path / "a.png", exif=exif)
    reading = Reading(size, fit=fit)
    read, shape = read_fitted(tmp_path / "a.png", reading)
    assert shape == (h, w)
    inside = fit_region(region, reading)
    assert inside.shape == (size, size)
    # A picture of the region itself: white where the region is, but for pixels that are just half covered.
    clear = np.abs(read[0].astype(int) - 127) > 3
    np.testing.assert_array_equal(inside[clear], read[0][clear] > 127)
    assert clear.mean() > 0.9
    # And where it should be: its centre of mass, by the fit's own formula.
    longest, shortest = max(h, w), min(h, w)
    if fit == "crop":
        ys, xs = np.indices((h, w))
        region &= (np.abs(ys + 0.5 - h / 2) < shortest / 2) & (np.abs(xs + 0.5 - w / 2) < shortest / 2)
    across = {"stretch": (h, w), "letterbox": (longest, longest), "crop": (shortest, shortest)}[fit]
    for axis, length in enumerate((h, w)):
        if not region.any():
            break
        centre = (np.argwhere(region)[:, axis].mean() + 0.5 - length / 2) * size / across[axis] + size / 2
        assert np.argwhere(inside)[:, axis].mean() + 0.5 == pytest.approx(centre, abs=max(1, size / across[axis]))
    assert inside.any() == region.any()


def test_letterbox_keeps_all_with_black_borders_and_crop_the_middle(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 40), 200, np.uint8)).save(tmp_path / "a.png")
    read, _ = read_fitted(tmp_path / "a.png", Reading(20, fit="letterbox"))
    assert (read[0, 7:12] == 200).all()
    assert read.sum() == 5 * 20 * 200
    wide = np.repeat(np.arange(40, dtype=np.uint8), 10).reshape(40, 10).T
    Image.fromarray(wide).save(tmp_path / "b.png")
    read, _ = read_fitted(tmp_path / "b.png", Reading(10, fit="crop"))
    np.testing.assert_array_equal(read[0], wide[:, 15:25])
    left = wide < 12
    assert not fit_region(left, Reading(10, fit="crop")).any()
    assert fit_region(left, Reading(10, fit="letterbox")).any()
    # However thin, nothing vanishes that is not cut away.
    line = np.zeros((8, 4000), np.bool_)
    line[3, 1999] = True
    for fit in ("stretch", "letterbox", "crop"):
        assert fit_region(line, Reading(16, fit=fit)).any()


def test_windows_do_not_touch_ordinary_pictures(tmp_path: Path) -> None:
    Image.fromarray(ramp(16, 16)).save(tmp_path / "a.png")
    read, _ = read_fitted(tmp_path / "a.png", Reading(16, window=(100, 110)))
    np.testing.assert_array_equal(read[0], ramp(16, 16))


def test_all_orientations_are_upright(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(ramp()).save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), np.asarray(ImageOps.exif_transpose(image)))


def test_threads_leave_the_warnings_filters_as_they_were(tmp_path: Path) -> None:
    # An odd EXIF block makes Pillow warn; warnings are errors here.
    Image.fromarray(ramp()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0rubbish")
    before = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for read in pool.map(read_grey, [tmp_path / "a.png"] * 200):
            np.testing.assert_array_equal(read, ramp())
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)


def test_no_text_of_a_file_reaches_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    Image.fromarray(ramp()).save(tmp_path / "a.tif", tiffinfo={270: "Zweifelstein"})
    caplog.clear()
    read_grey(tmp_path / "a.tif")
    assert "Zweifelstein" not in caplog.text
    with Image.open(tmp_path / "a.tif"):
        assert "Zweifelstein" in caplog.text


@pytest.mark.parametrize(("name", "seen"), [("a.png", True), ("a.tif", False), ("a.bmp", False), ("a.jpg", False)])
def test_of_zeroed_bytes_only_png_tells(tmp_path: Path, name: str, seen: bool) -> None:
    # What the module's text says of its limits; should a decoder learn more, that text has to.
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    whole = read_grey(tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4] = bytes(4)
    (tmp_path / name).write_bytes(data)
    if seen:
        with pytest.raises(ImageError):
            read_grey(tmp_path / name)
    else:
        assert (read_grey(tmp_path / name) != whole).any()
