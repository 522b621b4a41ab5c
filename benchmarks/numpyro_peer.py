"""The case in NumPyro, after its own example of a VAE."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

from .cases import PIXELS, Case


def layer(key: Any, rows: int, columns: int) -> tuple[Any, Any]:
    return random.normal(key, (rows, columns)) * rows**-0.5, jnp.zeros(columns)


def network(params: Any, x: Any) -> Any:
    (w, b), (v, c) = params
    return jax.nn.softplus(x @ w + b) @ v + c


def programs(case: Case) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    keys = random.split(random.PRNGKey(0), 4)
    encoder = [layer(keys[0], PIXELS, case.hidden), layer(keys[1], case.hidden, 2 * case.latent)]
    decoder = [layer(keys[2], case.latent, case.hidden), layer(keys[3], case.hidden, PIXELS)]

    def model(x: Any) -> None:
        params = numpyro.param("decoder", decoder)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(case.latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=network(params, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        loc, raw = jnp.split(network(numpyro.param("encoder", encoder), x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-4).to_event(1))

    return model, guide


def scan(case: Case, data: Any, precision: str | None = None) -> Callable[[int], Any]:
    """``run(steps)``: the whole loop is one compiled call, as in NumPyro's example.

    `precision` of matrix products, as ``jax.default_matmul_precision`` names it. None is XLA's own choice: TF32 on a GPU,
    float32 on a CPU, where "float32" is the same.
    """
    x = jnp.asarray(data.cpu().numpy())
    svi = SVI(*programs(case), Adam(1e-3), Trace_ELBO())
    state = svi.init(random.PRNGKey(1), x[: case.batch])

    @jax.jit
    def loop(state: Any, key: Any, steps: Any) -> Any:
        order = random.permutation(key, len(x))

        def body(i: Any, carry: Any) -> Any:
            state, total = carry
            rows = lax.dynamic_slice_in_dim(order, (i * case.batch) % (len(x) - case.batch + 1), case.batch)
            state, loss = svi.update(state, x[rows])
            return state, total + loss

        return lax.fori_loop(0, steps, body, (state, 0.0))

    count = 0

    def run(steps: int) -> None:
        nonlocal state, count
        count += 1
        with jax.default_matmul_precision(precision) if precision else nullcontext():
            state, total = loop(state, random.PRNGKey(count), steps)
        jax.block_until_ready(total)

    return run
