"""Replay the step at which a run diverged, from its folder ``divergence``, which holds data only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.common.device import resolve_device
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.processes import Processes
from pyro_vae.common.random import seeded
from pyro_vae.common.safe_read import LIMIT, check_seal, layout_of, parse, parse_json, read_bytes
from pyro_vae.errors import DivergedError, RunFolderError
from pyro_vae.training.divergence import bad_site_of_step
from pyro_vae.training.optimizers import adam
from pyro_vae.training.shards import Shards
from pyro_vae.training.step import Step
from pyro_vae.training.training_state import load_noise_states

from . import folder
from .build_limits import bounded_build
from .config import Config
from .custom_components import NOTHING, Components
from .load import FAULTS, row_shape
from .registry import build, check_names, objective_of, resolved
from .training_job import as_trained
from .weights import check_layout


def replay_step(path: Path | str, components: Components = NOTHING, device: str = "cpu") -> str:
    """Run the step again at which a run diverged; return a report of then and now.

    Raises:
        RunFolderError: no such step, or a damaged one.
    """
    path, torch_device = Path(path), resolve_device(device)
    record = folder.read_config(path)
    check_seal(record, path / "config.json")
    check_names(components)
    with no_links_below(path):
        head, groups = read_capsule(path / folder.DIVERGENCE)
    try:
        config = resolved(Config.of_run(record["config"]), components)
        with seeded(0), bounded_build(layout_of(groups["model"])):
            vae = build(config, row_shape(record), components=components)
        objective = objective_of(config, record["data"]["rows"]["train"])
        tensors = dict(vae.named_parameters(remove_duplicate=False)) | dict(vae.named_buffers(remove_duplicate=False))
        check_layout(layout_of(groups["model"]), layout_of(tensors), path / folder.DIVERGENCE)
        for name, tensor in tensors.items():
            tensor.data.copy_(groups["model"][name])
        vae.to(torch_device)
        batch = tuple(groups["batch"][str(i)].to(torch_device) for i in range(len(groups["batch"])))
        for moved in objective.scheduled:
            moved.at(float(head["done"]))
        step = Step(*as_trained(config, objective.pair(vae), batch), objective.elbo, adam(0.0))
        if (count := int(head.get("shards", 1))) > 1:
            step.shards = Shards(count, int(head["seed"]), Processes(), (int(head["epoch"]), int(head["step"]) - 1))
        return replay(step, batch, groups["rng"], head)
    except FAULTS as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"{path / folder.DIVERGENCE} cannot be replayed: {error!r}") from error


def replay(step: Step, batch: tuple[Tensor, ...], noise: dict[str, Tensor], head: dict[str, Any]) -> str:
    """Run a step under the noise of then, and report it."""
    device = batch[0].device
    with seeded(0, device=device):
        load_noise_states(noise, device)
        site = bad_site_of_step(step, batch)
        load_noise_states(noise, device)  # once more: the search for the site has drawn
        try:
            loss = step.loss_and_grads(*batch)
            step.update(0.0)
            now, verdict = f"the loss is {loss:.6g}, and the gradients are finite", "not reproduced"
        except DivergedError as error:
            now, verdict = str(error), "reproduced"
    rows, site = ", ".join(map(str, head["rows"][:20])), site or head["site"] or "all finite"
    return f"then: {head['said']}\nnow:  {now}\nrows: {rows}\nsite: {site}\n{verdict}"


def read_capsule(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read what :meth:`~pyro_vae.runs.checkpointer.Checkpointer.on_failed_step` wrote."""
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
