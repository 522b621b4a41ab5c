"""Whether engines train the same model: `python -m benchmarks.agreement`.

Digits in black and white, 64-64-8, five seeds of each engine (and of the compiled one in bfloat16): the test ELBO at the end,
and what it differs by from eager of the same seed, mean ± standard error over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.data import load
from pyro_vae.training.engines.inductor import compiler


def test_elbo(engine: str, precision: str, seed: int, epochs: int) -> tuple[float, str]:
    """Nats per datum on the test rows, under the same noise for all; and what `fit` says of its engine."""
    data = load("digits", binarization="static")
    torch.manual_seed(seed)
    vae = pv.VAE(
        pv.StandardNormal(8),
        pv.Conditional(pv.MLP(8, 64, hidden=(64,)), pv.bernoulli),
        pv.Conditional(pv.MLP(64, 16, hidden=(64,)), pv.normal),
    )
    run = pv.fit(vae, data.train.x, epochs=epochs, seed=seed, engine=engine, precision=precision, verbose=False)
    evidence = pv.log_likelihood(vae.model, vae.guide, data.test.x, num_samples=500, verbose=False)
    return evidence.summary()["elbo"], run.engine


def against_eager(found: list[float], eager: list[float]) -> dict[str, Any]:
    off = [a - b for a, b in zip(found, eager, strict=True)]
    error = statistics.stdev(off) / len(off) ** 0.5 if len(off) > 1 else None
    return {"elbo": statistics.fmean(found), "minus_eager": statistics.fmean(off), "standard_error": error, "each": off}


def main(seeds: int, epochs: int, compiled: bool, out: Path | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    kinds = [("eager", "float32"), ("trace", "float32")]
    if compiled and compiler():
        kinds += [("compile", "float32"), ("compile", "bf16")]
    eager: list[float] = []
    results: dict[str, Any] = {"seeds": seeds, "epochs": epochs}
    for engine, precision in kinds:
        runs = [test_elbo(engine, precision, seed, epochs) for seed in range(seeds)]
        eager = eager or [elbo for elbo, _ in runs]
        results[f"{engine} {precision}"] = against_eager([elbo for elbo, _ in runs], eager) | {"said": runs[0][1]}
        print(f"{engine} {precision}: {json.dumps(results[f'{engine} {precision}'])}", flush=True)
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, nothing compiled")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    said = parser.parse_args()
    main(*((1, 2, False) if said.quick else (5, 100, True)), said.out)
