"""Modules that pickle whatever was done with them: for joblib, processes and a user's own files; no run saves a pickle."""

from __future__ import annotations

from typing import Any

from torch import nn

from .pyro_private import forget_store


class Picklable(nn.Module):
    """A module that pickles with all that is in it, after training and evaluation too: what each of ours is.

    A user's own module inside needs nothing for it. A lambda or a function within a function has no pickle; a
    :class:`~pyro_vae.Conditional` of a network and a family does what such would.

    Example:
        >>> import pickle, torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, fit
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 3), bernoulli), Conditional(MLP(3, 2), normal))
        >>> run = fit(vae, torch.eye(3), epochs=1, verbose=False)
        >>> pickle.loads(pickle.dumps(vae)).prior.loc
        tensor([0.])
    """

    def __getstate__(self) -> dict[str, Any]:
        forget_store(self)
        return dict(self.__dict__)
