import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskaug.envs.errors import ImageError
from maskaug.envs.images import read_grey, read_mask, resize, resize_mask


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


def png_16_bit_rgb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\x00" + b"\x12\x34" * 27) * 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0])).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(file, "PNG")
    return file.getvalue()


def animated(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("L", (9, 9), i) for i in (0, 100)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
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
