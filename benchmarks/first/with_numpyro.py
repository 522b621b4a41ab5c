"""The first result with NumPyro, after its example of a VAE: the ELBO of test rows."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam
from sklearn.datasets import load_digits

x = jnp.asarray(load_digits().data > 7, dtype=jnp.float32)
train, test = x[:1437], x[1437:]


def layer(key, rows, columns):
    return random.normal(key, (rows, columns)) * rows**-0.5, jnp.zeros(columns)


def network(params, x):
    (w, b), (v, c) = params
    return jax.nn.relu(x @ w + b) @ v + c


keys = random.split(random.PRNGKey(0), 4)
decoder = [layer(keys[0], 8, 64), layer(keys[1], 64, 64)]
encoder = [layer(keys[2], 64, 64), layer(keys[3], 64, 16)]


def model(x):
    params = numpyro.param("decoder", decoder)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=network(params, z)).to_event(1), obs=x)


def guide(x):
    loc, raw = jnp.split(network(numpyro.param("encoder", encoder), x), 2, -1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, jnp.exp(raw)).to_event(1))


svi = SVI(model, guide, Adam(1e-3), Trace_ELBO())
state = svi.init(random.PRNGKey(1), train[:100])


@jax.jit
def epoch(state, key):
    batches = random.permutation(key, len(train))[:1400].reshape(14, 100)
    return lax.scan(lambda state, rows: svi.update(state, train[rows]), state, batches)[0]


for key in random.split(random.PRNGKey(2), 20):
    state = epoch(state, key)
print("ELBO", -svi.evaluate(state, test) / len(test))
