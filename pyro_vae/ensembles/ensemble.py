"""`Ensemble`: trained members, each a model of its own, and log p(x) of their architecture with the error over seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any, overload

import torch

from pyro_vae.common.counted import counted
from pyro_vae.errors import UsageError
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.evidence.over_seeds import SeedComparison, SeedEvidence, compare_seeds
from pyro_vae.programs.pair import programs
from pyro_vae.training.training_state import FitResult


@dataclass(eq=False)
class Ensemble:
    """Models of one architecture, trained under a seed each by :func:`~pyro_vae.fit_ensemble`.

    ``ensemble[i]`` is a model like any other, with parameters of its own; ``len(ensemble)``, iteration and slices go over all.

    Attributes:
        members: what `make` made, trained.
        seeds: of each.
        results: the :class:`~pyro_vae.FitResult` of each.
        diverged: seed to message, of members that diverged. They hold their best weights before that, and no number over seeds
            counts them.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit_ensemble
        >>> def make():
        ...     return VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> ensemble = fit_ensemble(make, torch.randn(64, 3), seeds=range(3), epochs=1, verbose=False)
        >>> evidence = ensemble.log_likelihood(torch.randn(10, 3), num_samples=100, verbose=False)
        >>> evidence.means.shape, evidence.seed_se > 0
        (torch.Size([3]), True)
    """

    members: list[Any]
    seeds: tuple[int, ...]
    results: list[FitResult]
    diverged: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Ensemble: ...

    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            return self.members[index]
        diverged = {s: why for s, why in self.diverged.items() if s in self.seeds[index]}
        return Ensemble(self.members[index], self.seeds[index], self.results[index], diverged)

    def log_likelihood(
        self,
        x: Any,
        *context: Any,
        method: str = "importance",
        num_samples: int = 1000,
        proposal: Proposal = GUIDE,
        seed: int = 0,
        chunk_size: int = 4096,
        missing: bool = False,
        device: torch.device | str | None = None,
        verbose: bool = True,
    ) -> SeedEvidence:
        """Score each member on the same rows: log p(x) with ± seed beside ± Monte Carlo and ± data.

        Args:
            x, context, method, num_samples, proposal, chunk_size, missing, device, verbose: as for
                :func:`~pyro_vae.log_likelihood`.
            seed: of the first member's particles; those of member i are under ``seed + i``, so that Monte Carlo errors of
                members are independent, and can be told from the spread over seeds.

        Raises:
            UsageError: every member diverged.
        """
        options: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal, "chunk_size": chunk_size}
        options |= {"device": device, "verbose": verbose, "seed": seed}
        counted = [(s, m) for s, m in zip(self.seeds, self.members, strict=True) if s not in self.diverged]
        scored = []
        for i, (_, member) in enumerate(counted):
            drawn = {} if method == "exact" else options | {"seed": seed + i}
            scored.append(log_likelihood(*programs(member), x, *context, method=method, missing=missing, **drawn))
        if not scored:
            raise UsageError("every member of the ensemble diverged: there is no log p(x) of trained models")
        return SeedEvidence(tuple(scored), tuple(s for s, _ in counted), self.diverged)

    def compare(
        self,
        other: Any,
        x: Any,
        *context: Any,
        names: tuple[str, str] = ("first", "second"),
        method: str = "importance",
        num_samples: int = 1000,
        seed: int = 0,
        missing: bool = False,
        verbose: bool = True,
    ) -> SeedComparison:
        """Compare with another ensemble (or one model) on the same rows: is this architecture better, whatever the seed?

        The errors and the verdict are those of :func:`~pyro_vae.evidence.over_seeds.compare_seeds`. Of one model nobody knows
        the error over seeds, and the verdict says so.
        """
        second = other if isinstance(other, Ensemble) else Ensemble([other], (0,), [FitResult()])
        scored = [
            ensemble.log_likelihood(
                x, *context, method=method, num_samples=num_samples, seed=first, missing=missing, verbose=verbose
            )
            for ensemble, first in ((self, seed), (second, seed + len(self)))
        ]
        return compare_seeds(scored[0], scored[1], names)

    def __repr__(self) -> str:
        best = [r.best["elbo"] for r in self.results if r.best.get("elbo") is not None]
        spread = f" (sd over seeds {stdev(best):.3f})" if len(best) > 1 else ""
        elbo = f", best ELBO {mean(best):.3f}{spread}" if best else ""
        gone = f", {len(self.diverged)} diverged" if self.diverged else ""
        return f"Ensemble of {counted(len(self), 'member')}, seeds {', '.join(map(str, self.seeds))}{elbo}{gone}"
