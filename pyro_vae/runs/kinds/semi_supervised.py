"""p(y) p(z) p(x | z, y): classes of which some labels are known (M2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.diagnostics.classification import classification
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.errors import DataError, UsageError
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.models import usage
from pyro_vae.models.classes import MISSING, Classes
from pyro_vae.models.semi_supervised import SemiSupervised
from pyro_vae.objectives.bound_objective import Term
from pyro_vae.objectives.supervised import supervised
from pyro_vae.priors.simple import StandardNormal
from pyro_vae.programs.pair import evaluation_mode
from pyro_vae.runs.config import Config

from .kind import Batch, ModelKind, Shape
from .parts import ModelParts


def categorical(h: Tensor) -> dist.Categorical:
    """Return the distribution of classes by their logits."""
    return dist.Categorical(logits=h)


def make_semi_supervised(parts: ModelParts, classes: int = 0, labelled: int = 0, weight: float = 0.1) -> SemiSupervised:
    """Make M2, of as many classes as the labels have where none are said."""
    if classes < 2:
        raise UsageError(f"--model.classes: wanted 2 or more (by default those of the labels), got {classes}")
    dim = parts.config.latent_dim
    likelihood = parts.likelihood(dim, classes)
    classifier = Conditional(parts.see(classes), categorical, event_dim=0)
    posterior = Conditional(parts.see(2 * dim, classes), normal)
    parts.start(likelihood)
    return SemiSupervised(Classes(classes), StandardNormal(dim), likelihood, classifier, posterior)


def decide(options: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """Take the number of classes, and of labels, from the labels of the data."""
    labels = torch.cat([labels_of(getattr(data, name), name) for name in ("train", "validation", "test")])
    found, known = int(labels.max()) + 1, int((labels_of(data.train, "train") != MISSING).sum())
    if options["classes"] and options["classes"] < found:
        raise UsageError(f"--model.classes {options['classes']}, but the labels go up to {found - 1}: leave it out")
    if not 0 <= options["labelled"] <= known:
        raise UsageError(
            f"--model.labelled {options['labelled']}: {known} of {len(data.train)} training rows have a label. Say how many of "
            "them are to be known, or leave it out for all."
        )
    if not known:
        raise DataError(
            "all labels of the training rows are missing (-1): q(y | x) cannot be trained. Take --model gmvae"
        )
    return {**options, "classes": options["classes"] or found, "labelled": options["labelled"] or known}


def passed_over(options: Mapping[str, Any], data: Data) -> list[str]:
    """Say where labels are left out, or classes have none: by a config that was made for other data, perhaps."""
    every = [labels_of(getattr(data, name), name) for name in ("train", "validation", "test")]
    kept, known, notes = int(options["labelled"]), int((every[0] != MISSING).sum()), []
    if kept < known:
        notes.append(
            f"{kept} of the {known} labels of training rows are known, {known - kept} are left out (--model.labelled {known}, "
            "or 0, for all)"
        )
    if (found := int(torch.cat(every).max()) + 1) < options["classes"]:
        notes.append(
            f"{options['classes']} classes, and the labels are of {found}: p(y) gives each class the same, so that log p(x) of "
            f"rows is of {options['classes']} (--model.classes {found}, or 0, for those of the labels)"
        )
    return notes


def labels_of(split: Split, name: str = "train") -> Tensor:
    """Return the labels of a split, −1 where there is none.

    Raises:
        DataError: it has none, or they are no whole numbers from 0.
    """
    if split.y is None:
        raise DataError(
            "model 'semi_supervised' is trained with labels, and the data has none: name their column (of a .csv) or array (of "
            "an .npz) by --label NAME"
        )
    y = split.y
    if y.is_floating_point() or bool((y < MISSING).any()) or y.dim() != 1:
        raise DataError(
            f"{name} labels are no classes: wanted a whole number from 0 for each row, and -1 where it is missing; got "
            f"{tuple(y.shape)} of {y.dtype} from {y.min().item():g} to {y.max().item():g}"
        )
    return y


def train_rows(split: Split, shape: Shape, config: Config) -> Batch:
    """x and the labels that are to be known of training rows: as many of each class as there can be, by the data's seed."""
    wanted: Any = config.model_options.get("labelled", 0)
    return split.x, keep_labels(labels_of(split), int(wanted), config.data_seed)


def keep_labels(y: Tensor, count: int, seed: int) -> Tensor:
    """Keep so many labels, one class after the other in turn; −1 for the others, and all where none are to go.

    Example:
        >>> keep_labels(torch.tensor([0, 0, 0, 1, 1, -1]), 2, seed=0).sort().values
        tensor([-1, -1, -1, -1,  0,  1])
    """
    known = (y != MISSING).nonzero().flatten()
    if not count or count == len(known):
        return y
    shuffled = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    # its number within its class: the first of each class come before the second of any
    turn = torch.zeros(len(shuffled), dtype=torch.int64)
    for c in y[shuffled].unique():
        mine = (y[shuffled] == c).nonzero().flatten()
        turn[mine] = torch.arange(len(mine))
    kept = shuffled[turn.argsort(stable=True)[:count]]
    return torch.full_like(y, MISSING).index_put((kept,), y[kept])


def terms(config: Config, rows: int) -> tuple[Term, ...]:
    """α log q(y | x) of the labelled rows, α = weight · N / (number of labels), as Kingma et al. have it."""
    options: Mapping[str, Any] = config.model_options
    return (supervised(float(options["weight"]) * rows / max(1, int(options["labelled"]))),)


def encode(model: SemiSupervised, x: Tensor) -> Tensor:
    """E[z | x] = Σ_y q(y | x) E[z | x, y]."""
    with evaluation_mode(model):
        every = torch.eye(len(model.classes().logits), device=x.device)
        means = [model.posterior(x, y.expand(len(x), -1)).mean for y in every]
        return torch.einsum("nc,ncd->nd", model.classifier(x).probs, torch.stack(means, 1))


def reconstruct(model: SemiSupervised, x: Tensor) -> Tensor:
    """E[x | z, y] at the most probable class y, and z = E[z | x, y]."""
    with evaluation_mode(model):
        y = model.classifier(x).probs.argmax(-1)
    means: Tensor = usage.reconstruct(model, x, y)
    return means


def likelihood_of_rows(model: SemiSupervised, x: Tensor) -> Any:
    """p(x | z, y) at the most probable class y, and z = E[z | x, y]."""
    with evaluation_mode(model):
        y = model.one_hot(model.classifier(x).probs.argmax(-1))
        return model.likelihood(model.posterior(x, y).mean, y)


def likelihood_of_draws(model: SemiSupervised, shape: Shape, num_samples: int, seed: int) -> Any:
    """p(x | z, y) at draws of both."""
    drawn = usage.sample((model.model, model.guide), num_samples, seed=seed)
    with evaluation_mode(model):
        return model.likelihood(drawn["z"], model.one_hot(drawn["y"]))


def report(model: SemiSupervised, split: Split, shape: Shape) -> dict[str, Any]:
    """Measure accuracy and calibration of q(y | x) on rows whose label is known."""
    if split.y is None or bool((split.y == MISSING).all()):
        return {}
    device = next(model.parameters()).device
    with evaluation_mode(model):
        found = classification(model.classify(split.x.to(device)), split.y.to(device))
    told = {"accuracy": found.accuracy, "accuracy_se": found.accuracy_se, "rows": len(found)}
    return {"classification": told | {"ece": found.ece, "ece_limit": found.ece_limit}}


KIND = ModelKind(
    make=make_semi_supervised, labels=True, objectives=("elbo",), decide=decide, passed_over=passed_over,
    train_rows=train_rows, terms=terms,
    encode=encode, reconstruct=reconstruct, report=report,
    likelihood_of_rows=likelihood_of_rows, likelihood_of_draws=likelihood_of_draws,
    interpolate="a code is a class and a z, and between two classes there is nothing. Of one class, in Python: "
    "interpolate(vae, start, end, y), the class of each row in y",
    formula="p(y) p(z) p(x|z,y); q(y|x) q(z|x,y)", support="any x, labels y",
    reference="Kingma, Rezende, Mohamed & Welling, 2014, https://arxiv.org/abs/1406.5298",
)  # fmt: skip
