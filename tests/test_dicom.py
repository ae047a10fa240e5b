import builtins
import contextlib
import logging
import os
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from picture_files import encoded, grey_ramp
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from maskaug.envs.errors import ImageError
from maskaug.envs.images import Reading, read_fitted, read_grey, read_mask

SECRET = "Zweifelstein"


def dataset(pixels: npt.NDArray[Any], photometric: str = "MONOCHROME2", **tags: Any) -> Dataset:
    """A DICOM dataset of (rows, columns[, 3]) pixels, or (frames, …) with NumberOfFrames among the tags."""
    data = Dataset()
    frames = int(tags.get("NumberOfFrames", 1))
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    data.Rows, data.Columns = shape[:2]
    data.SamplesPerPixel = 3 if len(shape) == 3 else 1
    if len(shape) == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    return data


def write(path: Path, data: Dataset, syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> Path:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.1")
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    if preamble:
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    else:
        del data.file_meta
        pydicom.dcmwrite(path, data, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return path


def window(x: npt.ArrayLike, low: float, high: float) -> npt.NDArray[np.int64]:
    scaled = np.clip((np.asarray(x, np.float64) - low) / (high - low) * 255, 0, 255)
    return np.rint(scaled).astype(np.int64)


def deep(dtype: str = "<u2", scale: int = 6) -> npt.NDArray[Any]:
    return (grey_ramp().astype(np.int64) * scale - (300 if dtype[1] == "i" else 0)).astype(dtype)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("dtype", "bits"), [("u2", 16), ("u2", 12), ("u2", 11), ("i2", 16), ("i2", 12), ("u4", 32)])
def test_values_of_all_kinds_are_those_that_were_stored(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    x = deep(order + dtype)
    path = write(tmp_path / "a", dataset(x, BitsStored=bits, HighBit=bits - 1), syntax)
    read, shape = read_fitted(path, Reading(20, window=(-100, 900)))
    assert shape == x.shape
    np.testing.assert_array_equal(read_grey(path), window(x, x.min(), x.max()))
    square = write(tmp_path / "b", dataset(x[:, :20].copy(), BitsStored=bits, HighBit=bits - 1), syntax)
    read, _ = read_fitted(square, Reading(20, window=(-100, 900)))
    np.testing.assert_array_equal(read[0], window(x[:, :20], -100, 900))


def test_unused_bits_are_not_looked_at_and_used_ones_may_lie_high(tmp_path: Path) -> None:
    x = deep()
    low = dataset(x | 0xF000, BitsStored=12, HighBit=11)
    high = dataset((x << 4) | 0xF, BitsStored=12, HighBit=15)
    for name, data in (("low", low), ("high", high)):
        np.testing.assert_array_equal(read_grey(write(tmp_path / name, data)), window(x, x.min(), x.max()))


def test_eight_bits_and_no_mark_at_the_start(tmp_path: Path) -> None:
    x = grey_ramp()
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        path = write(tmp_path / f"{syntax[-1]}.DCM", dataset(x), syntax, preamble=False)
        np.testing.assert_array_equal(read_grey(path), window(x, x.min(), x.max()))
    path.rename(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="not a picture of a known format"):
        read_grey(tmp_path / "nothing.png")


def test_a_picture_named_dcm_is_read_as_the_picture_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(encoded(grey_ramp(), "PNG"))
    np.testing.assert_array_equal(read_grey(tmp_path / "a.dcm"), grey_ramp())


def test_monochrome1_is_white_where_it_is_zero(tmp_path: Path) -> None:
    x = deep()
    path = write(tmp_path / "a", dataset(x, "MONOCHROME1"))
    np.testing.assert_array_equal(read_grey(path), 255 - window(x, x.min(), x.max()))
    read, _ = read_fitted(write(tmp_path / "b", dataset(x[:, :20].copy(), "MONOCHROME1")), Reading(20, window=(0, 600)))
    np.testing.assert_array_equal(read[0], 255 - window(x[:, :20], 0, 600))


def test_windows_are_in_rescaled_units_and_ours_comes_first(tmp_path: Path) -> None:
    x = deep("<i2")
    tags: dict[str, Any] = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": ["-500", "40"]}
    path = write(tmp_path / "a", dataset(x[:, :20].copy(), **tags, WindowWidth=["1000", "80"]))
    hu = x[:, :20] * 2.0 - 1000
    # PS3.3 C.11.2.1.2.1: black up to c - .5 - (w - 1) / 2, white from there w - 1 on.
    np.testing.assert_array_equal(read_grey(path), window(hu, -500.5 - 499.5, -500.5 + 499.5))
    for ours, low, high in (((-800.0, 200.0), -800.0, 200.0), ("minmax", hu.min(), hu.max())):
        read, _ = read_fitted(path, Reading(20, window=ours))
        np.testing.assert_array_equal(read[0], window(hu, low, high))


def test_the_three_window_functions(tmp_path: Path) -> None:
    x = deep()
    tags = {"WindowCenter": "700", "WindowWidth": "400"}
    exact = write(tmp_path / "a", dataset(x, **tags, VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_array_equal(read_grey(exact), window(x, 500, 900))
    sigmoid = write(tmp_path / "b", dataset(x, **tags, VOILUTFunction="SIGMOID"))
    np.testing.assert_array_equal(read_grey(sigmoid), np.rint(255 / (1 + np.exp(-4 * (x - 700.0) / 400))))
    threshold = write(tmp_path / "c", dataset(x, WindowCenter="700", WindowWidth="1"))
    np.testing.assert_array_equal(read_grey(threshold), np.where(x > 699.5, 255, 0))
    empty = write(tmp_path / "d", dataset(x, WindowCenter=None, WindowWidth=None))
    np.testing.assert_array_equal(read_grey(empty), window(x, x.min(), x.max()))
    for width, function in (("0", "LINEAR"), ("-5", "LINEAR_EXACT"), ("400", "CUBIC")):
        wrong = write(tmp_path / "e", dataset(x, WindowCenter="700", WindowWidth=width, VOILUTFunction=function))
        with pytest.raises(ImageError, match="window=LOW,HIGH"):
            read_grey(wrong)
        read_fitted(wrong, Reading(20, window="minmax"))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_tables_for_modality_and_window(tmp_path: Path, syntax: str) -> None:
    x = (deep() // 100).astype("<u2")
    table = Dataset()
    table.LUTDescriptor, table.LUTData = (
        [12, 2, 16],
        [0, 7, 900, 4000, 9000, 20000, 30000, 40000, 50000, 60000, 1, 65535],
    )
    for item in ("LUTDescriptor", "LUTData"):
        table[item].VR = "US"
    looked_up = np.array(table.LUTData)[np.clip(x.astype(int) - 2, 0, 11)]
    voi = write(tmp_path / "voi", dataset(x, VOILUTSequence=[table]), syntax)
    np.testing.assert_array_equal(read_grey(voi), window(looked_up, 0, 65535))
    table.ModalityLUTType = "US"
    modality = write(tmp_path / "modality", dataset(x[:, :20].copy(), ModalityLUTSequence=[table]), syntax)
    read, _ = read_fitted(modality, Reading(20, window=(0, 10_000)))
    np.testing.assert_array_equal(read[0], window(looked_up[:, :20], 0, 10_000))
    table.LUTDescriptor = [13, 2, 16]
    with pytest.raises(ImageError, match="damaged"):
        read_grey(write(tmp_path / "short", dataset(x, VOILUTSequence=[table]), syntax))


def test_colour_planar_or_not_and_its_luma(tmp_path: Path) -> None:
    rgb = np.stack([grey_ramp(), 255 - grey_ramp(), grey_ramp()[::-1]], -1)[:, :20].copy()
    plain = write(tmp_path / "a", dataset(rgb, "RGB"))
    planar = write(tmp_path / "b", dataset(rgb, "RGB"))
    data = dataset(rgb, "RGB", PlanarConfiguration=1)
    data.PixelData = np.moveaxis(rgb, 2, 0).tobytes()
    planar = write(tmp_path / "b", data)
    for path in (plain, planar):
        read, _ = read_fitted(path, Reading(20, 3))
        np.testing.assert_array_equal(np.moveaxis(read, 0, 2), rgb)
        luma = rgb @ np.array([0.299, 0.587, 0.114])
        assert np.abs(read_grey(path) - luma).max() < 1
    white = write(tmp_path / "c", dataset(np.full((9, 9, 3), (255, 128, 128), np.uint8), "YBR_FULL"))
    assert (read_fitted(white, Reading(9, 3))[0] == 255).all()
    red = write(tmp_path / "d", dataset(np.full((9, 9, 3), (76, 85, 255), np.uint8), "YBR_FULL"))
    assert np.abs(read_fitted(red, Reading(9, 3))[0].astype(int)[:, 0, 0] - [255, 0, 0]).max() <= 1


def test_palettes_mean_their_colours(tmp_path: Path) -> None:
    x = (grey_ramp() % 4).astype(np.uint8)[:, :20].copy()
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint8)
    tags: dict[str, Any] = {}
    for i, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (colours[:, i].astype("<u2") << 8).tobytes()
    data = dataset(x, "PALETTE COLOR", **tags)
    read, _ = read_fitted(write(tmp_path / "a", data), Reading(20, 3))
    np.testing.assert_array_equal(np.moveaxis(read, 0, 2), colours[x])


def test_frames(tmp_path: Path) -> None:
    frames = np.stack([deep()[:, :20], deep()[::-1, :20]])
    path = write(tmp_path / "a", dataset(frames, NumberOfFrames=2))
    for i in (0, 1):
        read, _ = read_fitted(path, Reading(20, frame=i))
        np.testing.assert_array_equal(read[0], window(frames[i], frames[i].min(), frames[i].max()))
    with pytest.raises(ImageError, match="2 frames"):
        read_grey(path)
    with pytest.raises(ImageError, match="no frame 2: there are 2"):
        read_fitted(path, Reading(20, frame=2))


def test_each_frames_own_rescaling_and_window(tmp_path: Path) -> None:
    frames = np.stack([deep()[:, :20], deep()[:, :20]])

    def group(**parts: dict[str, Any]) -> Dataset:
        result = Dataset()
        for name, tags in parts.items():
            item = Dataset()
            for tag, value in tags.items():
                setattr(item, tag, value)
            setattr(result, name, [item])
        return result

    scaling = [{"RescaleSlope": str(slope), "RescaleIntercept": "0"} for slope in (1, 3)]
    each = [group(PixelValueTransformationSequence=tags) for tags in scaling]
    voi = {"WindowCenter": "600", "WindowWidth": "600", "VOILUTFunction": "LINEAR_EXACT"}
    tags: dict[str, Any] = {
        "SharedFunctionalGroupsSequence": [group(FrameVOILUTSequence=voi)],
        "PerFrameFunctionalGroupsSequence": each,
    }
    path = write(tmp_path / "a", dataset(frames, NumberOfFrames=2, **tags))
    for i, slope in enumerate((1.0, 3.0)):
        read, _ = read_fitted(path, Reading(20, frame=i))
        np.testing.assert_array_equal(read[0], window(frames[i] * slope, 300, 900))


def packed(x: npt.NDArray[Any], codec: Callable[[npt.NDArray[Any]], bytes]) -> Dataset:
    data = dataset(x, "RGB" if x.ndim == 3 else "MONOCHROME2")
    data.PixelData = encapsulate([codec(x)])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    return data


def test_packed_pixels_of_the_decoders_that_are_here(tmp_path: Path) -> None:
    x = deep()[:, :20].copy()
    rle = dataset(x)
    rle.file_meta = FileMetaDataset()
    rle.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    rle.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_grey(write(tmp_path / "rle", rle, RLELossless)), window(x, x.min(), x.max()))
    j2k = packed(x, lambda a: encoded(a, "JPEG2000", no_jp2=True))
    np.testing.assert_array_equal(
        read_grey(write(tmp_path / "j2k", j2k, JPEG2000Lossless)), window(x, x.min(), x.max())
    )
    smooth = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    jpeg = packed(smooth, lambda a: encoded(a, "JPEG", quality=98))
    read = read_fitted(write(tmp_path / "jpeg", jpeg, JPEGBaseline8Bit), Reading(64, window=(0, 255)))[0]
    assert np.abs(read[0].astype(int) - smooth).max() <= 3


def test_packed_frames_that_lie_about_their_size_are_refused(tmp_path: Path) -> None:
    small, large = np.zeros((64, 64), np.uint8), np.zeros((900, 64), np.uint8)
    data = packed(small, lambda a: encoded(large, "JPEG"))
    with pytest.raises(ImageError, match="64 × 64 pixels but not in its JPEG data"):
        read_grey(write(tmp_path / "jpeg", data, JPEGBaseline8Bit))
    big = packed(small, lambda a: encoded(large, "JPEG2000", no_jp2=True))
    with pytest.raises(ImageError, match="not in its JPEG 2000 data"):
        read_grey(write(tmp_path / "j2k", big, JPEG2000Lossless))


@pytest.mark.parametrize(
    ("syntax", "name", "cure"),
    [
        (JPEGLosslessSV1, "JPEG Lossless", "python-gdcm .*under the GPL"),
        (JPEGLSLossless, "JPEG-LS", "pip install pyjpegls"),
    ],
)
def test_a_missing_decoder_is_named(tmp_path: Path, syntax: str, name: str, cure: str) -> None:
    path = write(tmp_path / "a", packed(grey_ramp(), lambda a: b"\xff\xd8\xff\xc3\0\0"), syntax)
    with pytest.raises(ImageError, match=f"packed as {name}, for which no decoder is installed; .*{cure}"):
        read_grey(path)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", dataset(grey_ramp()))
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImageError, match=r"pip install maskaug\[dicom\]"):
        read_grey(path)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_fitted(path, Reading(16, **options))
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    x = deep()
    good = write(tmp_path / "good", dataset(x)).read_bytes()
    bad = tmp_path / "bad.dcm"

    def of(data: Dataset, syntax: str = ExplicitVRLittleEndian) -> str:
        return refused(write(bad, data, syntax))

    assert "truncated" in of(dataset(x, Rows=40))
    assert "more pixels than its Rows" in of(dataset(x, Rows=10))
    assert "more than 64000000" in of(dataset(x, Rows=60000, Columns=60000))
    assert "at least 8 a side" in of(dataset(x[:7].copy()))
    assert "blacken" in of(dataset(x, BurnedInAnnotation="YES"))
    assert "do not fit" in of(dataset(x, BitsStored=12, HighBit=5))
    assert "not read" in of(dataset(x, "ARGB"))
    assert "8" in of(dataset(np.zeros((9, 9, 3), np.uint16), "RGB"))
    assert "deflated" in of(dataset(x), DeflatedExplicitVRLittleEndian)
    assert "unknown way or a video" in of(packed(grey_ramp(), lambda a: b"video"), "1.2.840.10008.1.2.4.100")
    missing = dataset(x)
    del missing.PixelData
    assert "no picture" in of(missing)
    for cut in (200, 400, len(good) - x.nbytes - 4, len(good) - 5):
        bad.write_bytes(good[:cut])
        assert "DICOM" in refused(bad)
    with pytest.raises(ImageError, match="values are no mask"):
        read_mask(tmp_path / "good")


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", dataset(np.zeros((2000, 2000), np.uint16)), DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr(zlib, "decompress", lambda *a, **k: pytest.fail("inflated"))
    monkeypatch.setattr(zlib, "decompressobj", lambda *a, **k: pytest.fail("inflated"))
    assert "deflated" in refused(path)


def stuffed(x: npt.NDArray[Any]) -> Dataset:
    """A dataset with a name, or something with that name in it, in as many fields as there are."""
    data = dataset(x)
    texts = {"PN", "LO", "SH", "LT", "ST", "UT", "UC", "CS", "AE"}
    for tag, entry in DicomDictionary.items():
        if entry[0] in texts and (tag >> 16) in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0040) and not entry[3]:
            data.add_new(tag, entry[0], SECRET)
    for name in ("PatientBirthDate", "StudyDate", "PatientAge", "StudyTime"):
        data.add_new(name, "LO", SECRET)
    return data


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Rows",
        "WindowCenter",
        "RescaleSlope",
        "PhotometricInterpretation",
        "NumberOfFrames",
        "BitsStored",
        "PixelData",
    ],
)
def test_nothing_of_the_patient_gets_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = stuffed(deep())
        if name == "PixelData":
            data.PixelData = SECRET.encode()
        elif name:
            data.add_new(name, "LO", SECRET)
        path = write(tmp_path / "a.dcm", data)
        assert SECRET.encode() in path.read_bytes()
    caplog.clear()
    expected = pytest.raises(ImageError) if name else contextlib.nullcontext()
    with warnings.catch_warnings(record=True) as caught, expected as failure:
        warnings.simplefilter("always")
        read_fitted(path, Reading(16))
    told = ""
    if failure is not None:
        error = failure.value
        told = "".join(traceback.format_exception(error)) + repr(error)
        assert error.__context__ is None
        assert error.__cause__ is None
    out = "".join(capfd.readouterr())
    for text in (told, caplog.text, "".join(str(w.message) for w in caught), out):
        assert SECRET not in text
    assert not caught


def test_pydicom_is_only_loaded_for_dicom_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(grey_ramp(), "PNG"))
    code = (
        "import sys; from maskaug.envs.images import read_grey; read_grey(sys.argv[1]); "
        "assert 'pydicom' not in sys.modules and 'torch' not in sys.modules"
    )
    pid = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code, str(tmp_path / "a.png")])
    assert pid == 0
