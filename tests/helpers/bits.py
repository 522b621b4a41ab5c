"""Whether two things hold the same bits."""

import torch

from pyro_vae.evidence.importance.result import DIAGNOSTICS, ROW_FIELDS


def same(a, b, fields=ROW_FIELDS + DIAGNOSTICS):
    """Compare two dicts of tensors, or some fields of two evidences (NaN in both is the same)."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return all(torch.equal(getattr(a, f).nan_to_num(7), getattr(b, f).nan_to_num(7)) for f in fields)
