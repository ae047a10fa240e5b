"""Listings of a few pictures with something wrong, and what `maskaug data check` says of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.envs.checking import check_listing
from maskaug.envs.datasets import SPLITS
from maskaug.envs.findings import Finding, Report
from maskaug.envs.listing import Entry, Listing

Picture = npt.NDArray[np.uint8]
NAMES = ("busi", "hip_fracture", "lgg", "manifest", "medmnist", "mura")


def save(folder: Path, pictures: Picture, **changes: Any) -> Listing:
    """A folder of pictures, "a" and "b" in turn, each of its own patient; the first two thirds are for training."""
    folder.mkdir(exist_ok=True)
    entries = []
    for i, picture in enumerate(pictures):
        path = folder / f"{i}.png"
        Image.fromarray(picture).save(path)
        split = SPLITS[0 if i < 16 else 1 if i < 20 else 2]
        entries.append(Entry(path.name, path, i % 2, f"p{i:02d}", split=split))
    return dataclasses.replace(Listing("mine", "mine", folder, tuple(entries), ("a", "b")), **changes)


def change(listing: Listing, i: int, **changes: Any) -> Listing:
    entries = list(listing.entries)
    entries[i] = dataclasses.replace(entries[i], **changes)
    return dataclasses.replace(listing, entries=tuple(entries))


def unsplit(listing: Listing) -> Listing:
    entries = tuple(dataclasses.replace(entry, split=None) for entry in listing.entries)
    return dataclasses.replace(listing, entries=entries)


def found(report: Report) -> dict[str, Finding]:
    assert len({(f.kind, f.severity) for f in report.findings}) == len(report.findings)
    return {finding.kind: finding for finding in report.findings}


def only(listing: Listing, kind: str, severity: str) -> Finding:
    report = check_listing(listing)
    assert [(f.kind, f.severity) for f in report.findings] == [(kind, severity)]
    assert report.ok == (severity != "error")
    return report.findings[0]
