"""The closed table that configs name priors from."""

from __future__ import annotations

from pyro_vae.common.spec import Spec

from .flow import FlowPrior
from .mixture import Mixture
from .simple import DiagonalNormal, Dirichlet, Laplace, OneHot, StandardNormal, StudentT, UniformSphere
from .vamp import VampPrior

PRIORS: dict[str, Spec] = {
    "standard_normal": Spec(
        make=StandardNormal, support="real", formula="N(0, I)",
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114"),
    "normal": Spec(make=DiagonalNormal, support="real", formula="N(loc, diag(scale²))"),
    "laplace": Spec(make=Laplace, support="real", formula="Π Laplace(loc, scale)"),
    "student_t": Spec(make=StudentT, support="real", formula="Π t_df(loc, scale)"),
    "mixture": Spec(
        make=Mixture, support="real", formula="Σ π_k N(loc_k, diag(scale_k²))", reparameterised=False,
        reference="Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120"),
    "vamp": Spec(
        make=lambda dim, *, posterior, shape, components=500, initial=None, bounds=None: VampPrior(
            posterior, components, shape, initial, bounds
        ),
        support="any", formula="1/K Σ q(z | u_k)", reparameterised=False, needs=("posterior", "shape"),
        reference="Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120"),
    "flow": Spec(
        make=FlowPrior, support="real", formula="N(f(z); 0, I) |det ∂f/∂z|",
        reference="Durkan et al., 2019, https://arxiv.org/abs/1906.04032; "
        "Papamakarios et al., 2017, https://arxiv.org/abs/1705.07057"),
    "uniform_sphere": Spec(
        make=UniformSphere, support="sphere", formula="1 / area",
        reference="Davidson, Falorsi, De Cao, Kipf & Tomczak, 2018, https://arxiv.org/abs/1804.00891"),
    "one_hot": Spec(make=OneHot, support="one-hot", formula="π_k", reparameterised=False),
    "dirichlet": Spec(
        make=Dirichlet, support="simplex", formula="Dirichlet(a)",
        reference="Srivastava & Sutton, 2017, https://arxiv.org/abs/1703.01488"),
}  # fmt: skip
