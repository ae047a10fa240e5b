r"""Your own pictures: a folder with a list, `manifest.csv`, → `ImageDataset`. Hip fractures are read alike.

    path,label,patient,study,split,region,sha256
    images/0001.png,normal,P1,S1,train,,
    images/0002.dcm,fracture,P2,S2,train,masks/0002.png,
    images/0003.jpg,fracture,P3,S3,test,120 80 180 140|200 90 230 130,

The first row names the columns, in any order, in upper or lower case. Only `path` must be there. A column that is not
in this table is an error, as a misspelt `patient` would let one patient into two splits without a word; a column that
is blank in every row is as if it were not there. Cells are trimmed.

| column | what it holds |
|---|---|
| `path` | the picture below the root: PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM. One row a picture |
| `label` | its class, in every row or in none. Upper and lower case, and 1 and 1.0, are the same class but must be written alike unless `class_names` is given. Without labels only objective="reconstruction" can be played |
| `patient` | who it shows, in every row or in none: nobody gets into two splits. Without it the study counts as the patient, and without that the picture itself |
| `study` | pictures that were taken together; may be blank. Studies of two patients may have one name |
| `split` | train, val (valid, validation) or test, in every row or in none. Without any val, a tenth of train is carved off by patient. Asking for a test split that no row names is an error. Without the column: 70/15/15 by patient |
| `region` | where the relevant thing is: a mask's path below the root, of the picture's size and not a JPEG, or a box `x0 y0 x1 y1` in pixels of the upright picture, as 30, 30.5 or 3e1; several with `\|` between. Blank, while other rows have one: nothing is there. `nan`, `none`, `NULL`, `n/a` and the like are errors, as is a number alone: a mask that is called so is written `./none`, `./7` |
| `sha256` | of the picture's file: verified when it is decoded; may be blank |

The file is UTF-8, with or without BOM; cells are separated by commas, semicolons or tabs; lines end as they like; blank
ones do not count; a cell with a delimiter in it stands in quotation marks. Rows that are wrong are told by the line
that they begin on, as an editor shows it, and nothing is loaded until they are mended.

Paths stay below the root: absolute ones, `..`, `~`, drives, URLs and links that lead out are errors, and a link is
looked at again at the moment when the file is opened. Backslashes count as slashes.
"""  # noqa: E501 (a row of a table is one line)

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskaug.envs.confinement import confined
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.folders import permitted
from maskaug.envs.images import MAX_PIXELS, Reading
from maskaug.envs.listing import Listing
from maskaug.envs.loading import load_listing
from maskaug.envs.manifest_entries import Classes, list_entries
from maskaug.envs.manifest_example import write_tree

MANIFEST = "manifest.csv"
#: Share of the train part's images that is carved off for validation where no row says val.
VALIDATION = 0.1
#: Classes of the hip fracture task of APGA (arXiv 1909.04108); 0 and 1 mean them too.
HIP_CLASSES = ("no fracture", "fracture")

Window = str | tuple[float, float] | None


def load_manifest(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    manifest: str = MANIFEST,
    class_names: str | Sequence[str] | None = None,
    fit: str = "stretch",
    window: Window = None,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> ImageDataset:
    """All pictures that the manifest of a folder lists, decoded once into the cache.

    Args:
        root: see `list_manifest`.
        image_size: S, height and width in pixels.
        channels: 1 (grey), or 3 (the pictures' colours; grey repeated).
        seed: of the patients that are carved from the train part for validation.
        manifest: see `list_manifest`.
        class_names: see `list_manifest`.
        fit: how a picture that is not square becomes so, see `maskaug.envs.images.Reading`; so for the next three.
        window: the values that become black and white, of more than 8 bits.
        frame: of several pages, the one to read.
        max_pixels: pictures of more pixels are refused.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only, in the manifest's order; labels, regions, studies and official
        parts where it has such a column; groups: one number a patient.

    Raises:
        DatasetError: see `list_manifest`; or a row is wrong, a patient is in two splits, a region does not fit its
            picture, or none of the pictures is there. Those of several that are missing are left out with a
            `UserWarning`.
        ImageError: a file cannot be read, lies outside of the root, or is not the one whose sha256 is listed.
        ConfigurationError: an option that cannot work.
    """
    reading = Reading(image_size, channels, fit, window, frame, max_pixels)
    listing = list_manifest(root, manifest=manifest, class_names=class_names)
    return load_listing(listing, reading, seed=seed, workers=workers)


def list_manifest(root: Path, *, manifest: str = MANIFEST, class_names: str | Sequence[str] | None = None) -> Listing:
    """What the manifest of a folder lists; no picture is opened, and none needs to be there.

    Args:
        root: the folder that holds the manifest and, at any depth, the pictures.
        manifest: the CSV file's name in `root`, without folders.
        class_names: the classes in the order of their numbers, as a sequence or with commas between; a label that is
            none of them is an error. None: the labels that are there, sorted, as numbers if all of them are.

    Returns:
        Its `problems` tell each wrong row (the first 1000, and how many more); its entries are the others.

    Raises:
        DatasetError: the file is missing or no CSV file in UTF-8, its header is wrong, or it has no rows.
        ConfigurationError: an option that cannot work.
    """
    names = _class_names(class_names)
    listing = _list("manifest", root, manifest, None if names is None else Classes(names))
    if names is not None and listing.entries and not listing.class_names:
        raise ConfigurationError(
            f"class_names={class_names!r} was given, but no row of {manifest} has a label; leave it out, or add a "
            "column 'label'"
        )
    return listing


def load_hip_fracture(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    manifest: str = MANIFEST,
    fit: str = "stretch",
    window: Window = None,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> ImageDataset:
    """`load_manifest` of hip radiographs, with the classes "no fracture" (or 0) and "fracture" (or 1).

    The data of the paper (APGA, arXiv 1909.04108: 1 118 studies, 3 026 hips) are private; this reads yours. Its
    pictures were squeezed to 224×224, which are the defaults of the environment. Arguments, result and errors are those
    of `load_manifest`.
    """
    reading = Reading(image_size, channels, fit, window, frame, max_pixels)
    return load_listing(list_hip_fracture(root, manifest=manifest), reading, seed=seed, workers=workers)


def list_hip_fracture(root: Path, *, manifest: str = MANIFEST) -> Listing:
    """`list_manifest` of hip radiographs, with the classes "no fracture" (or 0) and "fracture" (or 1)."""
    return _list("hip_fracture", root, manifest, Classes(HIP_CLASSES, numbers=True))


def write_example(folder: Path, n: int = 60, seed: int = 0, dicom: bool = False) -> Path:
    """Write a small made-up data set with a manifest below `folder`, for tests and for trying things out.

    Synthetic radiographs (`maskaug.envs.synthetic`) of 160 to 320 pixels a side, in turn grey PNG, colour PNG, JPEG and
    TIFF. Patients have one to three pictures, in one or two studies, and belong to train, val or test, all of which
    hold both classes. Broken bones have a mask or a box as their region, in turn; every column is used.

    Args:
        folder: where `manifest`, with `manifest.csv`, is made.
        n: pictures in all, at least 30.
        seed: of the pictures, their sizes and their patients.
        dicom: make every fifth picture a DICOM file.

    Returns:
        The path of `manifest`.

    Raises:
        ConfigurationError: too few pictures, there is such a folder already, or DICOM without pydicom.
    """
    return write_tree(Path(folder) / "manifest", MANIFEST, ("normal", "fracture"), n, seed, dicom)


def write_hip_example(folder: Path, n: int = 60, seed: int = 0, dicom: bool = False) -> Path:
    """`write_example` for hip fractures: the folder `hip_fracture`, whose labels are 0 and 1."""
    return write_tree(Path(folder) / "hip_fracture", MANIFEST, ("0", "1"), n, seed, dicom)


def _list(dataset: str, root: Path, manifest: str, classes: Classes | None) -> Listing:
    root = Path(root)
    tree = f"""expected
  {root}/{manifest}: a CSV file, whose first row names columns (see maskaug.envs.manifest):
    path,label,patient,split
    images/0001.png,{classes.names[0] if classes else "normal"},P1,train
  {root}/images/0001.png, …"""
    with permitted(root):
        file = _file(root, manifest, tree)
    entries, class_names, problems = list_entries(root, file, manifest, classes)
    if not entries and not problems:
        raise DatasetError(f"{root / manifest} lists no pictures; {tree}")
    return Listing(
        dataset=dataset,
        name=dataset,
        root=root,
        entries=entries,
        class_names=class_names,
        problems=problems,
        colour=True,
        regions=any(entry.masks or entry.boxes for entry in entries),
        validation=VALIDATION,
        confined=True,
        variant=manifest,
        tree=tree,
    )


def _file(root: Path, manifest: str, tree: str) -> Path:
    if not isinstance(manifest, str) or manifest in ("", ".", "..") or set(manifest) & set("/\\:\0"):
        raise ConfigurationError(f"manifest={manifest!r} must be the plain name of a CSV file in {root}, no path")
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; {tree}")
    if not os.path.lexists(root / manifest):
        raise DatasetError(f"{root} holds no {manifest}; {tree}")
    try:
        return confined(root / manifest, root)
    except ImageError as error:
        raise DatasetError(str(error)) from None


def _class_names(class_names: Any) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    given = class_names.split(",") if isinstance(class_names, str) else class_names
    if not isinstance(given, list | tuple):
        raise ConfigurationError(f"class_names={class_names!r} must be names with commas between, or a list of them")
    names = tuple(str(name).strip() for name in given)
    if len(names) < 2 or not all(names):
        raise ConfigurationError(f"class_names={class_names!r} must be at least two names, none of them empty")
    return names
