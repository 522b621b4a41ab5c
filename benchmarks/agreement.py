"""Whether engines and precisions train the same model: `python -m benchmarks.agreement`.

Digits in black and white, 64-64-8, five seeds of each engine, and of the compiled one in TF32 and bfloat16: the test ELBO at
the end, and what it differs by from eager of the same seed, mean ± standard error over seeds. With `--device cuda`, eager and
"auto" at float32, TF32 and bfloat16; TF32 is another number than float32 there alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.common.inductor import compiler
from pyro_vae.data import load

ON_CUDA = [("eager", "float32"), ("auto", "float32"), ("auto", "tf32"), ("auto", "bf16")]


def test_elbo(engine: str, precision: str, seed: int, epochs: int, device: str = "cpu") -> tuple[float, str]:
    """Nats per datum on the test rows, in float32 under the same noise for all; and what `fit` says of its engine."""
    data = load("digits", binarization="static")
    torch.manual_seed(seed)
    vae = pv.VAE(
        pv.StandardNormal(8),
        pv.Conditional(pv.MLP(8, 64, hidden=(64,)), pv.bernoulli),
        pv.Conditional(pv.MLP(64, 16, hidden=(64,)), pv.normal),
    ).to(device)
    run = pv.fit(
        vae, data.train.x, epochs=epochs, seed=seed, engine=engine, precision=precision, device=device, verbose=False
    )
    evidence = pv.log_likelihood(vae.model, vae.guide, data.test.x, num_samples=500, verbose=False)
    return evidence.summary()["elbo"], run.engine


def against_eager(found: list[float], eager: list[float]) -> dict[str, Any]:
    off = [a - b for a, b in zip(found, eager, strict=False)]
    error = statistics.stdev(off) / len(off) ** 0.5 if len(off) > 1 else None
    return {"elbo": statistics.fmean(found), "minus_eager": statistics.fmean(off), "standard_error": error, "each": off}


def main(
    seeds: int, epochs: int, compiled: bool, out: Path | None, device: str = "cpu", minutes: float = float("inf")
) -> dict[str, Any]:
    """Train seed by seed, each at all engines and precisions; no further seed is begun that would outlast the minutes."""
    torch.set_num_threads(1)
    kinds = [("eager", "float32"), ("trace", "float32")]
    if compiled and compiler():
        kinds += [("compile", name) for name in ("float32", "tf32", "bf16")]
    kinds = ON_CUDA if device != "cpu" else kinds
    elbos: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    said: dict[tuple[str, str], str] = {}
    begun = time.perf_counter()
    for seed in range(seeds):
        if seed and (time.perf_counter() - begun) * (seed + 1) / seed > 60 * minutes:
            break
        for kind in kinds:
            elbo, engine = test_elbo(*kind, seed, epochs, device)
            elbos[kind].append(elbo)
            said.setdefault(kind, engine)
    results: dict[str, Any] = {"seeds": len(elbos[kinds[0]]), "epochs": epochs, "device": device}
    for kind in kinds:
        name = " ".join(kind)
        results[name] = against_eager(elbos[kind], elbos[kinds[0]]) | {"said": said[kind]}
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, nothing compiled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="fewer seeds where these are over")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    main(*((1, 2, False) if given.quick else (5, 100, True)), given.out, given.device, given.minutes)
