"""LGG, magnetic resonance images of brains with a low-grade glioma: the folder `kaggle_3m` → `ImageDataset`.

Buda, Saha, Mazurowski, "Association of genomic subtypes of lower-grade gliomas with shape features automatically
extracted by a deep learning algorithm", Computers in Biology and Medicine 109, 2019. CC BY-NC-SA 4.0. A patient is a
folder of slices, a slice is an RGB file whose planes are three sequences of one place (before contrast, FLAIR, after
contrast; of patients without one of them FLAIR stands in for it), and a mask outlines the tumour. Neighbouring slices
are nearly the same picture, so that whole patients are split.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.folders import permitted
from maskaug.envs.images import MAX_PIXELS, Reading, resize, resize_mask
from maskaug.envs.listing import Entry, Listing, Problem
from maskaug.envs.loading import load_listing
from maskaug.envs.synthetic import render

CLASSES = ("no tumour", "tumour")
#: The place of each sequence among a file's red, green and blue planes.
CHANNELS = {"pre": 0, "flair": 1, "post": 2}
FOLDER = "kaggle_3m"
LICENCE = "CC BY-NC-SA 4.0"
CITATION = (
    "M. Buda, A. Saha, M. A. Mazurowski. Association of genomic subtypes of lower-grade gliomas with shape features "
    "automatically extracted by a deep learning algorithm. Computers in Biology and Medicine 109, 2019."
)

# The archive holds the set twice, once in a folder of its own; people unpack it into a folder that has its name, too.
_BELOW = (FOLDER, f"{FOLDER}/{FOLDER}", "lgg-mri-segmentation", f"lgg-mri-segmentation/{FOLDER}")
_SUFFIXES = (".tif", ".tiff")
_PATIENT = re.compile(r"(TCGA_[A-Z0-9]{2}_[A-Z0-9]{4})_\d{8}")
_FILE = re.compile(rf"({_PATIENT.pattern})_(\d{{1,6}})(_mask)?\.tiff?", re.IGNORECASE)
_TREE = f"""expected
  {FOLDER}/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif, TCGA_CS_4941_19960909_1_mask.tif, …
  {FOLDER}/TCGA_CS_4942_19970222/…
  {FOLDER}/data.csv (may be left out)"""


@dataclasses.dataclass(frozen=True)
class _Patient:
    """One copy of a patient's folder; slices and masks by number."""

    folder: Path
    slices: dict[int, Path]
    masks: dict[int, Path]
    problems: list[Problem]

    @property
    def numbers(self) -> list[int]:
        return sorted(self.slices.keys() | self.masks.keys())

    @property
    def id(self) -> str:
        """Without the date of the examination."""
        return self.folder.name.rpartition("_")[0]


def load_lgg(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    channel: str = "flair",
    fit: str = "stretch",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> ImageDataset:
    """All slices of the LGG folder, unsplit, decoded once into the cache.

    Args:
        root: see `list_lgg`.
        image_size: S, height and width in pixels.
        channels: 1, or 3: with one sequence its values three times, with channel="all" the three sequences.
        seed: of nothing here; a split by patients is drawn from it later.
        channel: see `list_lgg`.
        fit: how slices that are not square become so, see `Reading`; the original ones are square.
        max_pixels: slices with more than this are refused.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only, sorted by patient and number; labels 0 (no tumour) and 1 (tumour),
        whether the slice's own mask marks anything, before it is resized or cut; regions, the tumours; groups, one
        number a patient.

    Raises:
        DatasetError: see `list_lgg`; or no slice is there, or a mask has another size than its slice. A slice without a
            mask and a mask without a slice are left out with a `UserWarning`.
        ImageError: a file cannot be read.
        ConfigurationError: an unknown channel, or "all" with channels=1.
    """
    listing = list_lgg(root, channel=channel)
    if listing.colour and channels != len(CHANNELS):
        raise ConfigurationError(
            f"channel='all' is three sequences and needs channels=3, got channels={channels}; give channels=3, or "
            f"choose one of {', '.join(CHANNELS)}"
        )
    reading = Reading(image_size, channels, fit=fit, max_pixels=max_pixels)
    return load_listing(listing, reading, seed=seed, workers=workers)


def list_lgg(root: Path, *, channel: str = "flair") -> Listing:
    """What the LGG folder holds.

    The slices' numbers and `data.csv`, which nothing else depends on, tell what is missing. Files named `._*` and
    whatever is no TIFF are passed over.

    Args:
        root: `kaggle_3m` or the folder that holds it, unpacked once or twice, also side by side: of two copies of a
            patient the one with more slices is taken. A part of the set will do.
        channel: which sequence: "flair", the one that shows the tumour best; "pre" or "post", before or after the
            contrast agent; "all": all three as colours, in the order pre, flair, post.

    Raises:
        DatasetError: no such folder, or one that may not be looked at.
        ConfigurationError: an unknown channel.
    """
    if channel not in (*CHANNELS, "all"):
        raise ConfigurationError(f"channel={channel!r} is unknown; use one of {', '.join(CHANNELS)}, or 'all'")
    top = Path(root)
    with permitted(top):
        return _list(top, channel)


def _list(top: Path, channel: str) -> Listing:
    if not top.is_dir():
        raise DatasetError(f"{top} is not a folder; {_TREE}")
    folders = [folder for folder in (top, *(top / name for name in _BELOW)) if _patient_folders(folder)]
    copies: dict[str, list[_Patient]] = {}
    problems: list[Problem] = []
    for folder in folders:
        problems += _strays(folder)
        for path in _patient_folders(folder):
            copies.setdefault(path.name, []).append(_scan(path))
    # The first of those that have most.
    patients = [max(copies[name], key=lambda patient: len(patient.numbers)) for name in sorted(copies)]
    for patient in patients:
        problems += patient.problems
        problems += _gaps(patient)
        problems += [
            Problem("note", "copy", str(other.folder), f"is {patient.folder} once more and is left out")
            for other in copies[patient.folder.name]
            if other is not patient
        ]
    problems += _unlisted(folders, {patient.id for patient in patients})
    # One place if there is one, so that naming it or its parent finds the same cache.
    base = folders[0] if len(folders) == 1 else top
    return Listing(
        dataset="lgg",
        name="lgg" if channel == "flair" else f"lgg-{channel}",
        root=base,
        entries=tuple(_entry(patient, number, base) for patient in patients for number in patient.numbers),
        class_names=CLASSES,
        label_from_region=True,
        problems=tuple(problems),
        colour=channel == "all",
        plane=CHANNELS.get(channel),
        regions=True,
        tree=_TREE,
        licence=LICENCE,
        citation=CITATION,
    )


def _patient_folders(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _PATIENT.fullmatch(path.name) and path.is_dir())


def _is_slice(path: Path) -> bool:
    # What macOS leaves behind is named like a slice, but begins with "._".
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _strays(folder: Path) -> Iterator[Problem]:
    for path in sorted(folder.iterdir()):
        if _PATIENT.fullmatch(path.name) or path.name.startswith("."):
            continue
        slices = [path] if _is_slice(path) else sorted(filter(_is_slice, path.iterdir())) if path.is_dir() else []
        if slices:
            yield Problem("error", "path", str(slices[0]), f"does not lie in a patient's folder; remove it, or {_TREE}")


def _scan(folder: Path) -> _Patient:
    patient = _Patient(folder, {}, {}, [])
    for path in sorted(filter(_is_slice, folder.iterdir())):
        match = _FILE.fullmatch(path.name)
        if match is None or match[1] != folder.name:
            cause = f"is not named like the slices of {folder.name}"
            patient.problems.append(Problem("error", "path", str(path), f"{cause}; remove it, or {_TREE}"))
            continue
        files = patient.masks if match[4] else patient.slices
        if (other := files.setdefault(int(match[3]), path)) is not path:
            patient.problems.append(Problem("error", "path", str(path), f"has the number of {other}; remove one"))
    return patient


def _gaps(patient: _Patient) -> Iterator[Problem]:
    if not patient.numbers:
        yield Problem("warning", "missing", str(patient.folder), f"holds no slices; {_TREE}")
        return
    gone = sorted(set(range(1, patient.numbers[-1])) - set(patient.numbers))
    if gone:
        yield Problem(
            "warning",
            "missing",
            str(patient.folder),
            f"lacks {len(gone)} of the slices 1 to {patient.numbers[-1]} ({_first(gone)}); copy them, too, unless they "
            "were left out on purpose",
        )


def _unlisted(folders: list[Path], patients: set[str]) -> Iterator[Problem]:
    file = next((folder / "data.csv" for folder in folders if (folder / "data.csv").is_file()), None)
    if file is None:
        return
    try:
        listed = _read_ids(file)
    except (OSError, ValueError, csv.Error) as error:
        yield Problem("note", "list", str(file), f"cannot be read ({error}); nothing but this check depends on it")
        return
    if gone := sorted(listed - patients):
        cause = f"{len(gone)} of the {len(listed)} patients that it lists have no folder ({_first(gone)})"
        yield Problem("note", "missing", str(file), f"{cause}; copy them, too, if all are wanted")
    if more := sorted(patients - listed):
        yield Problem("note", "list", str(file), f"does not list {len(more)} patients with folders ({_first(more)})")


def _read_ids(file: Path) -> set[str]:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    header = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=";" if header.count(";") > header.count(",") else ",")
    if "Patient" not in (rows.fieldnames or ()):
        raise ValueError("it has no column 'Patient'")
    # Rows may be mostly or wholly blank.
    return {(row["Patient"] or "").strip() for row in rows} - {""}


def _first(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values[:3])) + (", …" if len(values) > 3 else "")


def _entry(patient: _Patient, number: int, base: Path) -> Entry:
    # Of a pair of which one file is missing the other tells the name that it must have had.
    name = f"{patient.folder.name}_{number}"
    path = patient.slices.get(number, patient.folder / f"{name}.tif")
    mask = patient.masks.get(number, patient.folder / f"{name}_mask.tif")
    return Entry(path.relative_to(base).as_posix(), path, None, patient.id, masks=(mask,))


def write_example(folder: Path, patients: int = 12, slices: int = 8, seed: int = 0, side: int = 256) -> Path:
    """Write a small made-up data set in LGG's layout below `folder`, for tests and for trying things out.

    Synthetic MR images (`maskaug.envs.synthetic`) as RGB TIFF files, FLAIR the brightest of their planes. About half of
    the slices, the middle ones of each patient, have a tumour. The last row of `data.csv` is mostly blank. With 12
    patients, all of train, val and test hold both classes.

    Args:
        folder: where `kaggle_3m` is made.
        patients: how many, at least 2.
        slices: of each patient on average, at least 2.
        seed: of the pictures.
        side: of the pictures in pixels, at least 36; the real ones have 256.

    Returns:
        The path of `kaggle_3m`.

    Raises:
        ConfigurationError: too few, or there is a `kaggle_3m` in `folder` already.
    """
    if patients < 2 or slices < 2:
        raise ConfigurationError(f"patients={patients} with slices={slices} are too few; use at least 2 of each")
    root = Path(folder) / FOLDER
    if root.exists():
        raise ConfigurationError(f"{root} exists already, and would be mixed with the example; choose another folder")
    # Enlarged from here, which is several times faster than to draw them at their full size.
    pictures, labels, regions = render("mr", "medium", min(side, 128), seed, np.arange(patients * slices))
    rows = ["Patient,RNASeqCluster,MethylationCluster,gender,death01"]
    for patient in range(patients):
        without, tumours = (np.flatnonzero(labels == label)[patient::patients].tolist() for label in (0, 1))
        half = len(without) // 2
        name = f"TCGA_{('CS', 'DU', 'HT')[patient % 3]}_{4941 + patient}_{19960909 + patient}"
        (root / name).mkdir(parents=True)
        for i, number in enumerate([*without[:half], *tumours, *without[half:]], start=1):
            flair = resize(pictures[number], side).astype(np.float32)
            planes = np.stack([flair * 0.5 + 10, flair, flair * 0.8], axis=2)
            mask = resize_mask(regions[number], side).astype(np.uint8) * 255
            Image.fromarray(planes.astype(np.uint8)).save(root / name / f"{name}_{i}.tif")
            Image.fromarray(mask).save(root / name / f"{name}_{i}_mask.tif")
        rows.append(f"{name.rpartition('_')[0]},{patient % 4 + 1},,{patient % 2 + 1},0")
    rows[-1] = rows[-1].partition(",")[0] + ",,2,,"
    (root / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
