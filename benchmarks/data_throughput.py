"""How fast data come in: `maskaug bench data`. First caching, batches from the cache, and a second start.

Everything is made up here and thrown away afterwards: pictures in MURA's layout, and a cache of its own. CPU time in
one process, both sides in turn, the median of the rounds: what else the machine does counts for neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image

from maskaug.benchmarks.timing import in_turn
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_json
from maskaug.envs.images import Reading, read_fitted, resize
from maskaug.envs.loading import load_listing
from maskaug.envs.mura import list_mura
from maskaug.envs.mura_lists import BODY_PARTS, FOLDER
from maskaug.envs.registration import register_envs
from maskaug.envs.rows import Rows
from maskaug.envs.sources import check_workers
from maskaug.envs.synthetic import render

#: pictures of one patient in the stand-in, and of how many patients one is in the valid part.
_STUDY, _VALID = 3, 12


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What is measured.

    Attributes:
        pictures: different pictures, decoded in both comparisons.
        source_size: their sides in pixels.
        image_size: S, what they are resized to.
        rounds: how often both sides are measured in turn.
        batch: images in a random batch.
        batches: in one measurement from the cache; from files it is one.
        images: of the second start: so many files, hard links to `pictures` different ones.
        link_size: their sides in pixels. What is cached is S × S whatever they were, and decoding them once takes less
            time than larger ones.
        starts: second starts, each in a process of its own.
    """

    pictures: int = 200
    source_size: int = 512
    image_size: int = 224
    rounds: int = 5
    batch: int = 64
    batches: int = 50
    images: int = 40_000
    link_size: int = 128
    starts: int = 3


def stand_in(folder: Path, images: int, different: int, side: int) -> Path:
    """A MURA folder of `images` files below `folder`, hard links to `different` noisy radiographs of side × side."""
    drawn, _, _ = render("radiograph", "medium", 96, 0, np.arange(different))
    originals = folder / f"pictures-{side}"
    originals.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, picture in enumerate(drawn):
        noisy = resize(picture, side) + rng.normal(0, 3, (side, side))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(originals / f"{i}.png")
    root = folder / FOLDER
    lists: dict[str, list[str]] = {"train": [], "valid": []}
    for i in range(images):
        patient, number = divmod(i, _STUDY)
        part = "valid" if patient % _VALID == 1 else "train"
        label = ("negative", "positive")[patient % 2 if part == "train" else patient // _VALID % 2]
        body_part = BODY_PARTS[patient % len(BODY_PARTS)].upper()
        study = f"{part}/XR_{body_part}/patient{patient:05d}/study1_{label}"
        if number == 0:
            (root / study).mkdir(parents=True)
        os.link(originals / f"{i % different}.png", root / study / f"image{number + 1}.png")
        lists[part].append(f"{FOLDER}/{study}/image{number + 1}.png\n")
    for part, rows in lists.items():
        (root / f"{part}_image_paths.csv").write_text("".join(rows), encoding="utf-8")
    return root


def first_caching(folder: Path, settings: DataSettings) -> dict[str, float]:
    """CPU seconds of `load_listing` without a cache ÷ those of decoding and resizing alone, in one thread."""
    listing = list_mura(stand_in(folder, settings.pictures, settings.pictures, settings.source_size))
    reading = Reading(settings.image_size)

    def alone() -> None:
        for entry in listing.entries:
            read_fitted(entry.path, reading)

    turn = 0

    def caching() -> None:
        nonlocal turn
        turn += 1
        with cache_at(folder / f"cache-{turn}"):
            load_listing(listing, reading, workers=1)

    decoding, cached = in_turn((alone, caching), settings.rounds)
    began = time.perf_counter()
    with cache_at(folder / "cache-threads"):
        load_listing(listing, reading)
    return {
        "decode_images_cpu_s": settings.pictures / float(np.median(decoding)),
        "caching_images_cpu_s": settings.pictures / float(np.median(cached)),
        "ratio": float(np.median(cached / decoding)),
        "caching_images_wall_s": settings.pictures / (time.perf_counter() - began),
        "threads": float(check_workers(None)),
    }


def random_batches(files: Path, root: Path, settings: DataSettings) -> dict[str, Any]:
    """Images a CPU second: random batches of the data set at `root` from its cache, and random ones from `files`."""
    listing, reading = list_mura(files), Reading(settings.image_size)
    dataset = load_listing(list_mura(root), reading)
    rng = np.random.default_rng(0)

    def decode() -> None:
        chosen = rng.integers(0, len(listing.entries), settings.batch)
        np.stack([read_fitted(listing.entries[i].path, reading)[0] for i in chosen])

    def gather() -> None:
        for _ in range(settings.batches):
            dataset.images[rng.integers(0, len(dataset), settings.batch)]

    slow, fast = in_turn((decode, gather), settings.rounds)
    return {
        "decode_images_cpu_s": settings.batch / float(np.median(slow)),
        "cache_images_cpu_s": settings.batch * settings.batches / float(np.median(fast)),
        "ratio": float(np.median(slow / (fast / settings.batches))),
        "in_file": isinstance(dataset.images, Rows),
    }


def second_starts(root: Path, settings: DataSettings) -> dict[str, float]:
    """Medians over processes that each make an environment of the cached data set and take its first batch."""
    found = []
    for _ in range(settings.starts):
        command = (
            "import time; began = time.perf_counter(); "
            "from maskaug.benchmarks.data_throughput import second_start; "
            f"second_start(began, {str(root)!r}, {settings.image_size}, {settings.batch})"
        )
        began = time.perf_counter()
        ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
        whole = time.perf_counter() - began
        if ended.returncode:
            raise ConfigurationError(f"the second start failed: {ended.stderr.strip().splitlines()[-1]}")
        found.append({**json.loads(ended.stdout.splitlines()[-1]), "process_s": whole})
    return {name: float(np.median([one[name] for one in found])) for name in found[0]}


def second_start(began: float, root: str, image_size: int, num_envs: int) -> None:
    """What one process of `second_starts` does; prints its figures as JSON."""
    register_envs()
    # Torch's own: the first optimiser imports its compiler. That belongs to the imports, whatever the data are.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    imported, cpu, before = time.perf_counter(), time.process_time(), resident_mb()
    env: Any = gym.make_vec(
        "MaskAug-MURA-v0", num_envs=num_envs, root=root, image_size=image_size, device="cpu",
    )  # fmt: skip
    env.reset(seed=0)
    done = {
        "imports_s": imported - began,
        "first_batch_s": time.perf_counter() - imported,
        "first_batch_cpu_s": time.process_time() - cpu,
        "imports_mb": before,
        "peak_mb": resident_mb(),
    }
    print(json.dumps(done))


def resident_mb() -> float:
    """The most memory (MiB) that this process ever had resident; NaN where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def data_throughput(
    settings: DataSettings, out: Path | None = None, folder: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure all three; see `DataSettings`.

    Args:
        settings: what is measured.
        out: a JSON file to write.
        folder: where pictures and cache are made, in a folder of their own that is removed afterwards; None: the
            system's temporary folder. The cache takes images × S² bytes.
        say: where lines for people go.

    Raises:
        ConfigurationError: nothing would be measured, or a second start fails.
    """
    least = {"images": 40, "source_size": 8, "link_size": 8}
    for name, value in dataclasses.asdict(settings).items():
        if value < least.get(name, 1):
            raise ConfigurationError(f"{name}={value} must be at least {least.get(name, 1)}")
    with tempfile.TemporaryDirectory(prefix="maskaug-data-", dir=folder) as name:
        where = Path(name)
        sizes = f"{settings.source_size}×{settings.source_size} PNG → {settings.image_size}×{settings.image_size}"
        say(f"{settings.pictures} pictures, {sizes}, one thread, CPU time, {settings.rounds} rounds")
        caching = first_caching(where / "small", settings)
        say(
            f"first caching {caching['caching_images_cpu_s']:.0f} images a second, decode + resize alone "
            f"{caching['decode_images_cpu_s']:.0f}: ratio {caching['ratio']:.3f} (target 1.15); with "
            f"{caching['threads']:.0f} threads {caching['caching_images_wall_s']:.0f} a second of wall time"
        )
        root = stand_in(where / "large", settings.images, settings.pictures, settings.link_size)
        with cache_at(where / "cache"):
            began = time.perf_counter()
            load_listing(list_mura(root), Reading(settings.image_size))
            built = time.perf_counter() - began
            say(f"{settings.images} images cached in {built:.0f} s; now from the cache")
            batches = random_batches(where / "small" / FOLDER, root, settings)
            say(
                f"random batches of {settings.batch}: {batches['cache_images_cpu_s']:.0f} images a CPU second, "
                f"decoding {batches['decode_images_cpu_s']:.0f}: {batches['ratio']:.0f} times (target 100)"
            )
            start = second_starts(root, settings)
            start["cache_mb"] = sum(path.stat().st_size for path in (where / "cache").glob("*.npy")) / 2**20
        say(
            f"second start: {start['first_batch_s']:.2f} s from the call to the first batch (target 2), "
            f"{start['first_batch_cpu_s']:.2f} s of CPU; the process with its imports {start['process_s']:.1f} s; at "
            f"most {start['peak_mb']:.0f} MB resident, {start['imports_mb']:.0f} of them imports, of a cache of "
            f"{start['cache_mb']:.0f}"
        )
    result = {
        "settings": dataclasses.asdict(settings),
        "first_caching": caching,
        "random_batches": batches,
        "second_start": {**start, "built_s": built},
    }
    if out is not None:
        write_json(out, result)
        say(f"wrote {out}")
    return result


@contextlib.contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Inside, the cache is `folder`."""
    before = os.environ.get("MASKAUG_CACHE")
    os.environ["MASKAUG_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MASKAUG_CACHE"]
        else:
            os.environ["MASKAUG_CACHE"] = before
