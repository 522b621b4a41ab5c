"""Evidence shared by processes has the bits of one process: rows, particles, chunks of chains, whatever is asked."""

import json
import os
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    StandardNormal,
    ais,
    bernoulli,
    bracket,
    defensive,
    gaps,
    log_likelihood,
    normal,
)
from pyro_vae.common.digests import sha256
from pyro_vae.common.exchange import agree
from pyro_vae.common.processes import Processes, joined
from pyro_vae.common.spread import by_itself, exchange, sharing, spread
from pyro_vae.errors import IdleProcessesWarning, ProcessesError, ProgramError, UsageError
from pyro_vae.evidence.importance import row_block_rounds
from pyro_vae.evidence.importance.storage import numbers_of, tensors_of
from tests.helpers.pilots import short_pilots

from .launch import launch

HERE = "tests.processes.test_evidence_bits"
HEAVY = os.environ.get("PYRO_VAE_HEAVY") == "1"


def small_vae():
    torch.manual_seed(3)
    return VAE(StandardNormal(2), Conditional(MLP(2, 6), bernoulli), Conditional(MLP(6, 2 * 2), normal))


def binary(rows, seed=0):
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def factors(x, offset):
    """A model with a context, a mask and a dictionary of observations."""
    with pyro.plate("data", len(offset)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z + offset, 1.0), obs=x["a"])
        pyro.sample("b", dist.Poisson(z.exp()).mask(x["b"] < 4), obs=x["b"])


def of_factors(x, offset):
    with pyro.plate("data", len(offset)):
        pyro.sample("z", dist.Normal((x["a"] - offset) / 2, 0.9))


def structured(rows):
    made = torch.Generator().manual_seed(1)
    a, offset = torch.randn(2, rows, generator=made)
    return {"a": a, "b": torch.poisson(torch.ones(rows), generator=made)}, offset


def shared_scale(x):
    """A model with a latent of each row, and a guide with parameters for each: one block of all rows."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def own_guide(rows):
    torch.manual_seed(5)
    pyro.clear_param_store()
    guide = pyro.infer.autoguide.AutoNormal(shared_scale)
    guide(torch.linspace(-1, 1, rows))
    return guide


def resumed(vae, x, **more):
    """Evidence of fewer particles, gone on from: some pieces of some blocks are there."""
    first = log_likelihood(vae.model, vae.guide, x, num_samples=100, rows=range(64), verbose=False)
    return log_likelihood(vae.model, vae.guide, x, num_samples=200, resume=first, verbose=False, **more)


def cases():
    """Functions that hand out evidence, by name."""
    vae = small_vae()
    pair, few = (vae.model, vae.guide), {"num_samples": 150, "verbose": False}
    loc = torch.linspace(-1, 1, 100)
    guide = own_guide(100)
    annealing = {"num_temperatures": 3, "leapfrog_steps": 1, "chunk_size": 12, "verbose": False}

    def of(count, **options):
        return lambda: log_likelihood(*pair, binary(count), **few | options)

    return {
        "three blocks": of(130),
        "one row": of(1, num_samples=9000),
        "one row, of one piece": of(1, num_samples=9),
        "three rows": of(3, num_samples=3000),
        "a chunk less than a block": of(70, chunk_size=1000),
        "a chunk of several blocks": of(70, chunk_size=20_000),
        "some rows": of(200, rows=range(64, 192)),
        "some particles": of(100, particles=range(100, 300), num_samples=700),
        "a target": of(70, target_se=0.2, num_samples=100, max_samples=400),
        "a mixture": of(70, proposal=defensive()),
        "rows of their own": of(3, noise="row"),
        "traced": of(70, engine="trace"),
        "looked at": of(64, num_samples=5500),
        "resumed": lambda: resumed(vae, binary(70)),
        "contexts, masks and names": lambda: log_likelihood(factors, of_factors, *structured(70), **few),
        "guide with parameters of rows": lambda: log_likelihood(shared_scale, guide, loc, **few),
        "exact": lambda: log_likelihood(shared_scale, guide, loc, method="exact"),
        "annealed": lambda: ais(*pair, binary(11), step_size=0.3, num_chains=3, **annealing),
        "annealed adaptively": lambda: ais(*pair, binary(7), schedule="adaptive", num_chains=3, **annealing),
        "between two ends": lambda: bracket(
            *pair, binary(3), num_chains=10, step_size=0.3, num_samples=50, **annealing
        ),
        "annealed, the chains of a row in parts": lambda: ais(
            *pair, binary(1), num_chains=7, **annealing | {"chunk_size": 3}
        ),
        "between two ends, by chains": lambda: bracket(
            *pair, binary(1), num_chains=10, step_size=0.3, num_samples=50, **annealing | {"chunk_size": 5}
        ),
        "gaps": lambda: gaps(*pair, binary(5), steps=5, num_samples=20, chunk_size=40, verbose=False),
        "gaps of one row": lambda: gaps(*pair, binary(1), steps=5, num_samples=90, chunk_size=40, verbose=False),
        "gaps of one chunk": lambda: gaps(*pair, binary(3), steps=5, num_samples=90, chunk_size=200, verbose=False),
    }


def digest(result):
    """All tensors of a result, as their bits, and what else it says."""
    if hasattr(result, "row_blocks"):
        blocks = [digest_of(b) for b in result.row_blocks]
        return [blocks, result.rows_csv(), result.summary(), result.program_ids.to_dict()]
    if hasattr(result, "lower"):
        return [digest(result.importance), digest(result.annealing), str(result), *map(bits, vars(result).values())]
    return [*map(bits, vars(result).values()), str(result)]


def plain(result):
    """The digest as JSON has it, NaN and all."""
    return json.loads(json.dumps(digest(result)))


def digest_of(block):
    """What a file holds of a block of rows."""
    return [numbers_of(block), {name: bits(tensor) for name, tensor in sorted(tensors_of(block).items())}]


def bits(value):
    return sha256(value.detach().numpy().tobytes()) if isinstance(value, torch.Tensor) else None


def refusals(here):
    """What ranks do not have alike is named on each; a rank that fails ends the others where they are, and none hangs."""
    vae, other = small_vae(), small_vae()
    with torch.no_grad():
        next(other.parameters()).add_(here.rank)
    x = binary(130)

    def scored(vae=vae, x=x, **options):
        log_likelihood(vae.model, vae.guide, x, **{"num_samples": 50, "verbose": False} | options)

    with pytest.raises(UsageError, match=r"the data \(its digest\) must be the same on each rank: rank 1 has"):
        scored(x=binary(130, seed=here.rank))
    with pytest.raises(UsageError, match="on ranks 0 and 1 their parameters and buffers have digest"):
        scored(vae=other)
    with pytest.raises(UsageError, match="seed must be the same on each rank: rank 1 has 1, and rank 0 has 0"):
        scored(seed=here.rank)
    with pytest.raises(UsageError, match="num_samples must be the same"):
        scored(num_samples=50 + here.rank)

    def wrong_in_row_70(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(x == 70, torch.nan, z), 1.0, validate_args=False), obs=x)

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))

    owner = here.rank == 1  # of rows 64 to 127
    named = r"NaN or \+inf for rows \[70\]" if owner else r"rank 1 ended with ProgramError: .*rows \[70\]"
    with pytest.raises(ProgramError if owner else ProcessesError, match=named):
        log_likelihood(wrong_in_row_70, wide, torch.arange(200.0), num_samples=20, verbose=False)

    def fails(i):
        return {"number": torch.tensor(1 // (i - 1))}

    with pytest.raises(ZeroDivisionError if owner else ProcessesError):
        spread(2, fails, "numbers")
    with warnings.catch_warnings(), pytest.raises(IdleProcessesWarning if here.leads else ProcessesError):
        if here.leads:  # whose warning is an error
            warnings.simplefilter("error", IdleProcessesWarning)
        scored(x=x[:1])
    made = exchange({here.rank: {}}, {}, "what is empty")
    assert [list(parts) for parts, _ in made] == [[0], [1]]
    scored()  # the group is as it was


def run_cases(folder, *names):
    """Run in each rank: all cases by all ranks, whose results agree, and by one of them alone, in turn: the same bits."""
    with joined("cpu", timeout=60) as here, pytest.MonkeyPatch.context() as patched:
        short_pilots(patched)
        row_block_rounds.COLLECT = 0.05  # seconds: several exchanges in each
        odd, idle = [], []
        chosen = {name: case for name, case in cases().items() if not names or name in names}
        for i, (name, case) in enumerate(chosen.items()):
            pyro.clear_param_store()
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                together = plain(case())
            idle += [name for w in told if w.category is IdleProcessesWarning]
            agree(f"the result of {name}", together)
            if i % here.world != here.rank:
                continue
            with by_itself():
                assert sharing() == Processes()
                alone = plain(case())
            odd += [name] if json.dumps(together) != json.dumps(alone) else []
        if here.world == 2:
            refusals(here)
        Path(folder, f"{here.rank}.json").write_text(json.dumps([odd, idle]))


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.skipif(not HEAVY, reason="heavy"))])
def test_evidence_of_several_processes_has_the_bits_of_one(world, tmp_path):
    launch(world, f"{HERE}:run_cases", tmp_path)
    for rank in range(world):
        odd, idle = json.loads((tmp_path / f"{rank}.json").read_text())
        assert odd == []
        if world == 2:
            bracketed = ["between two ends", "between two ends, by chains"]  # their importance sampling
            assert idle == ([] if rank else ["one row, of one piece", *bracketed, "gaps of one chunk"])
