"""`standardize=` of fit: the model's own units for x, set by the training rows."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_vae.errors import UsageError
from pyro_vae.programs.data_scale import Standardizable


def standardize_model(modules: list[nn.Module], train: tuple[Tensor, ...]) -> None:
    """Set the units of the model among the modules by the training rows, unless it has some.

    Raises:
        UsageError: none of them can.
    """
    able = [module for module in modules if isinstance(module, Standardizable)]
    if len(able) != 1:
        raise UsageError(
            "standardize=True takes a VAE, whose roles it gives units of their own; programs by hand do it themselves: keep "
            "loc = x.mean(0) and scale = x.std(0) as buffers, give the guide's network (x - loc) / scale, and observe "
            "TransformedDistribution(p(u | z), AffineTransform(loc, scale)).to_event(1) at x itself."
        )
    if not able[0].standardized:
        able[0].standardize(*train)
