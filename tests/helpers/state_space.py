"""Sequences whose log p(x) is known: linear-Gaussian by the Kalman filter, hidden Markov by the forward algorithm.

Everything in float64, sequence by sequence, so that lengths and gaps (NaN) are no masks but what is left out of the sums.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import SkipMissing, StateSpaceModel


class Kalman:
    """z_1 ~ N(m, P), z_t ~ N(A z_{t−1}, Q), x_t ~ N(C z_t, R), with diagonal P, Q and R."""

    def __init__(self, a, c, q, r, p, m):
        self.a, self.c, self.m = (torch.as_tensor(t).double() for t in (a, c, m))
        self.q, self.r, self.p = (torch.as_tensor(t).double().diag() for t in (q, r, p))

    def filter(self, x):
        """One-step-ahead log p(x_t | x_<t), and filtered and predicted moments, of one sequence ``(T, D)``."""
        mean, cov, steps = self.m, self.p, []
        for t, row in enumerate(x.double()):
            if t:
                mean, cov = self.a @ mean, self.a @ cov @ self.a.T + self.q
            predicted = mean, cov
            seen = ~row.isnan()
            log_p = torch.zeros(()).double()
            if seen.any():
                c, r = self.c[seen], self.r[seen][:, seen]
                forecast = dist.MultivariateNormal(c @ mean, c @ cov @ c.T + r)
                log_p = forecast.log_prob(row[seen])
                gain = cov @ c.T @ forecast.precision_matrix
                mean, cov = mean + gain @ (row[seen] - c @ mean), cov - gain @ c @ cov
            steps.append((log_p, mean, cov, *predicted))
        return steps

    def one_step(self, x):
        return torch.stack([step[0] for step in self.filter(x)])

    def log_px(self, x, lengths):
        return torch.stack([self.one_step(row[:n]).sum() for row, n in zip(x, lengths.tolist(), strict=True)])

    def means(self, x):
        return torch.stack([step[1] for step in self.filter(x)])

    def smoothed(self, x):
        """E[z_t | x] and its standard deviations, ``(T, d)``, by Rauch, Tung and Striebel."""
        steps = self.filter(x)
        mean, cov = steps[-1][1:3]
        means, sds = [mean], [cov.diagonal().sqrt()]
        for (_, m, p, *_), (*_, ahead, wide) in zip(steps[-2::-1], steps[:0:-1], strict=True):
            gain = p @ self.a.T @ torch.linalg.inv(wide)
            mean, cov = m + gain @ (mean - ahead), p + gain @ (cov - wide) @ gain.T
            means.append(mean)
            sds.append(cov.diagonal().sqrt())
        return torch.stack(means[::-1]), torch.stack(sds[::-1])

    def draw(self, rows, steps, seed=0):
        g = torch.Generator().manual_seed(seed)

        def noise(cov):
            return torch.randn(rows, len(cov), generator=g).double() @ cov.sqrt()

        z, x = self.m + noise(self.p), []
        for t in range(steps):
            z = z @ self.a.T + noise(self.q) if t else z
            x.append(z @ self.c.T + noise(self.r))
        return torch.stack(x, 1)

    def roles(self):
        """p(z_1), p(z_t | z_{t−1}) and p(x_t | z_t) as distributions, in the dtype of z."""
        a, c, sds = self.a, self.c, [m.diagonal().sqrt() for m in (self.p, self.q, self.r)]
        return {
            "initial": lambda: dist.Normal(self.m, sds[0]).to_event(1),
            "transition": lambda z: dist.Normal(z @ a.T, sds[1]).to_event(1),
            "likelihood": lambda z: dist.Normal(z @ c.T, sds[2]).to_event(1),
        }


PLANE = Kalman([[0.9, 0.3], [-0.3, 0.8]], [[1.0, 0.0], [0.5, 1.0]], [0.3, 0.2], [0.4, 0.5], [1.0, 0.8], [0.2, -0.1])
LINE = Kalman([[0.8]], [[1.3], [0.7]], [0.36], [0.25, 0.5], [1.0], [0.3])


def look(x, lengths=None):
    """h_t = x_t, a gap as 0."""
    return x.nan_to_num(0.0)


def plane(scale=1.0, missing=False):
    """PLANE as programs, with a guide that knows x_t alone, wider than the posterior; than the prior, if x has gaps."""
    roles, sds = PLANE.roles(), torch.tensor([0.6, 0.55]).double()
    if missing:
        roles["likelihood"], sds = SkipMissing(roles["likelihood"]), torch.tensor([1.1, 1.0]).double()

    def posterior(z, h):
        return dist.Normal(0.6 * (z @ PLANE.a.T) + 0.3 * h, scale * sds).to_event(1)

    return StateSpaceModel(**roles, encoder=look, posterior=posterior)


class Along(nn.Module):
    """q(z_t | z_{t−1}, x_t, …, x_T), Gaussian and linear, by coefficients for each step and each length.

    h_t is [x, all steps in a row; t; length], so that the posterior's role can look its coefficients up.
    """

    def __init__(self, line, steps):
        super().__init__()
        self.steps, columns = steps, steps * len(line.c)
        table = torch.zeros(steps + 1, steps, 3 + columns).double()  # offset, of z, log sd, of x
        for n in range(1, steps + 1):
            for t in range(n):
                table[n, t] = conditional(line, n, t, columns)
        self.table = nn.Parameter(table)

    def encoder(self, x, lengths):
        rows, steps = x.shape[:2]
        there = torch.arange(steps) < lengths[:, None]
        flat = torch.where(there[..., None], x, 0.0).flatten(1)
        t = torch.arange(steps).to(x).expand(rows, steps)[..., None]
        return torch.cat(
            [flat[:, None].expand(-1, steps, -1), t, lengths.to(x)[:, None, None].expand(-1, steps, 1)], -1
        )

    def forward(self, z, h):
        x, t, n = h[..., :-2], h[..., -2].long(), h[..., -1].long()
        offset, of_z, log_sd, of_x = self.table[n, t.clamp_max(self.steps - 1)].split([1, 1, 1, x.shape[-1]], -1)
        return dist.Normal(offset + of_z * z + (of_x * x).sum(-1, keepdim=True), log_sd.exp()).to_event(1)


def conditional(line, n, t, columns):
    """[offset, coefficient of z_{t−1}, log sd, coefficients of x_1..x_T] of p(z_t | z_{t−1}, x_t, …, x_n), one latent."""
    a, q, (m, p) = line.a[0, 0], line.q[0, 0], (line.m[0], line.p[0, 0])
    d, ahead = len(line.c), n - t
    # of (z_{t−1}), z_t, …, z_n: as linear maps of independent noise; z_{t−1} is given, and stands apart
    maps = torch.zeros(ahead, ahead).double()
    for i in range(ahead):
        for j in range(i + 1):
            maps[i, j] = a ** (i - j)
    noise = torch.full((ahead,), q.item()).double()
    noise[0] = p if t == 0 else q
    cov = maps @ noise.diag() @ maps.T
    start = torch.tensor([a ** (i + (t > 0)) for i in range(ahead)]).double()  # of m, or of z_{t−1}
    c = torch.block_diag(*[line.c] * ahead)
    gain = cov[0] @ c.T @ torch.linalg.inv(c @ cov @ c.T + torch.block_diag(*[line.r] * ahead))
    weight = start[0] - gain @ c @ start
    row = torch.zeros(3 + columns).double()
    row[0], row[1] = (weight * m, 0.0) if t == 0 else (0.0, weight)
    row[2] = (cov[0, 0] - gain @ c @ cov[:, 0]).sqrt().log()
    row[3 + t * d : 3 + n * d] = gain
    return row


def line(steps, widen=0.0):
    """LINE as programs, with the exact posterior as guide, its log sd moved by `widen`."""
    along = Along(LINE, steps)
    with torch.no_grad():
        along.table[..., 2] += widen
    return StateSpaceModel(**LINE.roles(), encoder=along.encoder, posterior=along)


START = torch.tensor([0.6, 0.3, 0.1]).double()
MOVE = torch.tensor([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]]).double()
LOC, SCALE = torch.tensor([-1.0, 0.5, 2.0]).double(), torch.tensor([0.6, 0.5, 0.9]).double()


def forward(x):
    """log p(x_t | x_<t), and E[z_t | x_≤t] of the state's number, of one sequence ``(T,)``; NaN was not observed."""
    weights, steps, means = START, [], []
    for t, value in enumerate(x.double()):
        weights = weights @ MOVE if t else weights
        emit = torch.ones(3).double() if value.isnan() else dist.Normal(LOC, SCALE).log_prob(value).exp()
        weights = weights * emit
        steps.append(weights.sum().log())
        weights = weights / weights.sum()
        means.append(weights @ torch.arange(3.0).double())
    return torch.stack(steps), torch.stack(means)


def hidden_markov():
    """The hidden Markov model as programs; its guide leans towards the state that x_t is nearest to."""

    def posterior(z, h):
        near = -0.3 * ((h[..., None] - LOC) / SCALE).square()
        return dist.Categorical(logits=near + 0.5 * MOVE[z.long()].log())

    return StateSpaceModel(
        initial=lambda: dist.Categorical(START),
        transition=lambda z: dist.Categorical(MOVE[z]),
        likelihood=SkipMissing(lambda z: dist.Normal(LOC[z], SCALE[z])),
        encoder=look,
        posterior=posterior,
    )


def ragged(x, lengths, gaps=()):
    """x with NaN where it has gaps, (row, step) or (row, step, element), and lengths as a tensor."""
    x = x.clone()
    for gap in gaps:
        x[gap] = math.nan
    return x, torch.tensor(lengths)


def exact_rows(function, x, lengths) -> list[Tensor]:
    """A function of one sequence, of each as far as it goes."""
    return [function(row[:n]) for row, n in zip(x, lengths.tolist(), strict=True)]
