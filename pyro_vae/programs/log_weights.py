r"""One tensor from any (model, guide) pair: log_w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n), in nats."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae.common.given import whole

from .pair import without_validation
from .parameters import ModulesOwnParameters, store_restored
from .problem import Problem, summing_marks
from .reach import check_reach
from .row_coupling import warn_of_guide
from .sites import Program
from .structured import on_tensors
from .summed_out import without_marked


def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, vectorize_particles: bool = True, **kwargs: Any
) -> Tensor:
    r"""log w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n) for z_kn ~ q(z | x_n), shape ``(K, N)``, nats.

    Traces the guide, replays the model on its draws, and adds up the sites' log-probabilities, row by row. Sizes of
    subsampled plates and ``poutine.scale`` do not enter (they weigh a loss, not a density); masks do. Outside the support
    that the model gives a latent, or the data, log w is −∞. Modules run in the mode that they are in (dropout and batch
    statistics act while they train): ``.eval()`` is yours to call where log w is to be a score.

    Args:
        model: a Pyro program whose sites all lie in one plate over the rows of the data (inner plates are summed).
        guide: a Pyro program for the same latent sites.
        *args, **kwargs: what both programs take, usually x of shape ``(N, *event)`` and contexts with N rows.
        num_particles: K.
        vectorize_particles: run both programs once for all K particles, in the way that a probe at the start finds to mean the
            same (:class:`~pyro_vae.programs.problem.Problem`); ``False`` runs them K times.

    Raises:
        ProgramError: a pair without such a plate, with a latent or an observation outside it, with a latent in one
            program only, or with sites marked for enumeration and no other latents; invalid parameters of a distribution; a
            model whose densities of a row change with other rows; a plate that subsamples within a row; a guide that never
            draws some of what p(x, z) allows. The message names the site.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact_posterior(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> log_weights(model, exact_posterior, x, num_particles=2)   # the exact posterior makes every weight p(x)
        tensor([[-1.2655, -1.5155], [-1.2655, -1.5155]])
    """
    num_particles = whole("num_particles", num_particles, 1)
    model, guide, args = on_tensors(model, guide, *args)
    # torch's validation names no row, and stops where a density is 0: ours does neither
    with ModulesOwnParameters(), without_validation():
        problem = summing_marks(
            lambda p, q: Problem.unprobed(p, q, args, kwargs),
            (model, guide),
            lambda: (model, guide) if kwargs else without_marked(model, guide, *args),
        )
        problem = problem.probed(vectorize_particles)
        warn_of_guide(problem, "its log q(z | x) and log w")
        # on a stream of its own, as the draws below are of the one around; and parameters first made here are of few rows
        with store_restored(), problem.quiet(0):
            check_reach(
                problem, otherwise="score with log_likelihood(..., proposal=defensive(0.1)), which reaches all of it"
            )
        return problem.log_probs(num_particles).log_w
