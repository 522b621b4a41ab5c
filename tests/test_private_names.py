"""Private names of torch and Pyro stand in two modules, and training goes on where a torch or a Pyro has them no more."""

import ast
import re
import warnings
from functools import cache
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import MLP, VAE, Beta, Conditional, StandardNormal, bernoulli, fit, log_weights, normal
from pyro_vae.common import pyro_private, torch_private
from pyro_vae.distributions.bernoulli import Bernoulli
from pyro_vae.errors import RunFolderError
from pyro_vae.objectives.pyro_elbos import tensor_loss
from pyro_vae.programs.parameters import register
from pyro_vae.runs.build_limits import bounded_build
from pyro_vae.training.engines import choose, traced
from pyro_vae.training.engines.cuda_graph import Recorded
from tests.helpers.environment import HEAVY
from tests.helpers.recording import Again

PACKAGE = Path(__file__).resolve().parents[1] / "pyro_vae"
HOMES = ("common/torch_private.py", "common/pyro_private.py")
FOREIGN = ("torch", "pyro", "zuko", "numpy")

# what a subclass is meant to define, or to call on itself: every distribution and handler outside torch and Pyro does
PROTOCOL = {
    "_pyro_sample": "Messenger's documented hook",
    "_pyro_post_sample": "Messenger's documented hook",
    "_pyro_post_param": "Messenger's documented hook",
    "_get_trace": "the abstract method of ELBO that each objective defines",
    "_validate_args": "torch.distributions: whether this distribution checks values, which expand() hands on",
    "_validate_sample": "torch.distributions: called by a distribution's own log_prob",
    "_extended_shape": "torch.distributions: called by a distribution's own rsample",
    "_get_checked_instance": "torch.distributions: called by a distribution's own expand",
}
OURS = ("self", "cls", "new", "old")  # `new`: the instance that an expand() makes of `old`
STANDARD_LIBRARY = {"os._exit"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined(trees):
    """Underscored names that the package itself gives to functions, classes, variables and attributes of self."""
    found = set()
    for node in (n for tree in trees for n in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found - set(PROTOCOL)


def strange(source, own=frozenset()):
    """Uses of private names of others, as source text."""
    return [text for node in ast.walk(ast.parse(source)) for text in strange_in(node, own)]


def strange_in(node, own):
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in FOREIGN:
        if any(map(is_private, [*node.module.split("."), *(alias.name for alias in node.names)])):
            yield ast.unparse(node)
    elif isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name.split(".")[0] in FOREIGN and "._" in a.name)
    elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
        text = ast.unparse(node)
        if not (node.attr in PROTOCOL and ast.unparse(node.value) in OURS) and text not in STANDARD_LIBRARY:
            yield text
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        dotted = re.fullmatch(r"(torch|pyro|zuko)(\.\w+)*\._\w+(\.\w+)*", node.value)
        if dotted or node.value in WORDS:
            yield repr(node.value)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
        name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
        if is_private(name) and name not in own | WORDS:
            yield ast.unparse(node)


# every private name of the two modules, by how it is hidden: from their `getattr`, or from `torch_private.find`
ATTRIBUTES = (
    *(
        "_foreach_add_",
        "_fused_adam_",
        "_fused_adamw_",
        "_foreach_sub_",
        "_optimizer_step_pre_hooks",
        "_optimizer_step_post_hooks",
    ),
    *("_step_supports_amp_scaling", "_version", "_backward_hooks", "_validate_sample", "_schema", "_linear_pointwise"),
    *torch_private.LISTS.values(),
    *("_PYRO_STACK", "_get_trace", "_get_traces", "_mask", "_param"),
)
PATHS = (
    torch_private.MODE,
    torch_private.MAKE_FX,
    torch_private.SOURCES,
    torch_private.CPP,
    torch_private.WRITTEN,
    torch_private.STORE,
    torch_private.COUNTERS,
    *torch_private.CACHING,
    *torch_private.INDUCTOR,
    *torch_private.SHARED,
)
HIDDEN = dict.fromkeys(ATTRIBUTES, "getattr") | dict.fromkeys(PATHS, "find")
KEYS = {
    "_deterministic",
    "_intervener_id",
    "_pyro_name",
    "_pyro_samples",
}  # of the dictionaries of a site, and of a module
WORDS = {name for name in HIDDEN if is_private(name)} - set(PROTOCOL) | KEYS


def test_no_other_module_uses_a_private_name():
    sources = {str(p.relative_to(PACKAGE)): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
    own = defined(map(ast.parse, sources.values()))
    found = [
        f"{name}: {text}" for name, source in sources.items() if name not in HOMES for text in strange(source, own)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from torch._subclasses import FakeTensorMode",
        "from pyro.poutine.runtime import _PYRO_STACK",
        "import torch._inductor.config as config",
        "from torch.utils import _pytree",
        "torch._fused_adam_([])",
        "torch.utils._pytree.tree_map(f, x)",
        "def f(p):\n    return p._backward_hooks",
        "plain._get_trace = pair",
        "Distribution._validate_args = False",
        "self._parameters.clear()",
        "getattr(node.target, '_schema', None)",
        "getattr(optimizer, '_step_count')",
        "find('torch._inductor.config')",
        "site['infer'].get('_deterministic')",
    ],
)  # fmt: skip
def test_a_planted_private_name_is_found(source):
    assert len(strange(source)) == 1


def test_what_is_our_own_or_a_subclasses_is_left_alone():
    own = defined([ast.parse("class A:\n    def _mine(self):\n        self._kept = 1\n")])
    source = (
        "from __future__ import annotations\nself._mine(); other._kept; self.__dict__; self._validate_args; os._exit(1)"
    )
    assert strange(source, own) == []


def test_each_private_name_of_the_two_modules_is_hidden_below():
    names = set()
    for home in HOMES:
        for node in ast.walk(ast.parse((PACKAGE / home).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
                names |= {node.value} if re.match(r"_[a-zA-Z]|(torch|pyro)\.(\w+\.)*_", node.value) else set()
    assert names <= set(HIDDEN) | KEYS


@pytest.fixture(autouse=True)
def tried_anew():
    torch_private.reset()
    yield
    torch_private.reset()


def hide(name, monkeypatch):
    """As if torch, or Pyro, had no such name: for our modules alone, as they themselves could not run without most of them."""
    if HIDDEN[name] == "find":
        found = torch_private.find
        monkeypatch.setattr(torch_private, "find", lambda path: None if path == name else found(path))
        return

    def without(thing, key, *default):
        return default[0] if key == name else getattr(thing, key, *default)

    for module in (torch_private, pyro_private):
        monkeypatch.setattr(module, "getattr", without, raising=False)


X = torch.bernoulli(torch.full((64, 6), 0.3), generator=torch.Generator().manual_seed(0))


def trained(**options):
    torch.manual_seed(0)
    likelihood = Conditional(MLP(2, 6, (8,)), bernoulli)
    vae = VAE(StandardNormal(2), likelihood, Conditional(MLP(6, 4, (8,)), normal))
    run = fit(vae, X, epochs=2, batch_size=16, verbose=False, **options)
    return run, [p.detach() for p in vae.parameters()]


@pytest.fixture
def quick(monkeypatch):
    """Engines as in a long run; the compiler hands back what it is given, and a CUDA graph runs again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on import
        from torch._inductor import compile_fx

    monkeypatch.setattr(compile_fx, "compile_fx", lambda module, inputs, decompositions: module)
    monkeypatch.setattr(choose, "compiler", lambda: "g++")
    monkeypatch.setattr("pyro_vae.common.inductor.compiler", lambda: "g++")
    for name, value in (("WORTH_TRACE", 1), ("WORTH_COMPILE", 1), ("PATIENCE", 0)):
        monkeypatch.setattr(choose, name, value)
    resolve, graph = choose.resolve, ("graph", "asked for")
    monkeypatch.setattr(choose, "resolve", lambda engine, *a: graph if engine == "graph" else resolve(engine, *a))
    monkeypatch.setitem(traced.ACCELERATORS, "graph", lambda flat, batch: Recorded(flat, batch, Again()))


UNTRACEABLE = {
    torch_private.MODE: f"torch has no {torch_private.MODE}",
    torch_private.MAKE_FX: f"torch has no {torch_private.MAKE_FX}",
    "_schema": "torch has no OpOverload._schema",
    "_backward_hooks": "torch has no Tensor._backward_hooks",
}


ENGINES = ("auto", "trace", "compile", "graph")
# every other name under an engine, and each engine under every eighth; those that a message names under the engines that say it
SAID = dict.fromkeys(UNTRACEABLE, ("auto", "graph")) | dict.fromkeys(torch_private.INDUCTOR, ("auto", "compile"))
MET = [
    (name, engine)
    for i, name in enumerate(HIDDEN)
    for j, engine in enumerate(ENGINES)
    if name not in torch_private.LISTS.values()  # which a compiled step on a GPU calls alone
    if HEAVY or (i + 2 * j) % 8 == 0 or engine in SAID.get(name, ())
]


@cache
def bits_of_eager(hidden=None):
    """Of a training by eager with a name hidden, as the caller has done; None: with all names."""
    return trained(engine="eager")[1]


@pytest.mark.parametrize(("name", "engine"), MET)
def test_training_without_a_name_ends_at_the_bits_of_eager(name, engine, quick, monkeypatch):
    whole = bits_of_eager()
    hide(name, monkeypatch)
    eager = bits_of_eager(name)
    run, weights = trained(engine=engine)
    if "compiled in" in run.engine:  # Adam's formula in place of its kernel: other last digits
        torch.testing.assert_close(weights, eager, rtol=1e-4, atol=1e-6)
    else:
        assert all(map(torch.equal, weights, eager))
    if name not in (
        "_foreach_add_",
        "_fused_adam_",
        "_foreach_sub_",
    ):  # torch's own fused Adam needs them: Adam unfused
        assert all(map(torch.equal, eager, whole))
    if name in UNTRACEABLE:
        assert f"eager from here on: {UNTRACEABLE[name]}" in run.engine
    elif name in torch_private.INDUCTOR and engine == "compile":
        assert run.engine.startswith(f"engine trace (compile was asked for, but torch has no {name})")
    elif name in torch_private.INDUCTOR and engine == "auto":
        assert f"the trace goes on as it is: torch has no {name}" in run.engine
    else:
        assert "eager from here on" not in run.engine and "checked against eager" in run.engine


def other(*args, **kwargs):
    raise TypeError("incompatible function arguments")


def wrong(parameters, *args, **kwargs):
    parameters[0].zero_()


@pytest.mark.parametrize("name", ["_foreach_add_", "_fused_adam_", "_foreach_sub_"])
@pytest.mark.parametrize("replaced", [other, None], ids=["another signature", "gone"])
def test_a_torch_whose_kernel_is_gone_or_another_trains_by_adam_unfused(name, replaced, monkeypatch):
    trained(engine="eager")  # what was tried before does not count any more
    with monkeypatch.context() as changed:
        changed.setattr(torch, name, replaced) if replaced else changed.delattr(torch, name)
        assert not torch_private.kernel_works() and not torch_private.fused_works()
        run, weights = trained()
    assert run.stopped == "2 epochs done" and all(w.isfinite().all() for w in weights)
    assert torch_private.kernel_works() and torch_private.fused_works()


def test_a_kernel_that_does_something_else_than_torchs_step_is_not_called(monkeypatch):
    whole = trained()[1]
    torch_private.reset()
    monkeypatch.setattr(torch_private, "fused_adam", wrong)
    assert not torch_private.kernel_works() and torch_private.fused_works()
    assert all(map(torch.equal, trained()[1], whole))


@pytest.mark.parametrize("path", [*torch_private.SHARED, *torch_private.INDUCTOR[1:]])
def test_names_that_torch_itself_has_lost(path, monkeypatch):
    owner, _, name = path.rpartition(".")
    torch_private.find(path)  # imported, with what it imports
    monkeypatch.delattr(torch_private.import_module(owner), name)
    whole = trained(engine="eager")[1]
    for engine in ("trace", "compile") if path in torch_private.INDUCTOR else ("trace",):
        run, weights = trained(engine=engine)
        assert all(map(torch.equal, weights, whole)) and run.engine.startswith("engine trace")


# each name's own way out


@pytest.mark.parametrize("name", torch_private.LISTS)
def test_without_operations_on_lists_there_is_a_loop(name, monkeypatch):
    lists, other = [torch.rand(3), torch.rand(2, 2)], [torch.rand(3), torch.tensor(0.5)]
    given = [()] if name == "sqrt" else [(other,), (0.5,)]
    whole = [torch_private.on_lists(name)(lists, *one) for one in given]
    hide(torch_private.LISTS[name], monkeypatch)
    for theirs, one in zip(whole, given, strict=True):
        assert all(map(torch.equal, theirs, torch_private.on_lists(name)(lists, *one)))


def test_without_a_dispatch_mode_a_model_is_still_built_within_bounds(monkeypatch):
    hide(torch_private.MODE, monkeypatch)
    layout = {"w": ((10, 10), torch.float32)}
    with bounded_build(layout):
        built = nn.Linear(10, 10)
    assert built.weight.shape == (10, 10)
    for large in (lambda: nn.Linear(10**6, 10**6), lambda: torch.zeros(10**6, 10**6), lambda: torch.arange(10**12)):
        with pytest.raises(RunFolderError, match="far larger"), bounded_build(layout):
            large()


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros((), dtype=torch.long), torch.ones(2, 2).bfloat16().T])
def test_without_version_counts_what_is_held_tells_of_changes(tensor, monkeypatch):
    hide("_version", monkeypatch)
    before = torch_private.version(tensor)
    assert torch_private.version(tensor) == before
    tensor.add_(1)
    assert torch_private.version(tensor) != before


def test_without_its_method_a_sample_is_checked_against_the_support(monkeypatch):
    d = Bernoulli(logits=torch.zeros(3), validate_args=True).to_event(1)
    hide("_validate_sample", monkeypatch)
    torch_private.validate_sample(d.base_dist, torch.ones(3))
    with pytest.raises(ValueError, match="outside the support"):
        torch_private.validate_sample(d.base_dist, torch.full((3,), 2.0))


def test_a_module_that_is_gone_leaves_shared_parameters_to_the_other():
    store, shared = pyro.get_param_store(), nn.Linear(2, 1)
    first, second = nn.Sequential(shared), nn.Sequential(shared)
    register(first)
    register(second)
    held = dict(store.named_parameters())
    del second
    left = {key for key, tensor in store.named_parameters() if tensor is shared.weight}
    assert len(left) == 1 and store.param_name(shared.weight) in left and len(store) < len(held)
    del first
    assert store.param_name(shared.weight) is None


@pytest.mark.parametrize("name", ["_get_trace", "_get_traces"])
def test_without_its_way_to_trace_particles_an_objective_runs_as_pyro_runs_it(name, monkeypatch):
    hide(name, monkeypatch)
    assert tensor_loss(Trace_ELBO(num_particles=2, vectorize_particles=True)) is None
    assert tensor_loss(Trace_ELBO(num_particles=2)) is not None
    run, _ = trained(
        objective=Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1), engine="trace"
    )
    assert "Trace_ELBO reads numbers back at each step" in run.engine


def test_a_pyro_that_marks_deterministic_sites_otherwise(monkeypatch):
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.deterministic("mean", z.sum(-1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    def weights():
        torch.manual_seed(0)
        return log_weights(*Beta(0.5).pair((model, guide)), torch.ones(3, 1))

    whole = weights()
    monkeypatch.setattr("pyro_vae.programs.sites.is_deterministic", lambda site: False)
    assert torch.equal(weights(), whole)
