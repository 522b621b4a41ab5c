"""Counts and single cells: topics, negative binomials with library sizes, deep exponential families."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.distributions import constraints

from .recipe import N, Pair, bits, cat, halves, mlp, recipe

Z = 2


def counts(*shape, rate=2.0):
    return torch.poisson(torch.full(shape, rate))


class Topics(nn.Module):
    """Pyro's ProdLDA: BatchNorm1d, dropout, softmax over dim=1."""

    def __init__(self, words=5):
        super().__init__()
        self.beta, self.bn, self.drop = (
            nn.Linear(Z, words, bias=False),
            nn.BatchNorm1d(words, affine=False),
            nn.Dropout(0.2),
        )
        self.encoder, self.bn_loc = mlp(words, 2 * Z), nn.BatchNorm1d(Z, affine=False)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 1.5)
        self.beta.weight.data.mul_(2)

    def model(self, docs, total=None):
        pyro.module("decoder", self)
        with pyro.plate("documents", docs.shape[0]):
            logtheta_loc, logtheta_scale = docs.new_zeros((docs.shape[0], Z)), docs.new_ones((docs.shape[0], Z))
            logtheta = pyro.sample("logtheta", dist.Normal(logtheta_loc, logtheta_scale).to_event(1))
            theta = nn.functional.softmax(logtheta, -1)
            count_param = nn.functional.softmax(self.bn(self.beta(self.drop(theta))), dim=1)
            total_count = int(docs.sum(-1).max()) if total is None else int(total.max())
            pyro.sample("obs", dist.Multinomial(total_count, count_param), obs=docs)

    def guide(self, docs, total=None):
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = halves(self.encoder(docs / docs.sum(-1, keepdim=True)))
            pyro.sample("logtheta", dist.Normal(self.bn_loc(loc), scale).to_event(1))


@recipe("prodlda", "Pyro's ProdLDA: softmax(dim=1), BatchNorm1d, dropout")
def prodlda():
    net = Topics()
    docs = torch.tensor([[3.0, 1, 0, 2, 1], [0, 2, 4, 1, 0], [1, 1, 1, 0, 4], [5, 0, 1, 1, 0]])
    counted = Pair(net.model, net.guide, docs, (docs.sum(-1),), net=net)
    return Pair(net.model, net.guide, docs, net=net, reads_x=True, as_context=lambda: counted)  # its count is that of x


class SingleCell(nn.Module):
    """scVI (Lopez et al. 2018): a library size, gene shares, zero-inflated negative binomial counts."""

    def __init__(self, genes=4, zero_inflated=True):
        super().__init__()
        self.zero_inflated = zero_inflated
        self.decoder = nn.Sequential(nn.Linear(1, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.share, self.encoder = nn.Linear(5, genes), mlp(genes, 2 + 2)
        if zero_inflated:
            self.gate = nn.Linear(5, genes)
        self.decoder[1].running_mean.normal_()

    def model(self, x):
        pyro.module("scvi", self)
        theta = pyro.param("inverse_dispersion", 5.0 * x.new_ones(4), constraint=constraints.positive)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), x.new_ones(1)).to_event(1))
            l = pyro.sample("l", dist.LogNormal(x.new_full((1,), 2.0), x.new_full((1,), 0.4)).to_event(1))  # noqa: E741
            h = self.decoder(z)
            mu = l * self.share(h).softmax(-1)
            logits = (mu + 1e-6).log() - (theta + 1e-6).log()
            if self.zero_inflated:
                likelihood = dist.ZeroInflatedNegativeBinomial(
                    theta, logits=logits, gate_logits=self.gate(h), validate_args=False
                )
            else:
                likelihood = dist.NegativeBinomial(theta, logits=logits)
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("batch", len(x)):
            z, l = self.encoder(x.log1p()).split([2, 2], -1)  # noqa: E741
            pyro.sample("z", dist.Normal(*halves(z)).to_event(1))
            loc, scale = l.chunk(2, -1)
            pyro.sample("l", dist.LogNormal(2 + loc / 4, 0.4 + 0.2 * scale.sigmoid()).to_event(1))


@recipe("scvi", "scVI (Lopez et al. 2018): library size, BatchNorm1d, zero-inflated negative binomial")
def scvi():
    net = SingleCell()
    return Pair(net.model, net.guide, counts(N, 4), net=net)


@recipe("scvi-nb", "scVI with plain negative binomial counts")
def scvi_nb():
    net = SingleCell(zero_inflated=False)
    return Pair(net.model, net.guide, counts(N, 4), net=net)


class Annotated(nn.Module):
    """Pyro's scANVI tutorial: scaled sites, labels where known, a classifier's loss as a factor in the guide."""

    def __init__(self, genes=4, labels=3):
        super().__init__()
        self.labels, self.scale_factor = labels, 1 / 16
        self.z2_decoder, self.x_decoder = mlp(Z + labels, 2 * Z), mlp(Z, 2 * genes)
        self.encoder, self.classifier, self.z1_encoder = mlp(genes, 2 * Z + 2), mlp(Z, labels), mlp(Z + labels, 2 * Z)

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        theta = pyro.param("inverse_dispersion", 5.0 * x.new_ones(4), constraint=constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=self.scale_factor):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(Z)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.labels)), obs=y)
            z2 = pyro.sample("z2", dist.Normal(*halves(self.z2_decoder(cat(z1, y)))).to_event(1))
            l = pyro.sample("l", dist.LogNormal(1.5, 0.3 * x.new_ones(1)).to_event(1))  # noqa: E741
            gate_logits, mu = self.x_decoder(z2).chunk(2, -1)
            logits = (l * mu.softmax(-1) + 1e-6).log() - (theta + 1e-6).log()
            likelihood = dist.ZeroInflatedNegativeBinomial(
                gate_logits=gate_logits, total_count=theta, logits=logits, validate_args=False
            )
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=self.scale_factor):
            z2, l = self.encoder(x.log1p()).split([2 * Z, 2], -1)  # noqa: E741
            loc, scale = l.chunk(2, -1)
            pyro.sample("l", dist.LogNormal(1.5 + loc / 4, 0.3 + 0.2 * scale.sigmoid()).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(*halves(z2)).to_event(1))
            y_dist = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", y_dist)
            else:
                pyro.factor("classification_loss", 5.0 * y_dist.log_prob(y), has_rsample=False)
            pyro.sample("z1", dist.Normal(*halves(self.z1_encoder(cat(z2, y)))).to_event(1))


@recipe("scanvi-labelled", "Pyro's scANVI tutorial: labelled cells, a classifier's factor in the guide")
def scanvi_labelled():
    net = Annotated()
    y = torch.eye(3)[torch.arange(N) % 3]
    return Pair(net.model, net.guide, counts(N, 4), (y,), net=net, x_of=lambda sites: sites["x"], draws_context=True)


@recipe("scanvi", "Pyro's scANVI tutorial: cells without labels")
def scanvi():
    net = Annotated()
    return Pair(net.model, net.guide, counts(N, 4), net=net)


class Sparse(nn.Module):
    """Sparse gamma deep exponential family (Ranganath et al. 2015), its weights point estimates."""

    alpha = 1.2

    def __init__(self, words=4, top=1, bottom=1):
        super().__init__()
        self.raw_top, self.raw_bottom = nn.Parameter(torch.randn(top, bottom)), nn.Parameter(torch.randn(bottom, words))
        self.top, self.bottom, self.encoder = top, bottom, mlp(words, 2 * (top + bottom))

    def model(self, x):
        pyro.module("def", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z_top", dist.Gamma(self.alpha, 1.0).expand([self.top]).to_event(1))
            mean = z2 @ nn.functional.softplus(self.raw_top)
            z1 = pyro.sample("z_bottom", dist.Gamma(self.alpha, self.alpha / (mean + 0.1)).to_event(1))
            pyro.sample("x", dist.Poisson(z1 @ nn.functional.softplus(self.raw_bottom)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            h = 0.8 + 0.6 * self.encoder(x.log1p()).sigmoid()
            top, bottom = h.split([2 * self.top, 2 * self.bottom], -1)
            pyro.sample("z_top", dist.Gamma(*top.chunk(2, -1)).to_event(1))
            pyro.sample("z_bottom", dist.Gamma(*bottom.chunk(2, -1)).to_event(1))


@recipe("def", "Sparse gamma deep exponential family, as Pyro's example, weights as parameters")
def deep_exponential():
    net = Sparse()
    return Pair(net.model, net.guide, counts(N, 4), net=net)


@recipe("def-global", "Pyro's sparse gamma DEF as it stands: weights are drawn, once for all rows")
def deep_exponential_global():
    def model(x):
        w = pyro.sample("w", dist.Gamma(torch.full((2, 4), 0.3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((2,), 1.2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z @ w + 0.01).to_event(1), obs=x)

    def guide(x):
        rate = pyro.param("rate", torch.ones(2, 4), constraint=constraints.positive)
        pyro.sample("w", dist.Gamma(0.5 * rate, 0.7).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(1.2 + x[..., :2] / 2, 1.0).to_event(1))

    return Pair(model, guide, counts(N, 4), shared="w", whole_px=weights_integrated)


def weights_integrated(x, num=400_000):
    """log p(X) by importance sampling of the weights and each row's factors, without Pyro; log mean weight, and its error."""
    at_w = torch.distributions.Gamma(torch.full((2, 4), 0.5).double(), 0.7)
    at_z = torch.distributions.Gamma(1.2 + x[:, :2].double() / 2, 1.0)
    w, z = at_w.sample((num,)), at_z.sample((num,))
    prior_w = torch.distributions.Gamma(torch.tensor(0.3).double(), 1.0).log_prob(w).sum((-1, -2))
    prior_z = torch.distributions.Gamma(torch.tensor(1.2).double(), 1.0).log_prob(z).sum((-1, -2))
    log_lik = torch.distributions.Poisson(z @ w + 0.01).log_prob(x.double()).sum((-1, -2))
    log_q = at_w.log_prob(w).sum((-1, -2)) + at_z.log_prob(z).sum((-1, -2))
    return (log_lik + prior_w + prior_z - log_q).unsqueeze(-1)


@recipe("poisson-gamma", "Gamma-Poisson rows of counts, conjugate: negative binomial")
def poisson_gamma():
    a, b = torch.tensor([2.0, 3.0]), 0.8

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(a, b).to_event(1))
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(a + 0.8 * x, b + 0.8).to_event(1))

    def exact(x):
        x, c = x.double(), a.double()
        terms = (c + x).lgamma() - c.lgamma() - (x + 1).lgamma() + c * (torch.tensor(b).double() / (b + 1)).log()
        return (terms - x * torch.tensor(b + 1).double().log()).sum(-1)

    return Pair(model, guide, counts(N, 2), exact=exact)


@recipe("zero-inflated", "Zero-inflated counts with the gate as a latent of its own")
def zero_inflated():
    a, b, p = 2.0, 0.7, 0.7

    def model(x):
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(torch.tensor(p)))
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(a), b))
            pyro.sample("x", dist.Poisson(rate * on + 1e-6), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(torch.where(x > 0, 0.999, 0.4)))
            pyro.sample("rate", dist.Gamma(a + x * on, b + 0.9 * on))

    def exact(x):
        x, a_, b_ = x.double(), torch.tensor(a).double(), torch.tensor(b).double()
        on = (a_ + x).lgamma() - a_.lgamma() - (x + 1).lgamma() + a_ * (b_ / (b_ + 1)).log() - x * (b_ + 1).log()
        off = dist.Poisson(torch.tensor(1e-6).double()).log_prob(x)
        return torch.logaddexp(on + torch.tensor(p).double().log(), off + torch.tensor(1 - p).double().log())

    return Pair(model, guide, torch.tensor([0.0, 3.0, 1.0, 6.0]), exact=exact)


WORDS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])  # of 2 topics


def allocation(docs):
    """log p(docs), the shares of 2 topics integrated on a grid, each word's topic summed over."""
    share = (torch.arange(20000).double() + 0.5) / 20000
    theta = torch.stack([share, 1 - share], -1)
    log_prior = dist.Dirichlet(torch.tensor([1.5, 2.0]).double()).log_prob(theta)
    by_word = (theta @ WORDS.double()).log()[:, docs.long()].sum(-1)
    return (log_prior.unsqueeze(-1) + by_word).logsumexp(0) - torch.tensor(20000.0).double().log()


def topics_of(docs):
    """A document is a row; the words lie in a plate of their own, left of the documents'."""
    with pyro.plate("documents", len(docs)):
        theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([1.5, 2.0])))
        with pyro.plate("words", 3, dim=-2):
            topic = pyro.sample("topic", dist.Categorical(theta))
            pyro.sample("word", dist.Categorical(WORDS[topic]), obs=docs.T)


def topics_guide(docs, enumerate_words=False):
    alpha = torch.stack([(docs < 2).sum(-1), (docs == 2).sum(-1)], -1) * 0.6 + torch.tensor([1.5, 2.0])
    with pyro.plate("documents", len(docs)):
        theta = pyro.sample("theta", dist.Dirichlet(alpha))
        if not enumerate_words:
            with pyro.plate("words", 3, dim=-2):
                pyro.sample("topic", dist.Categorical(theta * WORDS[:, docs.T].movedim(0, -1)))


@recipe("lda", "Latent Dirichlet allocation, each word's topic drawn; words in an inner plate")
def lda():
    return Pair(
        topics_of, topics_guide, torch.randint(3, (N, 3)), exact=allocation, x_of=lambda sites: sites["word"].T
    )  # fmt: skip


def topics_alone(docs):
    """The same with each word's topic summed out by hand."""
    with pyro.plate("documents", len(docs)):
        theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([1.5, 2.0])))
        with pyro.plate("words", 3, dim=-2):
            pyro.sample("word", dist.Categorical(theta @ WORDS), obs=docs.T)


@recipe("lda-enumerated", "Pyro's LDA example: each word's topic enumerated in the model, topics as parameters")
def lda_enumerated():
    return Pair(
        config_enumerate(topics_of), lambda docs: topics_guide(docs, True), torch.randint(3, (N, 3)), exact=allocation,
        plain=(topics_alone, lambda docs: topics_guide(docs, True)),
        objective=lambda: TraceEnum_ELBO(max_plate_nesting=2),
        x_of=lambda sites: sites["word"].T,
    )  # fmt: skip


@recipe("lda-global", "Pyro's LDA example as it stands: topics are drawn, once for all documents")
def lda_global():
    def model(docs):
        with pyro.plate("topics", 2, dim=-1):
            words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("documents", len(docs), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([1.5, 2.0])))
            each = (theta @ words).unsqueeze(-2)
            pyro.sample("word", dist.Categorical(each.expand(*each.shape[:-2], 3, 3)).to_event(1), obs=docs)

    def guide(docs):
        with pyro.plate("topics", 2, dim=-1):
            pyro.sample("topic_words", dist.Dirichlet(1.3 * torch.ones(3)))
        with pyro.plate("documents", len(docs), dim=-1):
            pyro.sample("theta", dist.Dirichlet(2 * torch.ones(2)))

    return Pair(model, guide, torch.randint(3, (N, 3)), shared="topic_words", whole_px=topics_counted)


def topics_counted(docs):
    """log p(X): a sum over the topics of all words, shares and topics integrated by counting."""
    words = docs.numel()
    topic = torch.cartesian_prod(*[torch.tensor([0, 1])] * words)
    of_doc = torch.nn.functional.one_hot(topic.reshape(-1, *docs.shape), 2).sum(-2)  # (assignments, docs, topics)
    pairs = torch.nn.functional.one_hot(3 * topic + docs.long().reshape(-1), 6).sum(1).reshape(-1, 2, 3)
    shares = multinomial_dirichlet(of_doc, torch.tensor([1.5, 2.0])).sum(-1)
    return (shares + multinomial_dirichlet(pairs, torch.ones(3)).sum(-1)).logsumexp(0)


def multinomial_dirichlet(counts, a):
    """log of the probability of a sequence with these counts, its probabilities integrated under a Dirichlet."""
    a, counts = a.double(), counts.double()
    terms = (a + counts).lgamma() - a.lgamma()
    return terms.sum(-1) + a.sum(-1).lgamma() - (a + counts).sum(-1).lgamma()


class Effects(nn.Module):
    """CEVAE (Louizos et al. 2017): proxies, treatment and outcome; the guide has heads for the latter two, observed."""

    def __init__(self, columns=4):
        super().__init__()
        self.proxies, self.treatment, self.outcome = mlp(Z, columns), mlp(Z, 1), mlp(Z + 1, 1)
        self.head_t, self.head_y, self.encoder = mlp(columns, 1), mlp(columns + 1, 1), mlp(columns + 2, 2 * Z)

    def model(self, x, t, y):
        pyro.module("cevae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.proxies(z)).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.treatment(z).squeeze(-1)), obs=t)
            loc = self.outcome(cat(z, t.unsqueeze(-1))).squeeze(-1)
            pyro.sample("y", dist.Normal(loc, 0.7), obs=y)

    def guide(self, x, t, y):
        pyro.module("cevae", self)
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Bernoulli(logits=self.head_t(x).squeeze(-1)), obs=t, infer={"is_auxiliary": True})
            loc = self.head_y(cat(x, t.unsqueeze(-1))).squeeze(-1)
            y = pyro.sample("y", dist.Normal(loc, 1.0), obs=y, infer={"is_auxiliary": True})
            h = self.encoder(cat(x, t.unsqueeze(-1), y.unsqueeze(-1)))
            pyro.sample("z", dist.Normal(*halves(h)).to_event(1))


@recipe("cevae", "Pyro's contributed CEVAE: treatment and outcome are observed in the guide, too")
def cevae():
    net = Effects()
    return Pair(
        net.model, net.guide, bits(N, 4), (bits(N), torch.randn(N)), net=net, x_of=lambda sites: sites["x"],
        draws_context=True,
    )  # fmt: skip
