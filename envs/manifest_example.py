"""A made-up folder with a manifest, for tests, for the documentation, and for trying things out."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.envs.errors import ConfigurationError
from maskaug.envs.images import resize, resize_mask
from maskaug.envs.manifest_rows import COLUMNS
from maskaug.envs.synthetic import render

#: How the pictures are saved, in turn.
_FORMATS = (("png", "L"), ("png", "RGB"), ("jpg", "L"), ("tif", "L"))
#: Of each class's patients, which part they belong to, in turn.
_PARTS = ("train", "val", "test", "train", "train", "train")


def write_tree(root: Path, manifest: str, labels: tuple[str, str], n: int, seed: int, dicom: bool) -> Path:
    """Write `root`, a folder with pictures, masks and a manifest; see `maskaug.envs.manifest.write_example`."""
    if n < 30:
        raise ConfigurationError(f"n={n} pictures are too few for two classes in three splits; use at least 30")
    if root.exists():
        raise ConfigurationError(f"{root} exists already, and would be mixed with the example; choose another folder")
    if dicom:
        _need_pydicom()
    rng = np.random.default_rng(np.random.SeedSequence([seed, n]))
    pictures, classes, regions = render("radiograph", "medium", 160, seed, np.arange(n))
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rows: list[dict[str, str]] = []
    patient = 0
    for label in (0, 1):
        numbers = np.flatnonzero(classes == label).tolist()
        turn = 0
        while numbers:
            count = int(rng.integers(1, 4))
            several, numbers = numbers[:count], numbers[count:]
            patient += 1
            for i, number in enumerate(several):
                h, w = (int(side) for side in rng.integers(160, 321, 2))
                picture = resize(pictures[number], (h, w))
                path = f"images/{number:04d}" + _save(root / f"images/{number:04d}", picture, number, dicom)
                row = {
                    "path": path,
                    "label": labels[label],
                    "patient": f"P{patient:03d}",
                    "study": f"S{i // 2 + 1}",
                    "split": _PARTS[turn % len(_PARTS)],
                    "sha256": hashlib.sha256((root / path).read_bytes()).hexdigest(),
                }
                if label:
                    row["region"] = _region(root, resize_mask(regions[number], (h, w)), number)
                rows.append(row)
            turn += 1
    with (root / manifest).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["path"]))
    return root


def _region(root: Path, region: npt.NDArray[np.bool_], number: int) -> str:
    if number % 2:
        mask = f"masks/{number:04d}.png"
        Image.fromarray(region.astype(np.uint8) * 255).save(root / mask)
        return mask
    (ys, xs) = np.nonzero(region)
    return f"{xs.min()} {ys.min()} {xs.max() + 1} {ys.max() + 1}"


def _save(stem: Path, picture: npt.NDArray[np.uint8], number: int, dicom: bool) -> str:
    """Save a picture, and return the suffix that it has got."""
    if dicom and number % 5 == 4:
        _save_dicom(stem.with_suffix(".dcm"), picture)
        return ".dcm"
    suffix, mode = _FORMATS[number % len(_FORMATS)]
    Image.fromarray(picture).convert(mode).save(stem.with_suffix(f".{suffix}"))
    return f".{suffix}"


def _need_pydicom() -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise ConfigurationError("dicom=True needs pydicom; pip install 'maskaug[dicom]', or leave it out") from None


def _save_dicom(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    # 12 bits in 16, as radiographs have them, and nothing about a patient.
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = SecondaryCaptureImageStorage
    # From the pixels, so that the same seed writes the same file.
    data.SOPInstanceUID = generate_uid(entropy_srcs=[picture.tobytes().hex()])
    data.Rows, data.Columns = picture.shape
    data.PhotometricInterpretation = "MONOCHROME2"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = (picture.astype("<u2") << 4).tobytes()
    data.save_as(path, enforce_file_format=True)
