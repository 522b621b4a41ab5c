"""Data larger than the memory, and several processes: rows are written in shards, trained on from disk, and scored.

    python examples/scale.py --folder rows                                      # one process
    torchrun --standalone --nproc-per-node 4 examples/scale.py --folder rows    # four, with the same bits

Each image is a photograph's worth of pixels in small: strokes of two kinds at random places, in 16 x 16. They are made block by
block, so that what is written may be as large as the disk: --rows 20000000 is 5 GB of bytes. docs/scale.md has the rest.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, bernoulli, fit, log_likelihood, normal
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.processes import joined
from pyro_vae.data import Stored, write_shards

SIDE, BLOCK = 16, 5_000  # pixels, and images that are made at a time


def images(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw images of zeros and ones, block by block: a horizontal or a vertical stroke of three pixels' width."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        places, lying = rng.integers(1, SIDE - 1, count), rng.random(count) < 0.5
        strokes = np.abs(np.arange(SIDE) - places[:, None]) <= 1
        block = np.where(lying[:, None, None], strokes[:, :, None], strokes[:, None, :])
        noisy = block ^ (rng.random((count, SIDE, SIDE)) < 0.02)
        yield noisy.reshape(count, -1).astype(np.uint8)


def main(rows: int, memory: str, epochs: int, folder: Path) -> None:
    with joined() as here:  # without torchrun: one process
        if here.leads and not folder.exists():
            write_shards(images(rows), folder, rows=max(1, rows // 8))
        if here.world > 1:
            torch.distributed.barrier()  # rank 0 has written
        x = Stored(folder, memory=memory)  # nothing is read yet
        if here.leads:
            size = x.numel() * x.source_dtype.itemsize
            print(f"{len(x):,} rows in {len(x.files)} files, {size / 1e6:.1f} MB; {x.window:,} at a time in memory")

        torch.manual_seed(0)  # the same weights in each process
        decoder, encoder = MLP(4, SIDE * SIDE, (64,)), MLP(SIDE * SIDE, 8, (64,))
        vae = VAE(StandardNormal(4), Conditional(decoder, bernoulli), Conditional(encoder, normal))
        run = fit(vae, x, epochs=epochs, batch_size=256, shards=8, optimizer=adam(2e-3), verbose=False)
        evidence = log_likelihood(vae.model, vae.guide, x[:512], num_samples=100, verbose=False)
        if here.leads:
            print(f"ELBO {run.history[-1]['elbo']:.2f} nats after {run.history[-1]['step']} steps")
            print(f"log p(x) of 512 rows: {evidence.log_px.mean():.2f} nats, by {here.world} process(es)")
            print(f"weights {tensor_digest(dict(vae.named_parameters()))[:16]}: the same for any number of processes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--memory", default="40 MB")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the shards are, or go; processes share it")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.memory, options.epochs = 4_000, "400 kB", 1
    with tempfile.TemporaryDirectory() as temporary:
        if options.folder is None and "RANK" in os.environ:
            sys.exit("several processes share one folder: say --folder")
        main(options.rows, options.memory, options.epochs, options.folder or Path(temporary) / "rows")
