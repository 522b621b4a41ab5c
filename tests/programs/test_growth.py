"""A process that lives long: nothing of a model that is gone stays, nor files, threads, hooks or parameters in the store."""

import functools
import gc
import logging
import sys
import threading
from types import ModuleType, SimpleNamespace

import pyro
import pytest
import torch

from pyro_vae import check, fit, fit_ensemble, log_likelihood
from pyro_vae.common import torch_private
from pyro_vae.programs import parameters
from pyro_vae.programs.parameters import register, store_restored
from tests.helpers.environment import HEAVY
from tests.helpers.growth import grown, held, objects, resident
from tests.helpers.small import binary, small_vae

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(7200 if HEAVY else 600)]
FITS, STEPS = (2000, 5000) if HEAVY else (4, 32)
SAMPLES = "rich.progress.ProgressSample"  # of a progress bar, a thousand at most
LAST = (
    "torch._dynamo.utils.CompilationMetrics",
    "builtins.dict",
)  # torch keeps those of 64 compilations, a dict in each
X = binary(20)


@pytest.fixture(autouse=True, scope="module")
def counted_from_here():
    """What other files' tests left in this process is not counted again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_log_kept(monkeypatch):
    """What torch logs of each compilation; pytest keeps it to the end of a test."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


def fitted(engine):
    fit(small_vae(seed=0), X, epochs=1, batch_size=10, engine=engine, verbose=False)


def evaluated(engine):
    vae = small_vae(seed=0)
    log_likelihood(vae.model, vae.guide, X, num_samples=20, engine=engine, verbose=False)


def ensemble(engine):
    fit_ensemble(lambda seed: small_vae(seed=seed), X, seeds=[0, 1], epochs=1, engine=engine, verbose=False)


def checked(engine):
    vae = small_vae(seed=0)
    check(vae.model, vae.guide, X)


CASES = {
    "eager fit": (fitted, "eager"),
    "traced fit": (fitted, "trace"),
    "eager evaluation": (evaluated, "eager"),
    "traced evaluation": (evaluated, "trace"),
    "check": (checked, ""),
    **({"traced ensemble": (ensemble, "trace"), "compiled fit": (fitted, "compile")} if HEAVY else {}),
}


@pytest.mark.parametrize("case", CASES)
def test_many_models_leave_nothing_behind(case):
    """No class gains an object a model in each of two rounds (once is a cache); 1 % of memory over two thousand fits."""
    use, engine = CASES[case]
    count = FITS // 2 if use is fitted else max(3, FITS // 40)
    count = min(count, 10) if engine == "compile" else count  # each takes ten seconds or more

    def one_round():
        before, kept = objects(), held()
        for _ in range(count):
            use(engine)
        assert held() == kept
        more = grown(before, objects(), per=count - 1 if count < 20 else count // 4)
        return {name: n for name, n in more if not (engine == "compile" and name in LAST and n <= count)}

    for _ in range(20 if HEAVY else 1):
        use(engine)
    memory, rounds = resident(), [one_round(), one_round()]
    assert rounds[0].keys() & rounds[1].keys() == set(), rounds
    assert not HEAVY or resident() <= 1.01 * memory + 8, (resident(), memory)


@pytest.mark.parametrize("engine", ["eager", "trace", *(["compile"] if HEAVY else [])])
def test_many_steps_of_one_model_leave_nothing_behind(engine):
    """Counted after the first epoch and after the last."""
    counts, vae = [], small_vae(seed=0)

    def count(record):
        if record["epoch"] in (2, STEPS // 2):
            counts.append((objects(), held(), resident()))

    fit(vae, X, epochs=STEPS // 2, batch_size=10, engine=engine, on_epoch=count, verbose=False)
    (before, kept, memory), (after, now, more) = counts
    assert now == kept
    records = STEPS // 2  # one of an epoch, with its lists, is the history that is asked for
    assert [
        (name, n)
        for name, n in grown(before, after, per=STEPS // 4)
        if name not in ("builtins.list", "builtins.dict", SAMPLES)
    ] == []
    assert sum(n for _, n in grown(before, after)) < 8 * records
    assert not HEAVY or more <= 1.01 * memory + 8


def test_a_compilation_leaves_its_module_and_what_its_classes_cached_to_nobody(monkeypatch):
    """Stand-ins for torch's: modules that were there before, and those of kernels, stay."""

    class Cached:
        @functools.lru_cache  # noqa: B019
        def of(self):
            return 1

    before, kernel, graph = map(ModuleType, ("before", "kernel", "graph_of_a_model"))
    written = SimpleNamespace(modules=[before], modules_no_attr={}, linemaps={})
    monkeypatch.setattr(torch_private, "find", lambda name: written if name == torch_private.WRITTEN else Cached)
    with pytest.raises(RuntimeError, match="gave up"), torch_private.without_leftovers():
        Cached().of()
        for module in (kernel, graph):
            module.__file__ = module.__name__
            written.modules.append(module)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            written.linemaps[module.__file__] = []
        written.modules_no_attr["kernel"] = kernel
        raise RuntimeError("gave up")
    assert written.modules == [before, kernel] and list(written.linemaps) == ["kernel"]
    assert "kernel" in sys.modules and "graph_of_a_model" not in sys.modules
    assert Cached.of.cache_info().currsize == 0


def dead_after(swap):
    """A module dies, in a cycle, inside a swap of the store; how many of its parameters are left once that is over."""
    gc.collect()
    gc.disable()
    try:
        before = set(pyro.get_param_store())
        vae = small_vae()
        register(vae)
        name = next(iter(set(pyro.get_param_store()) - before)).partition("$$$")[0]
        vae.itself = [vae]
        with swap():
            del vae
            gc.collect()
    finally:
        gc.enable()
    return [key for key in pyro.get_param_store() if key.startswith(f"{name}$$$")]


def test_a_module_that_is_collected_while_the_store_is_swapped_leaves_no_parameters():
    assert dead_after(store_restored) == []


def test_one_collected_in_a_scope_of_the_users_is_gone_with_the_next_module_or_check():
    for then in (lambda: register(torch.nn.Linear(1, 1)), lambda: checked("")):
        before = set(pyro.get_param_store())
        assert len(dead_after(lambda: pyro.get_param_store().scope(pyro.get_param_store().get_state()))) > 0
        then()
        left = {key for key in set(pyro.get_param_store()) - before if key.startswith("VAE.")}
        assert left == set()


def test_what_was_loaded_under_such_a_name_is_not_taken_for_a_dead_modules():
    store = pyro.get_param_store()
    with store.scope({"params": {"VAE.99999$$$w": torch.ones(1)}, "constraints": {}}):
        parameters.forget_dead()
        assert list(store) == ["VAE.99999$$$w"]


def test_a_collection_in_the_middle_of_a_look_through_the_store_is_waited_out(monkeypatch):
    """The dictionary changed its size during the look: a traceback of `fit` before."""
    real, raised = pyro.get_param_store().named_parameters, []

    def changing():
        if not raised:
            raised.append(1)
            raise RuntimeError("dictionary changed size during iteration")
        return real()

    monkeypatch.setattr(type(pyro.get_param_store()), "named_parameters", lambda self: changing())
    assert isinstance(parameters.stored_parameters(), list) and raised


def test_the_counts_see_what_stays():
    """The broken variants: an object, a hook, a thread and a handler that are kept."""
    before, kept = objects(), held()
    stays, hook = [small_vae() for _ in range(3)], torch.nn.modules.module.register_module_forward_pre_hook(print)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    found = dict(grown(before, objects()))
    assert found["pyro_vae.models.vae.VAE"] == len(stays)
    now = held()
    assert now["threads"] == kept["threads"] + 1 and now["hooks of all modules"] == kept["hooks of all modules"] + 1
    hook.remove()
    stop.set()
    thread.join()
