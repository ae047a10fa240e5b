"""`make demo-intelligent-masking`: pre-train encoders by hiding parts of images, read them out with few labels.

On built-in ultrasound, a few minutes on two cores: no pre-training, nothing hidden, random masks, Intelligent Masking,
and the published method beside random patches. Leaves arms.png (what each hid, and what came back) and tables.md.
The benchmark itself is `maskaug bench intelligent-masking`: more seeds, more arms, more budgets.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from maskaug.benchmarks.encoder_output import run_encoding
from maskaug.benchmarks.encoder_presets import DEMO
from maskaug.benchmarks.encoders import Encoding


def demo(out: Path, encoding: Encoding = DEMO, jobs: int = 2) -> None:
    """Run everything, `jobs` arms at a time; leaves runs/, the tables and pictures in `out`."""
    began = time.perf_counter()
    seeds = len(encoding.seeds)
    print(f"{seeds} seeds × {len(encoding.arms)} arms, {encoding.pretraining.updates} updates each", flush=True)
    run_encoding(encoding, out, jobs=jobs, say=lambda text: print(text, flush=True))
    print(f"\n{time.perf_counter() - began:.0f} s; {seeds} seeds show the way, not an effect: see benchmarks/results")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-intelligent-masking"))
    demo(parser.parse_args().out)
