"""Rows are rows: numbers of other rows, of rows in another order, or of repeated ones are not put together."""

from functools import cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vae import Evidence, compare, defensive, gaps, widened
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.errors import DataError, UsageError
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bracket
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.evidence.importance import estimator, storage
from pyro_vae.evidence.importance.accumulator import RowBlock
from pyro_vae.evidence.importance.guide_elbo import DRAWS
from pyro_vae.evidence.importance.storage import load_evidence, save_evidence

log_likelihood = partial(noisy_log_likelihood, verbose=False)


class Shifted:
    """z ~ N(0, 1), x ~ N(z + c, 1); the guide is too narrow and a little off, so that its gap is known: KL of two normals."""

    def model(self, x, c=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z if c is None else z + c, 1.0), obs=x)

    def guide(self, x, c=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x if c is None else x - c) / 2 + 0.2, 0.5))

    def kl(self):
        return kl_divergence(dist.Normal(0.2, 0.5), dist.Normal(0.0, 0.5**0.5)).item()


pair, x = Shifted(), torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
c = torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
score = partial(log_likelihood, pair.model, pair.guide, num_samples=60)
OTHERS = {
    "other rows": x + 1,
    "permuted": x.flip(0),
    "repeated": torch.cat([x[:50], x[:50]]),
    "one row": torch.cat([x[:99], x[:1]]),
}
FEW = {"num_temperatures": 2, "num_chains": 3, "step_size": 0.5, "verbose": False}
METHODS = {
    "importance": lambda x: score(x),
    "defensive": lambda x: score(x, proposal=defensive()),
    "quadrature": lambda x: quadrature(pair.model, pair.guide, x),
    "linear gaussian": lambda x: linear_gaussian(pair.model, None, x),
    "annealing": lambda x: ais(pair.model, pair.guide, x, **FEW),
    "part of a bracket": lambda x: bracket(pair.model, pair.guide, x, num_samples=20, **FEW).annealing,
}


@cache
def scored(method, kind=""):
    """Evidence of some rows, x itself by default: made once."""
    return METHODS[method](OTHERS.get(kind, x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_rows_are_not_compared_whatever_scored_them(kind, method):
    here, there = scored("importance"), scored(method, kind)
    how = "the same rows in another order" if kind == "permuted" else "x differs in"
    with pytest.raises(DataError, match=f"'a' and 'b' are not of the same rows: .*{how}"):
        compare({"a": here, "b": there})
    assert len(compare({"a": here, "b": scored(method)})) == 2


def test_thirty_eight_test_rows_are_not_thirty_eight_training_rows():
    with pytest.raises(DataError, match="x differs in 38 of 38 rows"):
        compare({"test": score(x[:38]), "train": score(x[38:76])})


def test_the_same_rows_in_other_hands_are_compared():
    assert len(compare({"double": score(x), "single": score(x.float()), "a list": score(x.tolist())})) == 3


def test_rows_that_stand_there_again_are_told():
    twice = torch.cat([x[:50], x[:50]])
    (note,) = [n for n in compare({"a": score(twice), "b": score(twice, seed=1)}).notes if "again" in n]
    assert note.startswith("50 of 100 rows stand there again")
    assert not any("again" in n for n in compare({"a": score(x), "b": score(x, seed=1)}).notes)
    assert not any("again" in n for n in compare({"a": score(twice, c), "b": score(twice, c, seed=1)}).notes)


def test_contexts_are_part_of_a_row():
    with pytest.raises(DataError, match="the context differs in 100 of 100 rows"):
        compare({"a": score(x, c), "b": score(x, c + 1)})
    assert len(compare({"conditional": score(x, c), "without": score(x)})) == 2


def test_numbers_without_a_digest_are_let_pass():
    rows, none = torch.zeros(100), torch.zeros(100)
    by_hand = Evidence(rows, none, none + 50, rows - 1, none, num_samples=50, seed=0)
    assert len(compare({"a": score(x), "b": by_hand})) == 2


@pytest.mark.parametrize("kind", OTHERS)
def test_particles_of_other_rows_are_not_gone_on_from(kind):
    with pytest.raises(UsageError, match="hold particles of other rows"):
        score(OTHERS[kind], num_samples=120, resume=score(x))


@pytest.mark.parametrize("kind", OTHERS)
def test_parts_of_other_rows_are_not_merged(kind):
    halves = [score(rows, particles=part) for rows, part in ((x, range(30)), (OTHERS[kind], range(30, 60)))]
    with pytest.raises(UsageError, match="hold particles of other rows"):
        Evidence.merge(halves)


def test_merged_parts_are_of_the_rows_that_they_were():
    parts = [score(x, rows=rows) for rows in (range(64, 100), range(64))]
    merged = Evidence.merge(parts)
    assert (
        merged.row_ids.difference(score(x).row_ids) is None
        and merged.summary()["rows_digest"] == score(x).row_ids.digest
    )


def test_gaps_are_of_the_rows_that_log_px_is_of():
    split = partial(gaps, pair.model, pair.guide, steps=2, num_samples=20, verbose=False)
    assert split(x, log_px=score(x)).given
    with pytest.raises(DataError, match=r"log_px is of other rows than x: they are the same rows in another order"):
        split(x, log_px=score(x.flip(0)))


def test_saved_evidence_keeps_its_rows(tmp_path):
    class Frame:
        index = tuple(f"s{i}" for i in range(100))

        def to_numpy(self):
            return x.float().numpy()

    evidence = score(Frame(), c.float(), proposal=defensive())
    save_evidence(evidence, tmp_path / "e.safetensors")
    again = load_evidence(tmp_path / "e.safetensors")
    assert again.row_ids.digest == evidence.row_ids.digest and again.row_ids.index == Frame.index
    assert torch.equal(again.elbo, evidence.elbo)
    with pytest.raises(DataError, match="another order"):
        compare({"a": again, "b": score(x.flip(0), c.flip(0))})
    from_table = Evidence.from_csv(evidence.rows_csv(), num_samples=60, seed=0, proposal=evidence.proposal)
    assert from_table.row_ids.digest == evidence.row_ids.digest and torch.equal(from_table.elbo, evidence.elbo)


def test_exact_tables_keep_their_rows():
    exact = quadrature(pair.model, pair.guide, x)
    again = Exact.from_csv(exact.rows_csv(), method=exact.method, measure=exact.measure, how=exact.how)
    assert again.row_ids.digest == exact.row_ids.digest == score(x).row_ids.digest


def test_files_of_older_versions_load_and_are_gone_on_from(tmp_path, monkeypatch):
    """Without digests and ELBO of the guide: the same log p̂, and no ELBO where the draws were not the guide's."""
    for proposal, known in ((defensive(), False), (widened(), False), (None, True)):
        options = {} if proposal is None else {"proposal": proposal}
        evidence = score(x, **options)
        with monkeypatch.context() as former:
            former.setattr(storage.RowIds, "tensors", lambda self: {})
            for block in evidence.row_blocks:
                former.setattr(block, "guide_elbo", None)
            save_evidence(evidence, tmp_path / "old.safetensors")
        old = load_evidence(tmp_path / "old.safetensors")
        assert old.row_ids is None and torch.equal(old.log_px, evidence.log_px)
        assert bool(old.elbo.isfinite().all()) == known and (old.summary()["gap"] is not None) == known
        assert ("gap unknown" in str(old)) != known
        more = score(x, num_samples=120, resume=old, **options)
        assert more.row_ids.digest == score(x).row_ids.digest and more.elbo.isfinite().all()


def test_an_old_table_of_another_proposal_has_no_elbo():
    rows = torch.zeros(5, 3, dtype=torch.float64)
    text = Evidence(*rows, num_samples=7, seed=0).rows_csv()
    assert Evidence.from_csv(text, num_samples=7, seed=0).summary()["elbo"] == 0
    assert Evidence.from_csv(text, num_samples=7, seed=0, proposal="guide widened by 1.5").summary()["gap"] is None


PROPOSALS = {"defensive": defensive(0.3), "wide": widened(2.0), "both": defensive(0.2), "narrow": widened(0.5)}


@pytest.mark.parametrize("kind", PROPOSALS)
def test_the_gap_is_the_guides_whatever_the_proposal(kind):
    """KL(q ‖ p(z | x)), the same for all rows; log p(x) is known."""
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    for proposal in ({}, {"proposal": PROPOSALS[kind]}):
        evidence = score(x, num_samples=2000, **proposal)
        error = evidence.elbo_se.square().sum().sqrt() / len(x)
        assert abs((exact - evidence.elbo).mean() - pair.kl()) < 4 * error, proposal


def test_the_elbo_of_other_proposals_is_the_same_in_parts_and_after_resuming():
    options = {"proposal": defensive()}
    at_once = score(x, **options)
    parts = [score(x, particles=part, rows=rows, **options) for rows in (range(64), range(64, 100)) for part in
             (range(20), range(20, 60))]  # fmt: skip
    for other in (Evidence.merge(parts), score(x, resume=score(x, num_samples=10, **options), **options)):
        assert torch.equal(other.elbo, at_once.elbo) and torch.equal(other.elbo_se, at_once.elbo_se)
    assert DRAWS >= 100 and not torch.equal(at_once.elbo, score(x, seed=1, **options).elbo)


def test_a_guide_without_weights_has_no_elbo_but_its_mixture_a_number():
    """It proposes a point that the prior excludes: −∞ where it does, which is no error of the mixture."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 0.5))

    few = torch.randn(10)
    evidence = log_likelihood(model, guide, few, num_samples=500, proposal=defensive(0.5))
    assert (evidence.elbo < evidence.log_px).all() and evidence.elbo.isfinite().all()


@pytest.mark.parametrize("kind", ["digest forgotten", "order forgotten"])
def test_broken_variants_compare_what_they_should_not(kind, monkeypatch):
    """The checks above are red without what they check."""
    if kind == "digest forgotten":
        monkeypatch.setattr(RowBlock, "identify", lambda self, ids: None)
        monkeypatch.setattr(
            estimator, "programs_of", lambda parts, ids: ids
        )  # which sees that the first row is another
        assert len(compare({"a": score(x), "b": score(x + 1)})) == 2
        assert len(score(x + 1, num_samples=120, resume=score(x))) == 100
    else:
        sort = storage.RowIds.of.__func__

        def ordered(cls, *args):
            ids = sort(cls, *args)
            return cls(ids.x.sort().values, ids.context)

        monkeypatch.setattr(storage.RowIds, "of", classmethod(ordered))
        assert len(compare({"a": score(x), "b": score(x.flip(0))})) == 2


def test_enumeration_knows_its_rows():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(0.2 + 0.4 * pyro.sample("z", dist.Bernoulli(0.25))), obs=x)

    binary = torch.tensor([0.0, 1.0, 1.0])
    assert enumerate_latents(model, None, binary).row_ids.difference(
        enumerate_latents(model, None, binary.flip(0)).row_ids
    )


def test_counts_of_dequantised_rows_are_told_by_place_alone():
    """Their digest was that of y, which the counts have not."""
    counts = score(x).of_counts(256, 1)
    assert counts.row_ids.x is None and counts.summary().get("rows_digest") is None
