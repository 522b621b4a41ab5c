"""The step at which a run diverged, once more: from its capsule, which holds data only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.common.device import resolve_device
from pyro_vae.common.random import seeded
from pyro_vae.common.safe_read import LIMIT, check_seal, layout_of, parse, parse_json, read_bytes
from pyro_vae.errors import DivergedError, RunFolderError
from pyro_vae.training.divergence import bad_site
from pyro_vae.training.step import Step, adam
from pyro_vae.training.training_state import load_noise_states

from . import folder
from .build_limits import bounded_build
from .config import Config
from .custom_components import NOTHING, Components
from .load import FAULTS
from .registry import build, check_names, objective_of, resolved
from .weights import check_layout


def replay_step(path: Path | str, components: Components = NOTHING, device: str = "cpu") -> str:
    """Runs the step of a run's capsule again, and says what came of it.

    Raises:
        RunFolderError: no capsule, or a damaged one.
    """
    path, place = Path(path), resolve_device(device)
    record = folder.read_config(path)
    check_seal(record, path / "config.json")
    check_names(components)
    head, groups = read_capsule(path / folder.DIVERGENCE)
    try:
        config = resolved(Config.from_dict(record["config"]), components)
        with seeded(0), bounded_build(layout_of(groups["model"])):
            vae = build(config, tuple(record["data"]["shape"]), components=components)
        objective = objective_of(config, record["data"]["rows"]["train"])
        tensors = dict(vae.named_parameters(remove_duplicate=False)) | dict(vae.named_buffers(remove_duplicate=False))
        check_layout(layout_of(groups["model"]), layout_of(tensors), path / folder.DIVERGENCE)
        for name, tensor in tensors.items():
            tensor.data.copy_(groups["model"][name])
        vae.to(place)
        batch = tuple(groups["batch"][str(i)].to(place) for i in range(len(groups["batch"])))
        for moved in objective.scheduled:
            moved.at(float(head["done"]))
        step = Step(*objective.pair(vae), objective.elbo, adam(0.0))
        return replayed(step, batch, groups["rng"], head, place)
    except FAULTS as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"{path / folder.DIVERGENCE} cannot be replayed: {error!r}") from error


def replayed(step: Step, batch: Any, states: Any, head: dict[str, Any], place: Any) -> str:
    """What the step came to, beside what it came to then."""
    with seeded(0, device=place):
        load_noise_states(states, place)
        site = bad_site(step.model, step.guide, batch)
    with seeded(0, device=place):
        load_noise_states(states, place)
        try:
            loss = step.loss_and_grads(*batch)
            step.update(0.0)
            now, same = f"the loss is {loss:.6g}, and the gradients are finite", False
        except DivergedError as error:
            now, same = str(error), True
    lines = (
        f"then: {head['said']}",
        f"now:  {now}",
        f"rows: {', '.join(map(str, head['rows'][:20]))}",
        f"site: {site or head['site'] or 'all finite'}",
        "reproduced" if same else "not reproduced",
    )
    return "\n".join(lines)


def read_capsule(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What :meth:`Checkpointer.on_failed_step <pyro_vae.runs.checkpointer.Checkpointer.on_failed_step>` wrote."""
    if not path.is_dir() or path.is_symlink():
        raise RunFolderError(f"there is no {path}: the run has not diverged, or went on since")
    file = path / "capsule.safetensors"
    head = parse_json(read_bytes(path / "capsule.json"), path / "capsule.json")
    if not isinstance(head, dict) or head.get("schema") != 1:
        raise RunFolderError(f"{path / 'capsule.json'} is no capsule of this version")
    check_seal(head, path / "capsule.json")
    groups: dict[str, dict[str, Any]] = {"model": {}, "rng": {}, "batch": {}}
    for name, tensor in parse(read_bytes(file, LIMIT), file).items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    return head, groups
