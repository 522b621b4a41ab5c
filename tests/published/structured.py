"""Hierarchies, flows, Gaussian processes, plates in plates, masks, experts, and programs with a closed form."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from .recipe import N, Pair, bits, cat, halves, mlp, recipe

Z = 2


def float64_normal(loc, cov, x):
    """log N(x; loc, cov) of rows."""
    return dist.MultivariateNormal(loc.double(), cov.double()).log_prob(x.double())


class Ladder(nn.Module):
    """Ladder VAE (Sønderby et al. 2016): two levels, the guide goes down as the model does, and joins both precisions."""

    def __init__(self, columns=5):
        super().__init__()
        self.up_1, self.up_2 = mlp(columns, 2), mlp(columns, 2)
        self.down, self.decoder = mlp(1, 2), mlp(1, columns)

    def model(self, x):
        pyro.module("ladder", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(*halves(self.down(z2))).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z1), 0.8).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("ladder", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(*halves(self.up_2(x))).to_event(1))
            (a, s), (b, r) = halves(self.up_1(x)), halves(self.down(z2))
            precision = 0.25 * s**-2 + r**-2
            loc = (0.25 * a * s**-2 + b * r**-2) / precision
            pyro.sample("z1", dist.Normal(loc, precision**-0.5).to_event(1))


@recipe("ladder", "Ladder VAE (Sønderby et al. 2016), two levels")
def ladder():
    net = Ladder()
    return Pair(net.model, net.guide, torch.randn(N, 5), net=net)


class Flows(nn.Module):
    """A flow as prior, or as posterior."""

    def __init__(self, make, columns=5):
        super().__init__()
        self.flow, self.decoder, self.encoder = make(Z, [4]), mlp(Z, columns), mlp(columns, 2 * Z)
        for p in self.flow.parameters():
            p.data.mul_(0.5)

    def prior_model(self, x):
        pyro.module("flows", self)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(Z), torch.ones(Z)).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def plain_model(self, x):
        pyro.module("flows", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), torch.ones(Z)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def plain_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*halves(self.encoder(x))).to_event(1))

    def flow_guide(self, x):
        pyro.module("flows", self)
        with pyro.plate("data", len(x)):
            base = dist.Normal(*halves(self.encoder(x))).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


@recipe("flow-prior", "A RealNVP prior (pyro.distributions.transforms.affine_coupling)")
def flow_prior():
    net = Flows(T.affine_coupling)
    return Pair(net.prior_model, net.plain_guide, bits(N, 5), net=net)


@recipe("flow-posterior", "An IAF posterior (Kingma et al. 2016), of Pyro's affine_autoregressive")
def flow_posterior():
    net = Flows(T.affine_autoregressive)
    return Pair(net.plain_model, net.flow_guide, bits(N, 5), net=net)


@recipe("gp-within", "GP prior VAE: a Gaussian process over each row's own times; exact")
def gp_within():
    t = torch.arange(2.0)
    kernel = (-(t[:, None] - t).square() / 2).exp() + 1e-3 * torch.eye(2)
    a, noise = torch.tensor([1.0, -0.7]), 0.6

    def model(x):
        with pyro.plate("data", len(x)):
            f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(2), kernel))
            pyro.sample("x", dist.Normal(f * a + 0.2, noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("f", dist.MultivariateNormal(0.6 * x * a, kernel * 0.6))

    def exact(x):
        return float64_normal(torch.full((2,), 0.2), a[:, None] * kernel * a + noise**2 * torch.eye(2), x)

    return Pair(model, guide, torch.randn(N, 2), exact=exact, linear=True)


@recipe("gp-across", "GP prior VAE (Casale et al. 2018): the process runs across rows")
def gp_across():
    def model(x, t):
        kernel = (-(t[:, None] - t).square() / 2).exp() + 1e-2 * torch.eye(len(t))
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(t)), kernel))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(f.unsqueeze(-1), 0.5).expand([len(x), 3]).to_event(1), obs=x)

    def guide(x, t):
        pyro.sample("f", dist.Normal(x.mean(-1), 0.4).to_event(1))

    def whole_px(x, t):
        """Each column is normal, of the process beside its noise, which all columns share."""
        kernel = (-(t[:, None] - t).square() / 2).exp() + 1e-2 * torch.eye(len(t))
        cov = kernel.repeat_interleave(3, 0).repeat_interleave(3, 1) + 0.25 * torch.eye(3 * len(t))
        return float64_normal(torch.zeros(3 * len(t)), cov, x.reshape(-1))

    return Pair(model, guide, torch.randn(N, 3), (torch.arange(float(N)),), shared="f", whole_px=whole_px, linear=True)


class Groups(nn.Module):
    """A latent of the group and one of each point (neural statistician); `flat` folds both plates for a network."""

    def __init__(self, flat):
        super().__init__()
        self.flat, self.decoder, self.encoder = flat, mlp(2, 1), mlp(1, 2)

    def model(self, x):
        pyro.module("groups", self)
        with pyro.plate("groups", x.shape[0], dim=-2):
            c = pyro.sample("c", dist.Normal(torch.zeros(x.shape[0], 1), 1.0))
            with pyro.plate("points", x.shape[1], dim=-1):
                z = pyro.sample("z", dist.Normal(c, 0.8))
                pair = torch.stack(torch.broadcast_tensors(c, z), -1)
                loc = (
                    self.decoder(pair.reshape(-1, 2)).reshape(x.shape) if self.flat else self.decoder(pair).squeeze(-1)
                )
                pyro.sample("x", dist.Normal(loc, 0.7), obs=x)

    def guide(self, x):
        with pyro.plate("groups", x.shape[0], dim=-2):
            c = pyro.sample("c", dist.Normal(x.mean(1, keepdim=True) / 4, 1.0))
            with pyro.plate("points", x.shape[1], dim=-1):
                loc, scale = halves(self.encoder(x.unsqueeze(-1)))
                pyro.sample("z", dist.Normal(loc.squeeze(-1) / 4 + 0.9 * c, scale.squeeze(-1)))


@recipe("nested-plates", "Neural statistician (Edwards & Storkey 2017): a latent of the group, one of each point")
def nested():
    net = Groups(flat=False)
    return Pair(net.model, net.guide, torch.randn(N, 2), net=net)


@recipe("nested-flattened", "The same, both plates flattened for the decoder")
def nested_flat():
    net = Groups(flat=True)
    return Pair(net.model, net.guide, torch.randn(N, 2), net=net)


@recipe("transposed-plates", "Features in the left plate, rows in the right one: obs=x.T")
def transposed():
    w = torch.tensor([1.0, -0.5, 0.3])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 3, dim=-2):
                pyro.sample("x", dist.Normal(z * w.unsqueeze(-1), 0.6), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.6 * (x @ w), 0.6))

    def exact(x):
        return float64_normal(torch.zeros(3), torch.outer(w, w) + 0.36 * torch.eye(3), x)

    return Pair(model, guide, torch.randn(N, 3), exact=exact, x_of=lambda sites: sites["x"].T, linear=True)


@recipe("masked", "Missing entries by .mask(mask), factor analysis; exact on what was observed")
def masked():
    w = torch.randn(Z, 4)

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, 0.7).mask(mask).to_event(1), obs=x)

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * (x * mask) @ w.T, 0.8).to_event(1))

    def exact(x, mask):
        cov = w.T @ w + 0.49 * torch.eye(4)
        there = [m.bool() for m in mask]
        rows = [
            float64_normal(torch.zeros(int(m.sum())), cov[m][:, m], row[m]) for row, m in zip(x, there, strict=True)
        ]
        return torch.stack(rows)

    x, mask = torch.randn(N, 4), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    return Pair(model, guide, x, (mask,), exact=exact, linear=True)


@recipe("ppca", "Probabilistic PCA (Tipping & Bishop 1999); exact")
def ppca():
    w, mean = torch.randn(Z, 4), torch.randn(4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w + mean, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * (x - mean) @ w.T, 0.7).to_event(1))

    return Pair(
        model, guide, torch.randn(N, 4), exact=lambda x: float64_normal(mean, w.T @ w + 0.49 * torch.eye(4), x),
        linear=True,
    )  # fmt: skip


def coins(x):
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0), 3.0))
        pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1)).expand([*p.shape, 4]).to_event(1), obs=x)


def beta_bernoulli(x):
    """log p(x) = log B(2 + heads, 3 + tails) − log B(2, 3)."""
    heads, flips = x.double().sum(-1), x.shape[-1]
    a, b = 2 + heads, 3 + flips - heads
    return a.lgamma() + b.lgamma() - (a + b).lgamma() + math.lgamma(5) - math.lgamma(2) - math.lgamma(3)


@recipe("coins", "Pyro's Beta-Bernoulli coin, a coin a row; exact")
def beta_coins():
    def guide(x):
        with pyro.plate("data", len(x)):
            heads = x.sum(-1)
            pyro.sample("p", dist.Beta(2.2 + 0.7 * heads, 3.2 + 0.7 * (4 - heads)))

    return Pair(coins, guide, bits(N, 4), exact=beta_bernoulli)


@recipe("autonormal", "The same coins under Pyro's AutoNormal")
def autonormal():
    x, guide = bits(N, 4), AutoNormal(coins, init_scale=0.7)
    guide(x)  # Pyro makes its parameters at the first call
    return Pair(coins, guide, x, net=guide, exact=beta_bernoulli, whole=True)


@recipe("bayesian-regression", "Pyro's Bayesian regression: weights are shared by all rows")
def regression():
    def model(y, x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    def guide(y, x):
        loc = pyro.param("w_loc", torch.zeros(2))
        pyro.sample("w", dist.Normal(loc, 0.6).to_event(1))

    return Pair(
        model, guide, torch.randn(N), (torch.randn(N, 2),), shared="w", linear=True,
        whole_px=lambda y, x: float64_normal(torch.zeros(len(y)), x @ x.T + 0.25 * torch.eye(len(y)), y),
    )  # fmt: skip


class Mixture(nn.Module):
    """Mixture of experts: a gate on the covariates chooses the expert that y is drawn from."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts, self.responsible = nn.Linear(2, 3), nn.Linear(2, 3), mlp(3, 3)

    def model(self, y, c):
        pyro.module("experts", self)
        with pyro.plate("data", len(y)):
            k = pyro.sample("expert", dist.Categorical(logits=self.gate(c)))
            loc = nn.functional.one_hot(k, 3).to(c).mul(self.experts(c)).sum(-1)
            pyro.sample("y", dist.Normal(2 * loc, 0.5), obs=y)

    def guide(self, y, c):
        with pyro.plate("data", len(y)):
            pyro.sample("expert", dist.Categorical(logits=self.responsible(cat(c, y.unsqueeze(-1)))))

    def exact(self, y, c):
        log_gate = self.gate(c).double().log_softmax(-1)
        return (log_gate + dist.Normal(2 * self.experts(c).double(), 0.5).log_prob(y.double().unsqueeze(-1))).logsumexp(
            -1
        )


@recipe("experts", "Mixture of experts (Jacobs et al. 1991), the gate on covariates; exact by the sum")
def experts():
    net = Mixture()
    return Pair(net.model, net.guide, torch.randn(N), (torch.randn(N, 2),), net=net, exact=net.exact)


class Circle(nn.Module):
    """Hyperspherical VAE on the circle: von Mises prior and posterior."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = mlp(2, 4), mlp(4, 2)

    def logits(self, angle):
        return 2 * self.decoder(torch.stack([angle.cos(), angle.sin()], -1))

    def model(self, x):
        pyro.module("circle", self)
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.3), torch.tensor(0.5)))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(angle)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, kappa = self.encoder(x).unbind(-1)
            pyro.sample("angle", dist.VonMises(loc, nn.functional.softplus(kappa) + 0.5))

    def exact(self, x):
        """By the midpoint rule on the circle."""
        angle = (torch.arange(4000) + 0.5) / 4000 * 2 * math.pi - math.pi
        likelihood = dist.Bernoulli(logits=self.logits(angle).double().unsqueeze(1)).to_event(1).log_prob(x.double())
        prior = dist.VonMises(torch.tensor(0.3), torch.tensor(0.5)).log_prob(angle).double().unsqueeze(-1)
        return (prior + likelihood).logsumexp(0) + math.log(2 * math.pi / 4000)


@recipe("von-mises", "Hyperspherical VAE (Davidson et al. 2018), on the circle; exact by the midpoint rule")
def von_mises():
    net = Circle()
    return Pair(net.model, net.guide, bits(N, 4), net=net, exact=net.exact)


class Codes(nn.Module):
    """A discrete code, drawn by its guide from a relaxed distribution with straight-through gradients, or relaxed in both."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = mlp(3, 5), mlp(5, 3)

    def hard_model(self, x):
        pyro.module("codes", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def straight_guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.encoder(x)
            pyro.sample("z", dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), logits=logits))

    def hard_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=self.encoder(x)))

    def soft_model(self, x):
        pyro.module("codes", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.9), logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def soft_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.9), logits=self.encoder(x) / 2))

    def exact(self, x):
        logits = self.decoder(torch.eye(3)).double().unsqueeze(1)
        return dist.Bernoulli(logits=logits).to_event(1).log_prob(x.double()).logsumexp(0) - math.log(3)


@recipe("straight-through", "VQ-like codes: RelaxedOneHotCategoricalStraightThrough for a OneHotCategorical")
def straight_through():
    net = Codes()
    return Pair(
        net.hard_model, net.straight_guide, bits(N, 5), net=net, exact=net.exact, no_weight="z", drawn=net.hard_guide
    )


@recipe("relaxed", "Concrete VAE (Maddison et al. 2017): relaxed in prior and posterior")
def relaxed():
    net = Codes()
    return Pair(net.soft_model, net.soft_guide, bits(N, 5), net=net)


@recipe("subsampled", "Pyro's SVI part II: a plate that subsamples its rows")
def subsampled():
    net = mlp(3, 2)

    def model(x):
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 3]).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", net)
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            loc, scale = halves(net(x))
            pyro.sample("z", dist.Normal(x.sum(-1) / 4 + loc.squeeze(-1) / 4, 0.3 + scale.squeeze(-1) / 3))

    return Pair(
        model,
        guide,
        torch.randn(N, 3),
        net=net,
        exact=lambda x: float64_normal(torch.zeros(3), 1 + torch.eye(3), x),
        linear=True,
    )


@recipe("delta-guide", "MAP by a Delta in the guide: no density against the prior's")
def delta_guide():
    net = mlp(4, Z)
    w = torch.randn(Z, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, 0.7).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(net(x)).to_event(1))

    def drawn(x):
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            loc = x @ torch.linalg.solve(w.T @ w + 0.49 * torch.eye(4), w.T)  # the posterior's, for a start
            pyro.sample("z", dist.Normal(loc + net(x) / 8, 0.6).to_event(1))

    return Pair(
        model, guide, torch.randn(N, 4), net=net, no_weight="z", drawn=drawn, linear=True,
        exact=lambda x: float64_normal(torch.zeros(4), w.T @ w + 0.49 * torch.eye(4), x),
    )  # fmt: skip
