"""A data set's images on the judge's device: all of them where they fit, else those of the next step ahead of time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.envs.rows import ImageArray, Rows, blocks

#: of the device's free memory, how much a data set may take.
SHARE = 0.25


class Pictures:
    """Images (N, C, H, W) uint8, gathered on `device`, as they are or in a mirror.

    There are 2·N pictures: numbers 0 … N − 1 are the images as they are, N … 2N − 1 the same ones mirrored left to
    right.

    Args:
        images: on the host; or in a file, whose images are then read as they are wanted.
        device: where they are wanted.
        resident: keep all of them there, where they fit; on a CPU this copies nothing, and what is in a file stays
            in it.
    """

    def __init__(self, images: ImageArray, device: torch.device, *, resident: bool) -> None:
        self._images, self.device = images, device
        #: all images on the device, or None.
        self.resident: Tensor | None = None
        if resident and (device.type == "cuda" or not isinstance(images, Rows)) and _fits(images.nbytes, device):
            self.resident = upload(images, device)
        self._ahead: tuple[npt.NDArray[np.int64], Tensor, torch.cuda.Event] | None = None
        self._stream: torch.cuda.Stream | None = None

    def at(self, number: npt.NDArray[np.int64]) -> Tensor:
        """The pictures with these numbers (M,), (M, C, H, W) uint8 on the device; nobody else's."""
        mirrored = number >= len(self._images)
        if not mirrored.any():
            return self._gather(number)
        images = self._gather(number % len(self._images))
        turned = torch.from_numpy(mirrored).to(self.device)[:, None, None, None]
        return torch.where(turned, images.flip(-1), images)

    def _gather(self, index: npt.NDArray[np.int64]) -> Tensor:
        if self.resident is not None:
            return self.resident[torch.from_numpy(index).to(self.device)]
        if self._ahead is not None and np.array_equal(self._ahead[0], index):
            _, images, ready = self._ahead
            self._ahead = None
            torch.cuda.current_stream(self.device).wait_event(ready)
            images.record_stream(torch.cuda.current_stream(self.device))
            return images
        return torch.from_numpy(self._images[index]).to(self.device)

    @property
    def fetches(self) -> bool:
        """Whether `fetch` does anything: not on a CPU, and not with what is on the device already."""
        return self.device.type == "cuda" and self.resident is None

    def fetch(self, index: npt.NDArray[np.int64]) -> None:
        """Start to bring the images at `index` (M,) to a CUDA device, while it is busy with others.

        Their orientation does not matter yet: they are mirrored there.
        """
        if not self.fetches:
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        pinned = torch.from_numpy(self._images[index]).pin_memory()
        with torch.cuda.stream(self._stream):
            images = pinned.to(self.device, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        self._ahead = (index.copy(), images, ready)

    def release(self) -> None:
        """Give back what is held on the device; from now on `at` brings every batch there anew."""
        self.resident = self._ahead = self._stream = None

    def __getstate__(self) -> dict[str, object]:
        # Streams and events belong to one process.
        return {**self.__dict__, "_ahead": None, "_stream": None}


def upload(images: ImageArray, device: torch.device) -> Tensor:
    """All images on `device`; of those in a file the host never holds more than a few."""
    if not isinstance(images, Rows):
        return torch.from_numpy(images if images.flags.writeable else np.array(images)).to(device)
    there = torch.empty(images.shape, dtype=torch.uint8, device=device)
    first = 0
    for block in blocks(images):
        there[first : first + len(block)] = torch.from_numpy(block)
        first += len(block)
    return there


def _fits(size: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= SHARE * free
