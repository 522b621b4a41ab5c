"""log q(z) of the posteriors' families in sixty digits, as functions of their features, and derivatives of them."""

import mpmath as mp

from pyro_vae.distributions.features import MIN_SCALE

mp.mp.dps = 60


def positive(h):
    return mp.log1p(mp.exp(h)) + mp.mpf(MIN_SCALE)


def softclip(h):
    return h / (1 + abs(h) / 10)


def of_unit(w, factor, scale):
    """log N(S w; 0, S C S) with C = factor · factor', w a vector: by the density of w."""
    covariance = factor * factor.T
    size = (w.T * mp.lu_solve(covariance, w))[0]
    return -size / 2 - mp.log(mp.det(covariance)) / 2 - sum(map(mp.log, scale)) - len(scale) * mp.log(2 * mp.pi) / 2


def whitened(h, z):
    d = len(z)
    scale = [positive(v) for v in h[d : 2 * d]]
    return scale, mp.matrix([(z[i] - h[i]) / scale[i] for i in range(d)])


def full_normal(h, z):
    scale, w = whitened(h, z)
    unit, below = mp.eye(len(z)), iter(h[2 * len(z) :])
    for i in range(len(z)):
        for j in range(i):
            unit[i, j] = softclip(next(below))
    return of_unit(w, unit, scale)


def low_rank_normal(h, z, rank=2):
    scale, w = whitened(h, z)
    d = len(z)
    wide = mp.matrix(d, d + rank)
    for i in range(d):
        wide[i, i] = 1
        for j in range(rank):
            wide[i, d + j] = softclip(h[2 * d + i * rank + j])
    return of_unit(w, wide, scale)


def logistic_normal(h, z):
    d = len(z)
    scale = [positive(v) for v in h[d:]]
    weights = [1 / s**2 for s in scale]
    r = [mp.log(z[i]) - h[i] for i in range(d)]
    middle = sum(w * v for w, v in zip(weights, r, strict=True)) / sum(weights)
    size = sum(w * (v - middle) ** 2 for w, v in zip(weights, r, strict=True))
    logs = sum(map(mp.log, scale)) + mp.log(sum(weights)) / 2 + sum(map(mp.log, z))
    return -size / 2 - logs - (d - 1) * mp.log(2 * mp.pi) / 2


def mixture_normal(h, z, components=2):
    d, k = len(z), components
    terms = []
    for c in range(k):
        scale = [positive(v) for v in h[k + k * d + c * d : k + k * d + (c + 1) * d]]
        w = [(z[i] - h[k + c * d + i]) / scale[i] for i in range(d)]
        terms.append(h[c] - sum(v**2 / 2 for v in w) - sum(map(mp.log, scale)) - d * mp.log(2 * mp.pi) / 2)
    return log_sum(terms) - log_sum(h[:k])


def log_sum(logs):
    top = max(logs)
    return top + mp.log(sum(mp.exp(v - top) for v in logs))


def derivatives(density, h, z):
    """∂ log q / ∂ h_i, by central differences of sixty digits."""
    found = []
    for i, v in enumerate(h):
        step = mp.mpf("1e-20") * max(1, abs(v))
        ends = [density([*h[:i], v + s * step, *h[i + 1 :]], z) for s in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * step))
    return found
