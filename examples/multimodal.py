"""Several modalities, any of them missing: digits with labels, the halves of an image, a table in two blocks.

    PYRO_VAE_DATA=... python examples/multimodal.py --seconds 80 --out results/multimodal

One model p(z) p(x_1 | z) p(x_2 | z), trained on every subset of its modalities, under a product of experts, a mixture, and a
mixture of products. Printed for held-out rows: log p(x_1, x_2), log p(x_1), log p(x_2 | x_1), with both errors; for labels also
the classes by Bayes' rule, p(label | image) from log p(image, label) under each; for the table a Gaussian regression of one
block on the other, whose log p(x_2 | x_1) is known. Drawn are one modality given the other, by imputation.
"""

import argparse
import json
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from pyro_vae import (
    MLP,
    Conditional,
    MixtureOfExperts,
    MixtureOfProducts,
    MultimodalVAE,
    ProductOfExperts,
    SkipMissing,
    StandardNormal,
    TimeBudget,
    adam,
    bernoulli,
    classification,
    conditional_log_likelihood,
    every_subset,
    fit,
    impute,
    impute_mean,
    log_likelihood,
    normal,
    posterior_predictive_check,
)
from pyro_vae.data import load
from pyro_vae.likelihoods import SharedNormal, columns
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid

GUIDES = {"product": ProductOfExperts, "mixture": MixtureOfExperts, "mixture of products": MixtureOfProducts}
QUIET = {"verbose": False}


def train(vae: MultimodalVAE, x: tuple[Tensor, ...], epochs: int, seconds: float, lr: float = 1e-3) -> dict:
    """Train on every subset of the modalities: the sum of Wu and Goodman's ELBOs."""
    start = time.process_time()
    options = {"optimizer": adam(lr), "batch_size": 128, "epochs": epochs, "on_epoch": TimeBudget(seconds)}
    result = fit(vae, *every_subset(*x), **options, **QUIET)
    return {"epochs": len(result.history), "cpu_seconds": time.process_time() - start}


def score(vae: MultimodalVAE, x: tuple[Tensor, ...], site: str, num_samples: int) -> dict:
    """log p(x_1, x_2), log p(x_1) and log p(x_2 | x_1) of the rows."""
    found = conditional_log_likelihood(vae.model, vae.guide, *x, site=site, num_samples=num_samples, **QUIET)
    print(f"  joint: {found.joint}\n  given: {found.given}\n  {found}")
    parts = {"joint": found.joint, "given": found.given, "conditional": found}
    return {name: part.summary() for name, part in parts.items()}


def labelled(guide: type, pixels: int, latents: int, width: int) -> MultimodalVAE:
    prior, to_label, table = StandardNormal(latents), MLP(latents, 10, (width,)), nn.Embedding(10, 2 * latents)
    return MultimodalVAE(
        prior,  # p(z)
        {
            "image": SkipMissing(Conditional(MLP(latents, pixels, (width,)), bernoulli)),  # p(image | z)
            "label": SkipMissing(lambda z: dist.Categorical(logits=to_label(z))),  # p(label | z)
        },
        guide(
            prior,
            {
                "image": Conditional(MLP(pixels, 2 * latents, (width,)), normal),
                "label": Conditional(lambda y: table(y.long()), normal),
            },
        ),
    )


def classes(vae: MultimodalVAE, image: Tensor, truth: Tensor, num_samples: int) -> dict:
    """p(label | image) by Bayes' rule, from log p(image, label) under each label."""
    each = [
        log_likelihood(
            vae.model, vae.guide, image, torch.full((len(image),), float(c)), num_samples=num_samples, **QUIET
        )
        for c in range(10)
    ]
    found = classification(torch.stack([e.log_px for e in each], 1).softmax(1), truth)
    print(f"  classes by Bayes' rule: {found}")
    return found.to_dict()


def digits(o: dict, out: Path) -> dict:
    """Images and labels, under each of the guides."""
    data = load(o["data"], binarization="static", **QUIET)
    image, label = data.train.x.flatten(1), torch.as_tensor(data.train.y).float()
    test, truth = data.test.x.flatten(1)[: o["rows"]], torch.as_tensor(data.test.y)[: o["rows"]]
    facts, drawn = {}, []
    for name, guide in GUIDES.items():
        torch.manual_seed(0)
        vae = labelled(guide, image.shape[1], o["latents"], o["width"])
        cost = train(vae, (image, label), o["epochs"], o["seconds"])
        print(f"digits and labels, {name}: {cost['epochs']} epochs, {cost['cpu_seconds']:.0f} s of CPU")
        facts[name] = score(vae, (test, truth.float()), "label", o["num_samples"]) | {"cost": cost}
        if name in o["rule"]:
            facts[name]["classes"] = classes(vae, test, truth, max(1, o["num_samples"] // 5))
        gone = torch.full((100, image.shape[1]), torch.nan)
        of_class = torch.arange(10.0).repeat_interleave(10)
        drawn.append(impute_mean(vae, gone[::10], of_class[::10], site="image", num_samples=o["num_samples"]))
        if name == "product":
            given = impute(vae, gone, of_class, site="image", num_samples=o["num_samples"])[0].numpy()
            title = "image ~ p(image | label), a label in each row (product of experts)"
            grid = image_grid(list(given.reshape(10, 10, -1)), [str(c) for c in range(10)], data.shape, title)
            save(grid, out / "image_given_label.png")
            checks = {s: posterior_predictive_check(vae.model, vae.guide, test, truth.float(), site=s, num_draws=50)
                      for s in ("image", "label")}  # fmt: skip
            facts["checks"] = {s: check.to_dict() for s, check in checks.items()}
            print("\n".join(f"  {s}: {check}" for s, check in checks.items()))
    title = "E[image | label], labels 0 to 9"
    save(image_grid([d.numpy() for d in drawn], list(GUIDES), data.shape, title), out / "mean_image_given_label.png")
    return facts


def halves(o: dict, out: Path) -> dict:
    """The upper and the lower half of an image."""
    data = load(o["data"], binarization="static", **QUIET)
    pixels, d = data.train.x[0].numel() // 2, o["latents"]
    x, test = (split.x.flatten(1).split(pixels, 1) for split in (data.train, data.test))
    test = tuple(part[: o["rows"]] for part in test)
    torch.manual_seed(0)
    prior = StandardNormal(d)
    vae = MultimodalVAE(
        prior,
        {half: SkipMissing(Conditional(MLP(d, pixels, (o["width"],)), bernoulli)) for half in ("upper", "lower")},
        ProductOfExperts(
            prior, {half: Conditional(MLP(pixels, 2 * d, (o["width"],)), normal) for half in ("upper", "lower")}
        ),
    )
    cost = train(vae, x, o["epochs"], o["seconds"])
    print(f"halves of an image: {cost['epochs']} epochs, {cost['cpu_seconds']:.0f} s of CPU")
    facts = score(vae, test, "lower", o["num_samples"]) | {"cost": cost}
    upper, lower = (part[:12] for part in test)
    gone = torch.full_like(lower, torch.nan)
    drawn = impute(vae, upper, gone, site="lower", num_samples=o["num_samples"], draws=5)
    rows = [torch.cat([upper, below], 1).numpy() for below in (lower, gone, *drawn)]
    labels = ["image", "what is seen", *[f"draw {i + 1}" for i in range(len(drawn))]]
    save(image_grid(rows, labels, data.shape, "lower half ~ p(lower | upper)"), out / "lower_given_upper.png")
    return facts


def table(o: dict) -> dict:
    """Diabetes patients: sex, age, BMI, blood pressure; and six measurements of blood serum. 442 rows, 100 held out."""
    raw = torch.as_tensor(load_diabetes(scaled=False).data).float()
    rows = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))
    raw = torch.cat([raw[:, 1:2] - 1, raw[:, :1], raw[:, 2:]], 1)[rows]  # sex as 0 and 1, first
    middle, spread = raw[100:, 1:].mean(0), raw[100:, 1:].std(0)
    x = torch.cat([raw[:, :1], (raw[:, 1:] - middle) / spread], 1)
    clinic, serum = x[:, :4], x[:, 4:]
    d, prior = 4, StandardNormal(4)
    torch.manual_seed(0)
    mixed = columns([(bernoulli, 1, 1), (SharedNormal(3), 3, 3)])
    vae = MultimodalVAE(
        prior,
        {
            "clinic": SkipMissing(Conditional(MLP(d, 4, (16,)), mixed)),
            "serum": SkipMissing(Conditional(MLP(d, 6, (16,)), SharedNormal(6))),
        },
        ProductOfExperts(
            prior,
            {"clinic": Conditional(MLP(4, 2 * d, (16,)), normal), "serum": Conditional(MLP(6, 2 * d, (16,)), normal)},
        ),
    )
    cost = train(vae, (clinic[100:], serum[100:]), o["table_epochs"], o["seconds"], lr=3e-3)
    print(f"a table in two blocks: {cost['epochs']} epochs, {cost['cpu_seconds']:.0f} s of CPU")
    facts = score(vae, (clinic[:100], serum[:100]), "serum", 2 * o["num_samples"]) | {"cost": cost}
    inputs = torch.cat([clinic, torch.ones(len(x), 1)], 1)
    weights = torch.linalg.lstsq(inputs[100:], serum[100:]).solution
    residual = serum[100:] - inputs[100:] @ weights
    for name, cov in (("full", residual.T @ residual / len(residual)), ("none", serum[100:].T.cov())):
        mean = inputs[:100] @ weights if name == "full" else serum[100:].mean(0)
        log_p = dist.MultivariateNormal(mean, cov).log_prob(serum[:100])
        what = "log N(serum; regression on clinic, covariance of residuals)" if name == "full" else "log N(serum)"
        print(f"  {what}: {log_p.mean():.3f} ± {log_p.std() / 10:.3f} (data)")
        facts[what] = {"log_px": log_p.mean().item(), "log_px_data_se": (log_p.std() / 10).item()}
    return facts


def main(
    data: str = "mnist", latents: int = 8, width: int = 256, epochs: int = 1000, table_epochs: int = 300,
    seconds: float = 80, rows: int = 100, num_samples: int = 1000, out: Path = Path(),
    rule: tuple[str, ...] = tuple(GUIDES),
) -> None:  # fmt: skip
    """Under each guide; p(label | image) by Bayes' rule under those in `rule`."""
    o = {name: value for name, value in locals().items() if name != "out"}
    out.mkdir(parents=True, exist_ok=True)
    facts = {"digits and labels": digits(o, out), "halves": halves(o, out), "table": table(o)}
    (out / "multimodal.json").write_text(json.dumps(facts, indent=1, default=str))
    print(f"Pictures: {', '.join(str(p) for p in sorted(out.glob('*.png')))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    parser.add_argument("--seconds", type=float, default=80, help="CPU time of each training")
    parser.add_argument("--out", type=Path, default=Path())
    said = parser.parse_args()
    torch.set_num_threads(1)
    short = {"data": "digits", "latents": 4, "width": 32, "epochs": 1, "table_epochs": 2, "rows": 20, "num_samples": 10}
    short["rule"] = ("product",)
    main(**(short if said.quick else {}), seconds=said.seconds, out=said.out)
