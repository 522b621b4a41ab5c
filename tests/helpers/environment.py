"""Where tests run: the repository, what the processes that they start are given, and whether the long forms were asked for."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "pyro_vae"
HEAVY = bool(os.environ.get("PYRO_VAE_HEAVY"))
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
