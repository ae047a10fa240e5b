"""`make demo-intelligent-masking`: pre-train encoders by hiding parts of images, read them out with few labels.

On built-in ultrasound, a few minutes on two cores: no pre-training, nothing hidden, random masks, Intelligent Masking,
and the published method beside random patches. Leaves arms.png (what each hid, and what came back) and results.json.
The benchmark itself is `maskaug bench intelligent-masking`: more seeds, more arms, more budgets.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from maskaug.benchmarks.arms import ArmsSettings
from maskaug.benchmarks.masking_arms import intelligent_masking

DEMO = ArmsSettings(
    "MaskAug-Synthetic-v0",
    {"kind": "ultrasound", "task": "presence", "n": 3000, "fill": "mean", "judge_lr": 2e-3},
    updates=150,
    arms=("none", "autoencoder", "random", "ours", "random_patch", "published"),
    budgets=(100,),
    draws=5,
    readouts=("logistic",),
)


def demo(out: Path, settings: ArmsSettings = DEMO, seeds: tuple[int, ...] = (0, 1)) -> dict[str, float]:
    """Run everything; leaves arms.png and results.json in `out`."""
    began = time.perf_counter()
    print(f"{len(seeds)} seeds × {len(settings.arms)} arms, {settings.updates} updates each", flush=True)
    summary = intelligent_masking(settings, seeds, out, say=lambda text: print(text, flush=True))
    print(
        f"\n{time.perf_counter() - began:.0f} s; {len(seeds)} seeds show the way, not an effect: see benchmarks/results"
    )
    return summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-intelligent-masking"))
    demo(parser.parse_args().out)
