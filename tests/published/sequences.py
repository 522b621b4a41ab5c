"""Programs over time: Markov models with masks, linear dynamical systems, hidden Markov models, recurrent encoders."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta
from torch import nn
from torch.distributions import constraints

from .recipe import N, Pair, bits, cat, halves, mlp, recipe

T = 3


def stacked(name):
    """x of sites "name_0", "name_1", …, a column each."""
    return lambda sites: torch.stack([sites[f"{name}_{t}"] for t in range(T)], 1)


class DeepMarkov(nn.Module):
    """Pyro's deep Markov model: a gated transition, masks over ragged sequences, an RNN over reversed sequences."""

    def __init__(self, columns=3, z=2, hidden=4):
        super().__init__()
        self.trans, self.emitter, self.combiner = mlp(z, 2 * z), mlp(z, columns), mlp(z + hidden, 2 * z)
        self.rnn = nn.RNN(columns, hidden, batch_first=True)
        self.z_0, self.z_q_0, self.h_0 = (nn.Parameter(torch.randn(n)) for n in (z, z, hidden))

    def model(self, batch, backwards, mask, lengths, annealing=1.0):
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(batch.size(1))):
                z_loc, z_scale = halves(self.trans(z_prev))
                with poutine.scale(scale=annealing):
                    z_t = pyro.sample(f"z_{t}", dist.Normal(z_loc, z_scale).mask(mask[:, t : t + 1]).to_event(1))
                probs = self.emitter(z_t).sigmoid()
                pyro.sample(f"x_{t}", dist.Bernoulli(probs).mask(mask[:, t : t + 1]).to_event(1), obs=batch[:, t, :])
                z_prev = z_t

    def guide(self, batch, backwards, mask, lengths, annealing=1.0):
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, batch.size(0), self.h_0.size(0)).contiguous()
        output, _ = self.rnn(backwards, h_0)
        where = (lengths.long().unsqueeze(-1) - 1 - torch.arange(batch.size(1))).clamp_min(0)
        output = output.gather(1, where.unsqueeze(-1).expand(-1, -1, output.size(-1)))
        z_prev = self.z_q_0.expand(batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(batch.size(1))):
                z_loc, z_scale = halves(self.combiner(cat(z_prev, output[:, t, :])))
                with poutine.scale(scale=annealing):
                    z_prev = pyro.sample(f"z_{t}", dist.Normal(z_loc, z_scale).mask(mask[:, t : t + 1]).to_event(1))


@recipe("dmm", "Pyro's deep Markov model, ragged sequences under masks")
def dmm():
    net, lengths = DeepMarkov(), torch.tensor([3, 2, 1, 3])
    mask = torch.arange(T) < lengths.unsqueeze(-1)
    x = bits(N, T, 3) * mask.unsqueeze(-1)
    back = torch.stack([torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(x, lengths.tolist(), strict=True)])

    gaps = x.clone()
    gaps[0, 1, 1] = torch.nan

    def drawn(sites):
        """What is masked stays as it is in the template."""
        drawn = stacked("x")(sites)
        return drawn * mask.unsqueeze(-1).repeat(len(drawn) // N, 1, 1)

    return Pair(net.model, net.guide, x, (back, mask, lengths), net=net, x_of=drawn, gaps=gaps)


def kalman(x, decay=0.8, step=0.6, gain=1.3, noise=0.5):
    """log p(x) of a scalar linear dynamical system, by the Kalman filter."""
    x = x.double()
    mean, var, total = torch.zeros(len(x)).double(), torch.ones(()).double(), torch.zeros(len(x)).double()
    for t in range(x.shape[1]):
        if t:
            mean, var = decay * mean, decay**2 * var + step**2
        forecast = gain**2 * var + noise**2
        total += dist.Normal(gain * mean, forecast.sqrt()).log_prob(x[:, t])
        k = gain * var / forecast
        mean, var = mean + k * (x[:, t] - gain * mean), (1 - k * gain) * var
    return total


@recipe("lds", "Linear dynamical system, a site a step; exact by the Kalman filter")
def lds():
    net = nn.Sequential(nn.Linear(T, T))

    def model(x):
        with pyro.plate("data", len(x)):
            z = torch.tensor(0.0)
            for t in pyro.markov(range(T)):
                z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 0.6 if t else 1.0))
                pyro.sample(f"x_{t}", dist.Normal(1.3 * z, 0.5), obs=x[:, t])

    def guide(x):
        pyro.module("smoother", net)
        loc = 0.6 * x + 0.3 * net(x)
        with pyro.plate("data", len(x)):
            for t in range(T):
                pyro.sample(f"z_{t}", dist.Normal(loc[..., t], 0.7))

    return Pair(model, guide, torch.randn(N, T), net=net, exact=kalman, x_of=stacked("x"), linear=True)


START, MOVE, EMIT = torch.tensor([0.6, 0.4]), torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0.9, 0.25])


def forward(x):
    """log p(x) of the hidden Markov model, by the forward algorithm."""
    x = x.double()
    emit = torch.where(x.unsqueeze(-1) > 0, EMIT, 1 - EMIT).double()
    alpha = START * emit[:, 0]
    for t in range(1, x.shape[1]):
        alpha = alpha @ MOVE.double() * emit[:, t]
    return alpha.sum(-1).log()


def hidden_markov(x):
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(T)):
            z = pyro.sample(f"z_{t}", dist.Categorical(START if z is None else MOVE[z]))
            pyro.sample(f"x_{t}", dist.Bernoulli(EMIT[z]), obs=x[..., t])


def enumerated():
    return TraceEnum_ELBO(max_plate_nesting=1)


@recipe("hmm", "Pyro's HMM example: states enumerated in the model, an empty guide")
def hmm():
    return Pair(
        config_enumerate(hidden_markov), lambda x: None, bits(N, T), exact=forward, elbo=forward, objective=enumerated,
        proposal=drawn_states, x_of=stacked("x"),
    )  # fmt: skip


def drawn_states(x):
    """A factorised guide."""
    with pyro.plate("sequences", len(x)):
        for t in range(T):
            pyro.sample(f"z_{t}", dist.Categorical(torch.stack([0.3 + 0.4 * x[..., t], 0.7 - 0.4 * x[..., t]], -1)))


@recipe("hmm-drawn", "The same HMM, its states drawn from a factorised guide")
def hmm_drawn():
    return Pair(hidden_markov, drawn_states, bits(N, T), exact=forward, x_of=stacked("x"))


@recipe("hmm-global", "Pyro's HMM example as it stands: transition probabilities are drawn, once for all rows")
def hmm_global():
    def model(x):
        move = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
        with pyro.plate("sequences", len(x)):
            z = torch.tensor(0)
            for t in pyro.markov(range(T)):
                z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Bernoulli(EMIT[z]), obs=x[..., t])

    guide = AutoDelta(poutine.block(model, expose=["probs_x"]), init_loc_fn=lambda site: torch.full((2, 2), 0.5))
    return Pair(
        model, guide, bits(N, T), shared="probs_x", objective=enumerated, x_of=stacked("x"), drawn=drawn_moves,
        whole_px=moves_integrated, collapsed=moves_alone,
    )  # fmt: skip


def drawn_moves(x):
    """A density of the transitions in the place of a point."""
    a = pyro.param("moves", 0.9 * torch.eye(2) + 0.15, constraint=constraints.positive)
    pyro.sample("probs_x", dist.Dirichlet(a).to_event(1))


def moves_alone(x):
    """The model with its states summed out by Pyro's forward algorithm; before the first step, the state is 0."""
    move = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    with pyro.plate("sequences", len(x)):
        start = torch.tensor([1.0, 1e-30]).log()
        pyro.sample("x", dist.DiscreteHMM(start, move.log(), dist.Bernoulli(EMIT), duration=T), obs=x)


def moves_integrated(x):
    """log p(X): a sum over all paths of all sequences, the rows of the transition matrix integrated by counting moves."""
    path = torch.cartesian_prod(*[torch.tensor([0, 1])] * T)
    before = torch.cat([torch.zeros(len(path), 1).long(), path[:, :-1]], 1)
    moves = torch.nn.functional.one_hot(2 * before + path, 4).sum(1)  # of one sequence, (paths, 4)
    emit = torch.where(x.unsqueeze(1) > 0, EMIT[path], 1 - EMIT[path]).double().log().sum(-1)  # (N, paths)
    rows = torch.cartesian_prod(*[torch.arange(len(path))] * len(x))
    counts = moves[rows].sum(1).reshape(-1, 2, 2)
    log_lik = emit.gather(1, rows.T).sum(0)
    a = (0.9 * torch.eye(2) + 0.1).double()
    integral = (a + counts).lgamma() - a.lgamma()
    integral = integral.sum(-1) + a.sum(-1).lgamma() - (a + counts).sum(-1).lgamma()
    return (log_lik + integral.sum(-1)).logsumexp(0)


class Packed(nn.Module):
    """A sentence VAE (Bowman et al. 2016): a GRU over packed sequences encodes; words are masked by length."""

    def __init__(self, words=4, z=2, hidden=4):
        super().__init__()
        self.embedding, self.gru = nn.Embedding(words, 3), nn.GRU(3, hidden, batch_first=True)
        self.encode, self.decode, self.words = nn.Linear(hidden, 2 * z), mlp(z, T * words), words

    def model(self, x, lengths):
        pyro.module("packed", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            logits = self.decode(z)
            logits = logits.reshape(*logits.shape[:-1], T, self.words)
            there = torch.arange(T) < lengths.unsqueeze(-1)
            pyro.sample("x", dist.Categorical(logits=logits).mask(there).to_event(1), obs=x)

    def guide(self, x, lengths):
        with pyro.plate("data", len(x)):
            packed = nn.utils.rnn.pack_padded_sequence(
                self.embedding(x), lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            _, h = self.gru(packed)
            pyro.sample("z", dist.Normal(*halves(self.encode(h[-1]))).to_event(1))


@recipe("packed-rnn", "Sentence VAE (Bowman et al. 2016): embeddings, pack_padded_sequence, GRU")
def packed():
    net, lengths = Packed(), torch.tensor([3, 1, 2, 3])
    x = torch.randint(4, (N, T)) * (torch.arange(T) < lengths.unsqueeze(-1))
    return Pair(net.model, net.guide, x, (lengths,), net=net)


class RecurrentDecoder(nn.Module):
    """VRAE: an LSTM decodes z without reading x; another encodes."""

    def __init__(self, z=2, hidden=4):
        super().__init__()
        self.decoder, self.out = nn.LSTM(z, hidden, batch_first=True), nn.Linear(hidden, 1)
        self.encoder, self.last = nn.LSTM(1, hidden, batch_first=True), nn.Linear(hidden, 2 * z)

    def model(self, x):
        pyro.module("vrae", self)
        with pyro.plate("data", x.size(0)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.size(0), 2), 1.0).to_event(1))
            h, _ = self.decoder(z.unsqueeze(1).expand(x.size(0), T, 2))
            pyro.sample("x", dist.Normal(3 * self.out(h).squeeze(-1), 0.6).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.size(0)):
            _, (h, _) = self.encoder(x.unsqueeze(-1))
            pyro.sample("z", dist.Normal(*halves(self.last(h[-1]))).to_event(1))


@recipe("recurrent-decoder", "VRAE (Fabius & van Amersfoort 2015): LSTMs, batch first")
def recurrent():
    net = RecurrentDecoder()
    return Pair(net.model, net.guide, torch.randn(N, T), net=net)


class Scene(nn.Module):
    """AIR (Eslami et al. 2016) as in Pyro's tutorial, on a line of pixels: what is absent is masked."""

    steps = 2

    def __init__(self, columns=5):
        super().__init__()
        self.columns, self.inference = columns, mlp(columns, 5 * self.steps)

    def draw(self, where, what):
        place = torch.linspace(-2, 2, self.columns)
        return what * (-(place - where).square()).exp()

    def model(self, x):
        pyro.module("air", self)
        with pyro.plate("data", x.size(0)):
            present, canvas = x.new_ones(x.size(0), 1), x.new_zeros(x.size(0), self.columns)
            for t in range(self.steps):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.6 * present).to_event(1))
                where = pyro.sample(
                    f"z_where_{t}", dist.Normal(0.0, 1.0).expand(present.shape).mask(present).to_event(1)
                )
                what = pyro.sample(f"z_what_{t}", dist.Normal(1.0, 0.5).expand(present.shape).mask(present).to_event(1))
                canvas = canvas + present * self.draw(where, what)
            pyro.sample("x", dist.Normal(canvas, 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("air", self)
        with pyro.plate("data", x.size(0)):
            present = x.new_ones(x.size(0), 1)
            for t, h in enumerate(self.inference(x).chunk(self.steps, -1)):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(h[..., :1].sigmoid() * present).to_event(1))
                (a, b), (c, d) = halves(h[..., 1:3]), halves(h[..., 3:5])
                pyro.sample(f"z_where_{t}", dist.Normal(a, b).mask(present).to_event(1))
                pyro.sample(f"z_what_{t}", dist.Normal(1 + c / 4, d).mask(present).to_event(1))


@recipe("air", "Pyro's Attend-Infer-Repeat, two steps; absent objects are masked by their presence")
def air():
    net = Scene()
    return Pair(net.model, net.guide, torch.rand(N, 5), net=net)
