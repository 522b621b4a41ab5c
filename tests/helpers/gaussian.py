"""The smallest model of which all is known."""

import pyro
import pyro.distributions as dist


def gaussian(x):
    """z ~ N(0, 1), x | z ~ N(z, 1), where x is: the posterior is N(x / 2, 1 / 2), and p(x) = N(x; 0, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
