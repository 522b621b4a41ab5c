"""Programs whose gradients are compared, and the comparison: one mean within its error, and less noise where claimed."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch.nn.functional import softplus

from pyro_vae import Bound, ciwae, elbo, iwae, miwae, pathwise, piwae, renyi, tvo
from pyro_vae.objectives.gradient_estimators import Estimate
from pyro_vae.programs.vectorize_probe import ProbedOnce
from tests.helpers.exact import LinearGaussian

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}


def values(seed=5, **shapes):
    """Parameters of these shapes, ~ N(0, 0.7²), without rows."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.7 * torch.randn(shape, generator=generator, **F64) for name, shape in shapes.items()}


def decode(p, z):
    """(…, N, 2) to (…, N, 3), through weights of each row's own."""
    return torch.einsum("...nl,nlc->...nc", z.tanh(), p["weight"]) + p["bias"]


ONE = values(prior_loc=2, prior_raw=2, weight=(2, 3), bias=3, loc=2, raw=2)


def one_prior(p):
    return dist.Normal(p["prior_loc"], softplus(p["prior_raw"])).to_event(1)


def one_model(p, x, prior=one_prior):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior(p))
        pyro.sample("x", dist.Normal(decode(p, z), 0.5).to_event(1), obs=x)


def one_guide(p, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(p["loc"], softplus(p["raw"])).to_event(1))


TWO = values(weight=(2, 3), bias=3, prior_loc=2, loc=2, raw=2, slope=2, loc2=2, raw2=2)


def two_model(p, x):
    """z2, z1 given z2, x given both: the other way round than the guide."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2, **F64), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(p["prior_loc"] * z2.tanh(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(p, z1 + 0.5 * z2), 0.5).to_event(1), obs=x)


def two_guide(p, x):
    """z1, then z2 whose mean and width depend on z1."""
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(p["loc"], softplus(p["raw"])).to_event(1))
        width = softplus(p["raw2"] + 0.5 * z1)
        pyro.sample("z2", dist.Normal(p["loc2"] + p["slope"] * z1.sin(), width).to_event(1))


PROGRAMS = {"one": (one_model, one_guide, ONE), "two": (two_model, two_guide, TWO)}


KNOWN = {}  # how pairs of functions run, whose parameters alone are others from call to call


class ProbedBefore(ProbedOnce):
    """Probes a pair of functions in the first call alone."""

    def __init__(self, *pair):
        super().__init__()
        self.pair = pair

    def find(self, problem):
        """Return how the pair runs, if that is known."""
        return KNOWN.get(self.pair)

    def __exit__(self, *error):
        if self.found:
            KNOWN[self.pair] = self.found[-1][-1]
        return super().__exit__(*error)


def gradients(objective, model, guide, parameters, rows=ROWS, seed=0, x=X, wrap=lambda program: program):
    """∂F / ∂p of each row: the parameters' names to ``(rows, coordinates)``."""
    p = {name: value.expand(rows, *value.shape).clone().requires_grad_() for name, value in parameters.items()}
    torch.manual_seed(seed)
    programs = wrap(partial(model, p)), wrap(partial(guide, p))
    with ProbedBefore(model, guide, wrap):
        loss = objective.differentiable_loss(*programs, x.expand(rows, *x.shape).clone())
    loss.backward()
    return {n: torch.zeros(rows, 1) if t.grad is None else -t.grad.reshape(rows, -1) for n, t in p.items()}


def t_values(rows, truth=0.0):
    """mean(rows − truth) / its standard error for each coordinate ``(N, coordinates)``; 0 where both vanish."""
    difference = rows - truth
    error = difference.std(0) / len(difference) ** 0.5
    scale = rows.abs().max() + 1  # a difference of rounding only is none
    return torch.where(difference.abs().amax(0) < 1e-10 * scale, torch.zeros_like(error), difference.mean(0) / error)


def worst(found, truth):
    """The largest |t| over all parameters, and whose it is."""
    t = {n: t_values(found[n], truth[n]).abs().max().item() for n in found}
    name = max(t, key=t.get)
    return t[name], name


def compare(bound, estimator, program, k=5, groups=None, reference=pathwise, same_noise=True, **options):
    """The largest |t| between the means of an estimator and of a reference."""
    kwargs = {"num_particles": k, "num_groups": groups}
    a = gradients(Bound(bound, estimator=estimator, **kwargs), *PROGRAMS[program], **options)
    b = gradients(Bound(bound, estimator=reference, **kwargs), *PROGRAMS[program], **options)
    assert same_noise or not torch.equal(a["loc"], b["loc"])
    return worst(a, b)


BOUNDS = {
    "iwae": (iwae, None),
    "renyi": (renyi(0.5), None),
    "ciwae": (ciwae(0.3), None),
    "tvo": (tvo(4, 0.1), None),
    "miwae": (miwae, 3),
    "piwae": (piwae, 3),
    "elbo": (elbo, None),
}


def over_tuples(function, probability, k):
    """E function(tuple) over K independent states, of S: `function` takes the states' numbers ``(S^K, K)``."""
    grid = torch.cartesian_prod(*[torch.arange(len(probability))] * k).reshape(-1, k)
    return (probability[grid].prod(1) * function(grid)).sum()


def exact_gradient(states, parameters, bound, k):
    """∂ E F(log w_1 … log w_K), by name; `states(p)` are (probabilities, log weights), each ``(S,)``, of one particle."""
    p = {n: v.clone().requires_grad_() for n, v in parameters.items()}
    probability, log_w = states(p)
    total = over_tuples(lambda grid: bound(log_w[grid].T), probability, k)
    grads = torch.autograd.grad(total, list(p.values()), allow_unused=True)
    return {n: (torch.zeros(1, **F64) if g is None else g).reshape(-1) for n, g in zip(p, grads, strict=True)}


CATEGORICAL = values(prior_logits=3, weight=(3, 3), logits=3)


def categorical_model(p, x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=p["prior_logits"]))
        loc = torch.einsum("...nl,nlc->...nc", z, p["weight"])
        pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)


def categorical_guide(p, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.OneHotCategorical(logits=p["logits"]))


def categorical_states(p):
    log_q = p["logits"].log_softmax(-1)
    log_px = dist.Normal(p["weight"], 0.7).log_prob(X).sum(-1)
    return log_q.exp(), p["prior_logits"].log_softmax(-1) + log_px - log_q


MIXED = values(seed=8, prior_logit=1, jump=1, shift=1, logit=1, slope=1, loc=1, raw=1)


def mixed_model(p, x):
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(logits=p["prior_logit"][:, 0]))
        y = pyro.sample("y", dist.Normal(p["jump"][:, 0] * s, 1.0))
        pyro.sample("x", dist.Normal(y.tanh() + p["shift"][:, 0] * s, 0.5), obs=x[:, 0])


def normal_first(p, x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(p["loc"][:, 0], softplus(p["raw"][:, 0])))
        pyro.sample("s", dist.Bernoulli(logits=p["logit"][:, 0] + 2 * p["slope"][:, 0] * y))


class Exact:
    """The linear-Gaussian model with its exact posterior as the guide's parameters, one site or two."""

    def __init__(self):
        self.truth = LinearGaussian()
        self.x = self.truth.x[:20]
        q = self.truth.exact(self.x)
        l11 = q.cov[0, 0].sqrt()
        slope = q.cov[0, 1] / q.cov[0, 0]
        rest = (q.cov[1, 1] - slope * q.cov[0, 1]).sqrt()
        self.parameters = [t.clone().requires_grad_() for t in (q.loc, torch.linalg.cholesky(q.cov), slope, l11, rest)]

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1, z2 = (pyro.sample(n, dist.Normal(torch.zeros((), **F64), 1.0)) for n in ("z1", "z2"))
            pyro.sample("x", self.truth.likelihood(torch.stack([z1, z2], -1)), obs=x)

    def guide(self, x):
        loc, _, slope, l11, rest = self.parameters
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(loc[:, 0], l11))
            pyro.sample("z2", dist.Normal(loc[:, 1] + slope * (z1 - loc[:, 0]), rest))

    def joint_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(self.parameters[0], scale_tril=self.parameters[1]))

    def largest(self, objective, sites):
        model, guide = (self.model, self.guide) if sites == 2 else (self.truth.model, self.joint_guide)
        loss = objective.differentiable_loss(model, guide, self.x)
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return max(g.abs().max().item() for g in grads if g is not None)


def wrong(function, **options):
    return Estimate(function.__name__, function, **options)


def loss_of(objective, model=categorical_model, guide=categorical_guide, parameters=CATEGORICAL):
    return gradients(objective, model, guide, parameters, rows=4)
