"""Operations that no point of a trajectory reaches are run once: the results are the graph's own, to the bit."""

import pytest
import torch

from pyro_vae.common.flat_program import flattened
from pyro_vae.evidence.annealing.fixed_operations import AtManyPoints, fixed_operations

X = torch.linspace(-1, 1, 6).view(2, 3)


def density(u, x, scale):
    """A normal's, some of it made anew of rows and scale at each point."""
    flag = (scale <= 0).any()
    start = torch.zeros_like(u).sub_(u.square() / 2).sum(-1)
    return [start, (-(((x - u) / scale) ** 2) / 2 - scale.log()).sum(-1), torch.ones_like(start) * start, flag]


def names(nodes):
    return {str(node.target).split(".")[1] for node in nodes}


def test_each_point_has_the_graphs_own_results():
    args = [X, X.abs() + 1]
    flat = flattened(density, [torch.zeros(2, 3), *args])
    at = AtManyPoints(flat, args)
    for u in (torch.ones(2, 3), X, torch.full((2, 3), torch.inf)):
        assert all(map(torch.equal, map(torch.nan_to_num, at(u)), map(torch.nan_to_num, flat(u, *args))))
    assert {"log", "le", "any", "ones_like"} <= names(at.kept) and not {"square", "mul", "zeros_like"} & names(at.kept)


def test_what_a_graph_only_asks_the_shape_of_is_left_out():
    flat = flattened(lambda u, x: [torch.ones_like(u.exp().sum(-1)) * x.sum(-1), u], [X, X.clone()])
    at = AtManyPoints(flat, [X])
    assert all(map(torch.equal, at(X), at(X))) and names(at.idle) == {"exp", "sum"}


@pytest.mark.parametrize("what", ["rows", "what is made of them", "a view", "noise"])
def test_what_is_changed_in_place_or_drawn_is_made_anew(what):
    def changing(u, x):
        kept = x if what == "rows" else x.exp()
        if what == "noise":
            return [u + torch.randn_like(x)]
        (kept[0] if what == "a view" else kept).add_(1.0 if what == "rows" else u.sum())
        return [kept * u]

    flat = flattened(changing, [X.clone(), X.clone()])
    at, args = AtManyPoints(flat, [X.clone()]), [X.clone()]
    for u in (X + 1, X + 2):
        torch.manual_seed(0)
        wanted = flat(u, *args)
        torch.manual_seed(0)
        assert all(map(torch.equal, at(u), wanted))
    assert not {"add_", "randn_like"} & names(at.fixed)


def test_results_kept_of_what_moves_would_be_seen(monkeypatch):
    flat = flattened(density, [torch.zeros(2, 3), X, X.abs() + 1])
    everything = [node for node in flat.module.graph.nodes if node.op == "call_function"]
    assert len(fixed_operations(flat.module)) < len(everything)
    monkeypatch.setattr("pyro_vae.evidence.annealing.fixed_operations.fixed_operations", lambda _: everything)
    at = AtManyPoints(flat, [X, X.abs() + 1])
    with pytest.raises(AssertionError):
        at(X), torch.testing.assert_close(at(X + 1)[1], flat(X + 1, X, X.abs() + 1)[1])
