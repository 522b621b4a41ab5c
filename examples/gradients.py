"""How noisy are the gradients? Signal-to-noise of pathwise, STL and DReG gradients of IWAE as K grows (two minutes).

More particles make IWAE a tighter bound and the decoder's gradient better, but the encoder's signal sinks faster than its
noise: as 1/√K where K is large (Rainforth et al., 2018). DReG reparameterises the score as well: it has the same mean, and
its signal-to-noise ratio rises where K is large (Tucker et al., 2019). STL leaves the score out, which is right for the ELBO
(K = 1) and biased above: no signal-to-noise ratio shows that, so its mean is set beside DReG's. All three have one decoder
gradient.

A VAE of scikit-learn's digits, in black and white, is trained by IWAE, and then held still while gradients are drawn.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from pyro_vae import (
    MLP,
    VAE,
    Bound,
    Conditional,
    StandardNormal,
    adam,
    bernoulli,
    dreg,
    fit,
    iwae,
    normal,
    pathwise,
    stl,
)
from pyro_vae.data import load
from pyro_vae.diagnostics.gradient_noise import GradientReport, gradient_report
from pyro_vae.plots.figures import save, signal_to_noise


def trained(epochs: int) -> tuple[VAE, torch.Tensor]:
    """The VAE, and its training rows."""
    data = load("digits")  # counts 0..16
    train, validation = ((split.x > 7).float() for split in (data.train, data.validation))
    vae = VAE(
        prior=StandardNormal(8),
        likelihood=Conditional(MLP(8, 64, hidden=(64,)), bernoulli),
        posterior=Conditional(MLP(64, 2 * 8, hidden=(64,)), normal),
    )
    objective = Bound(iwae, num_particles=8)
    fit(vae, train, validation=validation, objective=objective, optimizer=adam(2e-3), epochs=epochs, verbose=False)
    return vae, train


def bias(report: GradientReport) -> str:
    """STL's mean encoder gradient beside DReG's, which is unbiased."""
    a, b = (report[name]["encoder"].mean for name in ("stl", "dreg"))
    cosine = cosine_similarity(a, b, dim=0)
    return f"Encoder, mean of stl to mean of dreg: {a.norm() / b.norm():.2f} times as long, cosine {cosine:.3f}"


def main(epochs: int = 150, particles: tuple = (1, 4, 16, 64), draws: int = 400, rows: int = 32):
    start = time.perf_counter()
    torch.manual_seed(0)
    vae, x = trained(epochs)
    reports = {}
    for k in particles:
        objectives = {e.name: Bound(iwae, k, estimator=e) for e in (pathwise, stl, dreg)}
        towards = Bound(iwae, k, estimator=dreg)  # without bias, and with the least noise of those
        report = gradient_report(vae, x[:rows], objectives=objectives, draws=draws, reference=towards)
        print(f"K = {k}\n{report}\n{bias(report)}\n")
        reports[k] = report.to_dict()
    print(f"Picture: {save(signal_to_noise(reports), Path('gradients.png'))}")
    machine = f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}"
    told = {"epochs": epochs, "machine": machine, "seconds": round(time.perf_counter() - start), "reports": reports}
    Path("gradients.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(**({"epochs": 1, "particles": (1, 4), "draws": 5} if parser.parse_args().quick else {}))
