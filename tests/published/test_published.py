"""Published programs × public functions: each cell is right against the oracle, or refused by name; and the oracle is right.

Of functions that take the same way through the package each program meets one, and of the ways every other one; all of them
with PYRO_VAE_HEAVY=1, and printed in results/published.md.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vae
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError, PyroVAEError
from pyro_vae.programs import score_sites
from pyro_vae.programs.sites import observed_sites, sample_sites
from tests.helpers.environment import HEAVY

from . import cells, oracle, ways
from .cells import FUNCTIONS, run_cell, run_once
from .recipe import RECIPES, Pair, bits

PAGE = Path(__file__).parents[2] / "results" / "published.md"


# functions that take the same way through the package: a program meets one of each group, the next program the next of it
ALIKE = (
    ("bound-elbo", "bound-iwae"),  # Bound.per_row
    ("convergence", "compare", "defensive", "widened"),  # log_likelihood, several times or around the guide
    ("quadrature", "exact", "auto"),  # the last two choose: the first, more often than not
    ("ais", "bracket", "ais-guide", "bdmc"),  # one annealing: from either end, from both, of simulated rows
    ("fit", "gradient_report"),  # a step, and gradients of one
    ("linear_gaussian", "enumerate_latents"),  # exact, or refused by what the latents are
    ("gaps", "overfitting"),  # the latter is the former of two sets of rows
    ("decompose", "latents"),  # KL and I(x; z)
    ("sbc", "posterior_predictive", "prior_predictive"),  # of simulated rows; simulate itself meets all
    ("impute", "impute_mean"),
)
ALONE = [f for f in FUNCTIONS if not any(f in group for group in ALIKE)]
WAYS = (*ALIKE, *((f,) for f in ALONE))
MET = {  # a program meets every other way, the next program the others
    (p, group[(i // 2 + j) % len(group)])
    for i, p in enumerate(RECIPES)
    for j, group in enumerate(WAYS)
    if (i + j) % 2 == 0
}
CELLS = [(p, f) for p in RECIPES for f in FUNCTIONS if HEAVY or (p, f) in MET]


@pytest.mark.parametrize(("program", "function"), CELLS)
def test_right_or_refused_by_name(program, function):
    cell = run_once(program, function)
    assert cell.verdict in ("right", "refused"), f"{cell.verdict}: {cell.detail}"


FOLLOWED = [
    ("bayesian-regression", "importance", "WholeDataSet × importance"),
    ("gp-across", "log_weights", "WholeDataSet × log_weights"),
    ("hmm-global", "bound-elbo", "a density → WholeDataSet × bound-elbo"),
    ("hmm", "latents", "drawn × latents"),
    ("delta-guide", "gaps", "a density × gaps"),
    ("straight-through", "bracket", "a density × enumerate_latents"),
    ("von-mises", "widened", "× defensive"),
    ("air", "ais", "× importance"),
    ("hmm-drawn", "bdmc", "× simulate, then enumerate_latents"),
]


@pytest.mark.parametrize(("program", "function", "taken"), FOLLOWED, ids=[f"{p}-{f}" for p, f, _ in FOLLOWED])
def test_a_way_that_a_refusal_names_is_right(program, function, taken):
    """A few of those that the printed page follows, all of which take minutes."""
    cell = run_cell(program, function)
    assert cell.verdict == "by a way" and taken in cell.detail.split(": ")[0], cell.detail


def test_a_number_by_a_way_that_is_off_is_wrong(monkeypatch):
    monkeypatch.setattr(cells, "log_weights", lambda *args, **kwargs: pyro_vae.log_weights(*args, **kwargs) + 0.01)
    assert run_cell("gp-across", "log_weights").verdict == "WRONG"


def test_a_way_that_refuses_is_a_refusal(monkeypatch):
    def refuse(*args, **kwargs):
        raise ProgramError("site 'f' has no number: use something else")

    monkeypatch.setattr(ways, "WholeDataSet", lambda *pair: SimpleNamespace(model=refuse, guide=refuse))
    assert run_cell("gp-across", "log_weights").verdict == "refused"


@pytest.mark.parametrize("program", ["vae", "hmm-drawn"])
def test_no_answer_is_what_the_program_is_and_not_what_the_refusal_says(program, monkeypatch):
    """The words of another program's refusal do not excuse one where there is an answer."""

    def refuse(*args, **kwargs):
        raise ProgramError("site 'z' is continuous (Normal): it cannot be enumerated. Use quadrature.")

    monkeypatch.setitem(FUNCTIONS, "enumerate_latents", refuse)
    assert run_cell(program, "enumerate_latents").verdict == {"vae": "no answer", "hmm-drawn": "refused"}[program]


def test_a_program_meets_every_other_way_and_a_function_its_share_of_the_programs():
    for program in RECIPES:
        met = [sum((program, f) in CELLS for f in way) for way in WAYS]
        assert HEAVY or (max(met) == 1 and abs(sum(met) - len(WAYS) / 2) <= 1)
    for way in WAYS:
        by_function = {f: {p for p, other in CELLS if other == f} for f in way}
        assert set.union(*by_function.values()) >= set(list(RECIPES)[::2]) or set.union(*by_function.values()) >= set(
            list(RECIPES)[1::2]
        )
        assert min(map(len, by_function.values())) >= len(RECIPES) // (2 * len(way)) - 1


def test_every_function_of_programs_is_in_the_table():
    takes = {
        n
        for n in pyro_vae.__all__
        if callable(f := getattr(pyro_vae, n)) and not inspect.isclass(f) and takes_programs(f)
    }
    covered = {c for name in FUNCTIONS for c in (name, name.split("-")[0])}
    covered |= {
        "log_likelihood",
        "simulation_based_calibration",
        "posterior_predictive_check",
        "prior_predictive_check",
    }
    used = {"encode", "reconstruct", "sample"}  # by site: below
    used |= {"interpolate"}  # means between two codes: tests/models/test_usage.py
    parts = {"particle_filter", "smooth", "forecast"}  # of a StateSpaceModel
    globals_ = {
        "predictive_density",
        "data_set_calibration",
    }  # of programs with global sites: tests/evidence/test_predictive.py
    classes = {"sum_out", "class_posterior"}  # of programs with a discrete site: tests/programs/test_summed_out.py
    of_sites = {
        "conditional_log_likelihood"
    }  # of programs with several observed sites: tests/evidence/test_conditional.py
    drawn = {"posterior_draws", "to_datatree"}  # draws by the weights of log_likelihood: tests/evidence/test_arviz.py
    assert takes - covered - used - parts - classes - globals_ - of_sites - drawn == set()
    assert len(RECIPES) >= 30


def test_the_printed_table_is_of_these_programs_and_functions():
    """Not of its values: `python -m tests.published > results/published.md` prints it anew."""
    rows = [line.split("|")[1:-1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head = next(row for row in rows if len(row) > 3)
    programs = [row[0].strip() for row in rows if len(row) == len(head)][2:]
    assert [cell.strip().replace(" ", "_") for cell in head[1:]] == list(FUNCTIONS)
    assert programs == list(RECIPES)
    assert not {"✗", "!", "?", "o"} & {cell.strip() for row in rows if len(row) == len(head) for cell in row}


def given(pair):
    """Labels that the model observes beside x: what it observes whatever x is."""
    if not pair.context:
        return {}
    with seeded(0):
        one, other = (
            observed_sites(sample_sites(poutine.trace(pair.model).get_trace(x, *pair.context)))
            for x in (pair.x, torch.zeros_like(pair.x))
        )
    values = {name: (one[name]["value"], other[name]["value"]) for name in one if name in other}
    return {name: a for name, (a, b) in values.items() if torch.equal(a, b)}


def plainly(pair, use, found):
    """What a plain trace has at the sites of the guide, of the model with nothing observed, or of it at draws of the guide."""
    model, guide = poutine.uncondition(pair.model), pair.guide
    with oracle.evaluating(pair), pyro.get_param_store().scope(), seeded(3):
        if use == "sample":
            return poutine.trace(poutine.condition(model, given(pair))).get_trace(*pair.args)
        drawn = poutine.trace(guide).get_trace(*pair.args)
        if use == "encode":
            return drawn
        with seeded(0):  # labels beside x stay
            seen = observed_sites(sample_sites(poutine.trace(poutine.replay(pair.model, drawn)).get_trace(*pair.args)))
        labels = {name: site["value"] for name, site in seen.items() if name not in found}
        return poutine.trace(poutine.replay(poutine.condition(model, labels), drawn)).get_trace(*pair.args)


USES = {
    "encode": lambda pair: pyro_vae.encode((pair.model, pair.guide), *pair.args, num_samples=1, seed=3),
    "sample": lambda pair: pyro_vae.sample(pair.model, len(pair.x), *pair.context, like=pair.x, seed=3),
    "reconstruct": lambda pair: pyro_vae.reconstruct((pair.model, pair.guide), *pair.args, num_samples=1, seed=3),
}
UNITS_LEFT = {"lda": ("topic", "word"), "lda-enumerated": ("topic", "word"), "transposed-plates": ("x",)}  # (3, N)


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.DataConversionWarning")
@pytest.mark.parametrize("use", USES if HEAVY else ("encode", "sample"))
@pytest.mark.parametrize("program", RECIPES)
def test_draws_by_site_are_those_of_a_plain_trace_or_refused_by_name(program, use):
    pair = RECIPES[program].make()
    with pyro.get_param_store().scope():
        try:
            found = USES[use](pair)
        except PyroVAEError as error:
            assert cells.named(error), error
            return
        assert not (pair.reads_x and use != "encode")
        again = USES[use](pair)
    plain = plainly(RECIPES[program].make(), use, found)
    assert found and all(torch.equal(found[name].nan_to_num(), again[name].nan_to_num()) for name in found)
    for name, values in found.items():
        value = plain.nodes[name]["value"]
        value = value.T if name in UNITS_LEFT.get(program, ()) else value  # rows are first in what the package returns
        values = values if use == "sample" else values[0]
        there = ~values.isnan() if values.is_floating_point() else torch.ones_like(values, dtype=torch.bool)
        torch.testing.assert_close(values[there].double(), value[there].double(), msg=f"{name}: {values} {value}")


def takes_programs(function):
    first = next(iter(inspect.signature(function).parameters), "")
    return first in ("model", "vae")


# the oracle

PROPER = [n for n in RECIPES if n not in ("autonormal", "straight-through", "delta-guide")]


@pytest.fixture
def pair(request):
    made = RECIPES[request.param].make()
    if made.shared:
        pytest.skip(f"rows share {made.shared!r}")
    return made


@pytest.mark.parametrize("pair", PROPER, indirect=True)
def test_a_row_alone_weighs_what_it_weighs_among_others(pair):
    with oracle.evaluating(pair), oracle.Typical():
        q, p = oracle.run(pair, pair.args)
        latent = oracle.proposed(q, p)
        dim = oracle.data_dim(latent, p)
        together = oracle.by_row(p, dim) - oracle.by_row(latent, dim)
    torch.testing.assert_close(oracle.row_weights(pair), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pair", PROPER, indirect=True)
def test_the_guide_and_the_prior_lead_to_one_log_px(pair):
    """By 4 standard errors of both; a closed form in the prior's place, where there is one."""
    by_guide = oracle.drawn(pair, pair.args, 4000, seed=1).log_w
    assert oracle.ess(by_guide).min() > 40  # its standard error means something
    mine, other = oracle.log_mean(by_guide), oracle.log_px(pair, pair.args, seed=2)
    se = (mine.se**2 + other.se**2).sqrt().clamp_min(0.01)
    assert ((mine.value - other.value).abs() / se).max() < 4


def test_closed_forms_are_those_of_distributions():
    flips = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]])
    pair = RECIPES["coins"].make()
    binomial = dist.BetaBinomial(2.0, 3.0, 4).log_prob(flips.sum(-1)).double()
    ways = torch.tensor([6.0, 1.0]).log().double()
    torch.testing.assert_close(pair.exact(flips), binomial - ways, rtol=0, atol=1e-5)
    rates = RECIPES["poisson-gamma"].make()
    a, x = torch.tensor([2.0, 3.0]), torch.tensor([[4.0, 0.0]])
    torch.testing.assert_close(
        rates.exact(x), dist.GammaPoisson(a, 0.8).log_prob(x).sum(-1).double(), rtol=0, atol=1e-5
    )
    states = RECIPES["hmm"].make()
    every = torch.tensor([[a, b, c] for a in (0.0, 1) for b in (0.0, 1) for c in (0.0, 1)])
    torch.testing.assert_close(states.exact(every).exp().sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-6)


# broken variants, that the table must show


def test_what_is_a_little_off_is_wrong(monkeypatch):
    monkeypatch.setattr(cells, "log_weights", lambda *args, **kwargs: pyro_vae.log_weights(*args, **kwargs) + 0.01)
    assert run_cell("vae", "log_weights").verdict == "WRONG"


def test_masks_that_are_forgotten_are_wrong(monkeypatch):
    """What is masked has no density; the oracle's own is made before, with masks."""
    assert run_cell("masked", "log_weights").verdict == "right"
    monkeypatch.setattr(dist.MaskedDistribution, "log_prob", lambda self, value: self.base_dist.log_prob(value))
    assert run_cell("masked", "log_weights").verdict == "WRONG"


def test_scales_that_enter_a_weight_are_wrong(monkeypatch):
    plain = score_sites.row_log_density
    monkeypatch.setattr(score_sites, "row_log_density", lambda n, s, p, checked, _: plain(n, s, p, checked, s["scale"]))
    assert {run_cell("scanvi", f).verdict for f in ("log_weights", "importance")} == {"WRONG"}


def test_exceptions_from_outside_the_tree_are_raw(monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("z")

    monkeypatch.setattr(cells, "log_weights", broken)
    assert run_cell("vae", "log_weights").verdict == "raw"


def test_a_refusal_without_a_name_is_not_one(monkeypatch):
    def refuse(*args, **kwargs):
        raise ProgramError("this cannot be done")

    monkeypatch.setattr(cells, "log_weights", refuse)
    assert run_cell("vae", "log_weights").verdict == "unnamed"


def test_an_oracle_that_fails_is_no_verdict(monkeypatch):
    cells.weight.cache_clear()
    monkeypatch.setattr(oracle, "row_weights", lambda pair: pair.nothing)
    with pytest.raises(oracle.OracleError):
        run_cell("vae", "log_weights")


def test_simulations_of_another_model_are_wrong(monkeypatch):
    def shifted(model, x, *context, **options):
        found = pyro_vae.simulate(model, x, *context, **options)
        return type(found)(found.latents, (found.x + 0.3, *found.args[1:]))

    monkeypatch.setattr(cells, "simulate", shifted)
    assert run_cell("ppca", "simulate").verdict == "WRONG"


def test_a_guide_of_the_wrong_width_shows_in_the_ranks(monkeypatch):
    """The ranks of one guide are not those of another."""
    recipe = RECIPES["ppca"].make()

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 0.2).to_event(1))

    found = pyro_vae.simulation_based_calibration(recipe.model, narrow, recipe.x, num_rows=120, num_draws=19)
    monkeypatch.setattr(cells, "simulation_based_calibration", lambda *args, **options: found)
    assert run_cell("ppca", "sbc").verdict == "WRONG"


def test_a_shared_latent_has_no_number_for_a_row():
    pair = Pair(lambda x: None, lambda x: None, bits(2), shared="w")
    with pytest.raises(cells.WrongError, match="'w'"):
        cells.no_number(pair)


def test_masked_entries_stay_as_they_are(monkeypatch):
    assert run_cell("packed-rnn", "simulate").verdict == "right"
    monkeypatch.setattr(oracle, "kept", lambda site: torch.tensor(True))
    assert run_cell("packed-rnn", "simulate").verdict == "WRONG"
