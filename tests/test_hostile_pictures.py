"""Every file of `picture_corpus.CASES` becomes what is documented or is refused, in bounded memory; and fuzzing."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_corpus import CASES, Case
from picture_files import colour_ramp, encoded, grey_ramp, png
from PIL import Image, ImageFile
from test_dicom import dataset, write

from maskaug.envs.errors import ConfigurationError, ImageError
from maskaug.envs.images import Reading, read_fitted, read_grey, read_mask

#: Peak memory of the process that reads them all: VmHWM, as ru_maxrss begins with the parent's.
MOST_MB = 500


def write_case(folder: Path, number: int, case: Case) -> Path:
    path = folder / str(number) / case.name
    path.parent.mkdir()
    path.write_bytes(case.make())
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    return {name: write_case(folder, i, case) for i, (name, case) in enumerate(CASES.items())}


@pytest.mark.parametrize("name", CASES)
def test_each_file_is_decoded_as_documented_or_refused_by_name(corpus: dict[str, Path], name: str) -> None:
    case, path = CASES[name], corpus[name]
    if isinstance(case.expected, str):
        with pytest.raises(ImageError, match=case.expected) as caught:
            read_fitted(path, Reading(24, **case.options))
        assert caught.value.path == str(path)
        # The cause and, after a semicolon or a question, the cure; all in one printable line.
        assert re.search(r"; |\?", caught.value.reason), caught.value.reason
        assert str(caught.value).isprintable()
        return
    expected = case.expected()
    # Read in its own size, which only a square can be: padded by letterbox to its longer side.
    side = max(expected.shape)
    read, shape = read_fitted(path, Reading(side, fit="letterbox", **case.options))
    assert shape == expected.shape
    top, left = ((side - length) // 2 for length in shape)
    inner = read[0, top : top + shape[0], left : left + shape[1]].astype(np.int64)
    assert np.abs(inner - expected).max() <= case.tolerance


READ_ALL = """
import json, os, re, sys, threading, warnings
from maskaug.envs.errors import ImageError
from maskaug.envs.images import Reading, read_fitted
warnings.simplefilter("error")
filters, told = list(warnings.filters), []
warnings.showwarning = lambda *a, **k: told.append(str(a[0]))
results = []
for path, options in json.loads(sys.stdin.read()):
    try:
        results.append(read_fitted(path, Reading(64, 3, **options))[0].shape == (3, 64, 64))
    except ImageError:
        results.append(False)
with open("/proc/self/status") as status:
    peak = int(re.search("VmHWM:\\s+(\\d+)", status.read())[1])
json.dump({
    "results": results, "told": told, "same filters": warnings.filters == filters,
    "threads": threading.active_count(), "open": [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{n}")],
    "torch": "torch" in sys.modules, "MB": peak * 1024 / 1e6,
}, sys.stdout)
"""


def read_all(files: list[tuple[Path, dict[str, object]]]) -> dict[str, object]:
    listed = json.dumps([(str(path), options) for path, options in files])
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL], input=listed, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stderr == ""
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_whole_corpus_in_one_process(corpus: dict[str, Path]) -> None:
    told = read_all([(corpus[name], case.options) for name, case in CASES.items()])
    assert told["results"] == [not isinstance(case.expected, str) for case in CASES.values()]
    assert told["told"] == []
    assert told["same filters"]
    assert told["threads"] == 1
    opened = told["open"]
    assert isinstance(opened, list)
    assert not any(str(path) in opened for path in corpus.values())
    assert not told["torch"]
    assert isinstance(told["MB"], float)
    assert told["MB"] <= MOST_MB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGBA", "PNG"),
        ("I;16", "TIFF"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("RGB", "PNG"), ("RGB", "JPEG"), ("CMYK", "TIFF"))),
    ],
)
def test_64_million_pixels_are_read_in_500_mb(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / "large"
    if kind == "PNG":
        pixel = bytes((9, 99, 199, 128)[: len(mode)])
        path.write_bytes(png(8000, 8000, 8, 6 if mode == "RGBA" else 2, (b"\0" + pixel * 8000) * 8000))
    else:
        image = Image.new(mode, (8000, 8000), 99 if mode == "I;16" else (9, 99, 199, 128)[: len(mode)])
        image.save(path, kind)
    told = read_all([(path, {"window": "minmax", "fit": "crop"})])
    assert told["results"] == [True]
    assert isinstance(told["MB"], float)
    assert told["MB"] <= MOST_MB


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to_pipe.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket.png")
        for name, reason in (
            ("pipe.png", "pipe, socket or device"),
            ("to_pipe.png", "pipe, socket or device"),
            ("socket.png", "pipe, socket or device"),
            ("/dev/zero", "pipe, socket or device"),
            ("/proc/self/mem", "empty"),
            ("loop.png", "cannot be opened"),
            ("nowhere.png", "no such file"),
            ("x" * 300 + ".png", "cannot be opened"),
            ("nul\0.png", "cannot be opened"),
            (".", "is a folder"),
            ("", "no such file"),
            ("pipe.png/a.png", "cannot be opened"),
        ):
            for read in (read_grey, read_mask):
                with pytest.raises(ImageError, match=reason):
                    read(tmp_path / name if name else "")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(grey_ramp(), "PNG"))

    # The tests may run as root, whom no permission stops.
    def denied(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ImageError, match="may not be read by this user; change its permissions"):
        read_grey(tmp_path / "a.png")


def test_reading_truncated_pictures_is_never_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(grey_ramp(200, 300), "JPEG")[:-400])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigurationError, match="LOAD_TRUNCATED_IMAGES"):
        read_grey(tmp_path / "a.jpg")


def test_pillows_own_limit_is_named_where_it_is_the_lower_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 1, 0, b"\0"))
    with pytest.raises(ImageError, match=r"raise PIL\.Image\.MAX_IMAGE_PIXELS too"):
        read_grey(tmp_path / "a.png", max_pixels=10**9)


def dicom_bytes(folder: Path) -> bytes:
    return write(folder / "valid", dataset(grey_ramp(40, 60).astype("<u2") * 9)).read_bytes()


KINDS = ("PNG", "TIFF", "TIFF-LZW", "GIF", "BMP", "WEBP", "WEBP-LOSSY", "APNG", "DICOM")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    return {
        "PNG": encoded(noise, "PNG"),
        "TIFF": encoded(noise, "TIFF"),
        "TIFF-LZW": encoded(noise, "TIFF", compression="tiff_lzw"),
        "GIF": encoded(noise[..., 0], "GIF"),
        "BMP": encoded(noise, "BMP"),
        "WEBP": encoded(noise, "WEBP", lossless=True),
        "WEBP-LOSSY": encoded(colour_ramp(40, 60), "WEBP"),
        "APNG": encoded(noise, "PNG", save_all=True, append_images=[Image.fromarray(noise[::-1])]),
        "DICOM": dicom_bytes(tmp_path_factory.mktemp("dicom")),
    }


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file"


FUZZ = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def whole(kind: str, path: Path) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], tuple[int, int]]:
    return read_fitted(path, Reading(16, 3, frame=1 if kind == "APNG" else None, window="minmax"))


@pytest.mark.parametrize("kind", KINDS)
@FUZZ
@given(data=st.data())
def test_no_truncated_file_gives_a_partial_picture(
    valid: dict[str, bytes], scratch: Path, kind: str, data: st.DataObject
) -> None:
    content = valid[kind]
    scratch.write_bytes(content)
    complete, shape = whole(kind, scratch)
    scratch.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        read, size = whole(kind, scratch)
    except ImageError:
        return
    # What was cut off was no pixel: an end mark, a table behind them.
    assert size == shape
    np.testing.assert_array_equal(read, complete)


@pytest.mark.parametrize("kind", KINDS)
@FUZZ
@given(data=st.data())
def test_changed_bytes_never_raise_anything_else(
    valid: dict[str, bytes], scratch: Path, kind: str, data: st.DataObject
) -> None:
    content = bytearray(valid[kind])
    # Half of the changes hit the header, where they do most.
    places = st.one_of(st.integers(0, min(400, len(content) - 1)), st.integers(0, len(content) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = value
    scratch.write_bytes(content)
    try:
        read, (h, w) = whole(kind, scratch)
    except ImageError:
        return
    assert read.shape == (3, 16, 16)
    assert read.dtype == np.uint8
    assert min(h, w) >= 8
