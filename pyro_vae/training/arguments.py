"""The arguments of `fit`: converted where they leave one meaning, refused in words otherwise, before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pyro.infer import ELBO, SVI, Trace_ELBO

from pyro_vae.common.given import described
from pyro_vae.errors import UsageError
from pyro_vae.objectives.analytic_kl import analytic_kl
from pyro_vae.objectives.bounds import ciwae, elbo, iwae, miwae, piwae, renyi, tvo
from pyro_vae.objectives.gradient_estimators import dreg, gdreg, pathwise, rws, stl, vimco
from pyro_vae.objectives.jackknife import jackknife

from .aggressive_inference import Aggressive

OBJECTIVES = "a pyro.infer.ELBO, such as Trace_ELBO() or Bound(iwae, num_particles=8)"


def objective_of(given: Any) -> Any:
    """Return the objective that was meant: Trace_ELBO() by default, an instance of a class that needs no options.

    Raises:
        UsageError: a bound, an estimator, their names, an SVI, or anything without ``loss_and_grads``; says how to give it.
    """
    if given is None:
        return Trace_ELBO()
    if isinstance(given, type) and issubclass(given, ELBO):
        return instance_of(given)
    if isinstance(given, SVI):
        raise UsageError(
            f"objective is an SVI: fit makes the steps itself. Give {OBJECTIVES}, and its optimizer as optimizer=."
        )
    if name := bound_name(given):
        groups = ", num_groups=8" if name in ("miwae", "piwae") else ""
        fix = f"objective=Bound({name}, num_particles=8{groups})"
        raise UsageError(f"objective={name} is a bound on each row, not an objective: {fix}")
    if name := estimator_name(given):
        raise UsageError(
            f"objective={name} is a gradient estimator: objective=Bound(iwae, num_particles=8, estimator={name})"
        )
    if isinstance(given, type) or not callable(getattr(given, "loss_and_grads", None)):
        raise UsageError(f"objective must be {OBJECTIVES}; got {described(given)}")
    return given


def instance_of(objective: type[ELBO]) -> ELBO:
    """Make an objective of a class by its defaults."""
    try:
        return objective()
    except TypeError as error:
        raise UsageError(
            f"objective is the class {objective.__name__}, which needs options: {error}. Make it first."
        ) from error


FUNCTIONS = {bound.__name__: bound for bound in (elbo, iwae, miwae, piwae)}
CLASSES = {"ciwae": ciwae, "renyi": renyi, "tvo": tvo, "jackknife": jackknife}  # of bounds with options
ESTIMATORS = {repr(estimator): estimator for estimator in (pathwise, stl, dreg, gdreg, vimco, rws, analytic_kl)}


def bound_name(given: Any) -> str:
    """Write a bound that was given itself or by name as code; "" for anything else."""
    for name, cls in CLASSES.items():
        if given is cls or isinstance(given, cls) or (isinstance(given, str) and given == name):
            return f"{name}(...)"
    return next((n for n, bound in FUNCTIONS.items() if given is bound or (isinstance(given, str) and given == n)), "")


def estimator_name(given: Any) -> str:
    """Name a gradient estimator, given itself or by name; "" for anything else."""
    return next((n for n, e in ESTIMATORS.items() if given is e or (isinstance(given, str) and given == n)), "")


def check_flags(**flags: Any) -> None:
    """Refuse anything but True and False."""
    for name, given in flags.items():
        if not isinstance(given, int) or given not in (0, 1):
            raise UsageError(f"{name} must be True or False, got {described(given)}")


CALLED_WITH = {"transform": ("x_batch", "generator"), "on_step": ("done",), "on_epoch": ("record",)}


def check_functions(**functions: Any) -> None:
    """Refuse what cannot be called with the arguments that it will get, None aside."""
    for name, given in functions.items():
        if given is None:
            continue
        if not callable(given):
            raise UsageError(f"{name} must be a function, got {described(given)}")
        try:
            inspect.signature(given).bind(*CALLED_WITH[name])
        except TypeError as error:
            raise UsageError(
                f"{name} is called as {name}({', '.join(CALLED_WITH[name])}), and the one given: {error}"
            ) from error
        except ValueError:  # a function of C without a signature
            continue


def check_validation(given: Any) -> None:
    """Refuse an empty tuple; what its parts are is for the conversion of data to say."""
    if isinstance(given, tuple) and not given:
        raise UsageError("validation is an empty tuple: give x to validate on, a tuple (x, *context), or None")


def check_schedule(given: Any) -> None:
    """Refuse what is no function of the fraction of training done that returns a number."""
    wanted = "schedule takes a function of the fraction of training done, such as cosine or warmup(cosine)"
    if not callable(given) or isinstance(given, type):
        rate = f", and a learning rate goes into optimizer=adam(lr={given!r})" if isinstance(given, float) else ""
        raise UsageError(f"{wanted}{rate}; got {described(given)}")
    try:
        float(given(1.0))
    except TypeError as error:
        name = getattr(given, "__name__", type(given).__name__)
        raise UsageError(f"{wanted}; {name} gives no number for 1.0: if it makes a schedule, call it first") from error


def check_choices(engine: Any, precision: Any, device: Any, aggressive: Any, resume: Any) -> None:
    """Refuse values of types that none of these takes."""
    for name, given in (("engine", engine), ("precision", precision)):
        if not isinstance(given, str):
            raise UsageError(f"{name} must be a name, got {described(given)}")
    if not isinstance(device, str | torch.device | None):
        raise UsageError(f"device must be a name such as 'cuda', or a torch.device, got {described(device)}")
    if not isinstance(aggressive, Aggressive | None):
        raise UsageError(
            f"aggressive must be an Aggressive, as in aggressive=Aggressive(), got {described(aggressive)}"
        )
    if resume is not None and not all(hasattr(resume, name) for name in ("head", "groups")):
        raise UsageError(
            f"resume must be a saved state, as in resume=Checkpointer(folder).newest(), got {described(resume)}"
        )


def check_pair_of(vae: Any) -> None:
    """Refuse a class in the place of its instance, whose model and guide would lack their `self`."""
    for thing in vae if isinstance(vae, tuple) else (vae,):
        if isinstance(thing, type):
            raise UsageError(
                f"wanted a VAE, or a tuple (model, guide), and got the class {thing.__name__}: make one first"
            )
