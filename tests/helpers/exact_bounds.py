"""Bounds of one row in sixty digits, and their derivatives in each log weight: what a test at extreme weights compares with."""

import itertools
import math

import mpmath as mp
import torch

from pyro_vae import ciwae, elbo, iwae, jackknife, miwae, piwae, renyi, tvo

mp.mp.dps = 60


def log_mean_exp(logs):
    top = max(logs)
    return top + mp.log(sum(mp.exp(v - top) for v in logs) / len(logs))


def power_mean(logs, power):
    return log_mean_exp([power * v for v in logs]) / power


def tempered_means(logs, betas):
    total = mp.mpf(0)
    for low, high in itertools.pairwise(betas):
        top = max(low * v for v in logs)
        weights = [mp.exp(low * v - top) for v in logs]
        total += (mp.mpf(high) - mp.mpf(low)) * sum(w * v for w, v in zip(weights, logs, strict=True)) / sum(weights)
    return total


def debiased(logs, order):
    """The jackknife over all subsets."""
    k, total = len(logs), mp.mpf(0)
    for j in range(order + 1):
        subsets = list(itertools.combinations(logs, k - j))
        c = mp.mpf((-1) ** j * (k - j) ** order) / (math.factorial(order - j) * math.factorial(j))
        total += c * sum(log_mean_exp(list(s)) for s in subsets) / len(subsets)
    return total


def exact_value(bound, logs, groups=2):
    """A bound of the log weights of one row, a list of mpf; of groups one after the other, for a bound of groups."""
    if bound is elbo:
        return sum(logs) / len(logs)
    if bound is iwae or bound is piwae:
        return log_mean_exp(logs)
    if bound is miwae:
        k = len(logs) // groups
        return sum(log_mean_exp(logs[m * k : (m + 1) * k]) for m in range(groups)) / groups
    if isinstance(bound, ciwae):
        beta = mp.mpf(bound.beta)
        return beta * exact_value(elbo, logs) + (1 - beta) * log_mean_exp(logs)
    if isinstance(bound, renyi):
        return exact_value(elbo, logs) if bound.alpha == 1 else power_mean(logs, 1 - mp.mpf(bound.alpha))
    if isinstance(bound, tvo):
        return tempered_means(logs, bound.betas)
    assert isinstance(bound, jackknife)
    return debiased(logs, bound.order)


def moved(logs, i, by):
    return [v + by if j == i else v for j, v in enumerate(logs)]


STEP = mp.mpf("1e-18")


def exact_slopes(bound, logs):
    """F_k of every particle."""
    ends = [[exact_value(bound, moved(logs, i, s * STEP)) for s in (1, -1)] for i in range(len(logs))]
    return [(high - low) / (2 * STEP) for high, low in ends]


def exact_curvatures(bound, logs):
    """F_kk of every particle."""
    here = exact_value(bound, logs)
    ends = [[exact_value(bound, moved(logs, i, s * STEP)) for s in (1, -1)] for i in range(len(logs))]
    return [(high - 2 * here + low) / STEP**2 for high, low in ends]


def exact_baselines(bound, logs, groups=1):
    """F_{−k} of every particle: its log weight replaced by the mean of its group's others."""
    k, found = len(logs) // groups, []
    for i in range(len(logs)):
        others = [logs[j] for j in range(i // k * k, (i // k + 1) * k) if j != i]
        found.append(exact_value(bound, [sum(others) / len(others) if j == i else v for j, v in enumerate(logs)]))
    return found


def as_tensor(numbers):
    return torch.tensor([float(v) for v in numbers], dtype=torch.float64)
