"""What stands beside an exported function: interface.json for programs, README.md for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.environment import versions
from pyro_vae.runs import folder
from pyro_vae.runs.load import Run

from .card import CARD, environment
from .tensor_programs import LEADING, TensorProgram

TOLD = {
    "encode": "E[z | x], the mean of q(z | x).",
    "decode": "E[x | z], the mean of p(x | z).",
    "score": "The log weights log p(x, z) - log q(z | x), and log p(x) estimated by them, in nats.",
}
MEANING = {
    "x": "values in the order, the codes and the units of the data that the run was trained on; as a mean, NaN for classes",
    "z": "a code",
    "noise": "draws of N(0, 1), which are yours to make: other noise is another estimate",
    "log_w": "log p(x, z) - log q(z | x) of each particle, in nats; NaN where x is outside the support of the likelihood",
    "log_px": "the logarithm of the mean weight, in nats: a lower bound on log p(x) in expectation; NaN as log_w",
}


def described(
    run: Run, programs: Mapping[str, TensorProgram], missing: Mapping[str, str], ending: str
) -> dict[str, bytes]:
    """Write interface.json and README.md: names, shapes and units of what goes in and comes out, and what is left out."""
    about = interface_of(run, programs, missing, ending)
    page = environment().get_template("interface.md").render(**about, told=TOLD, name=run.path.name)
    return {folder.INTERFACE: folder.json_bytes(about, indent=1) + b"\n", CARD: page.encode()}


def interface_of(
    run: Run, programs: Mapping[str, TensorProgram], missing: Mapping[str, str], ending: str
) -> dict[str, Any]:
    """Return what interface.json holds."""
    data = run.record["data"]
    return {
        "format": ending,
        "programs": {name: signature(program, f"{name}.{ending}") for name, program in programs.items()},
        "left_out": dict(missing),
        "data": {
            "shape": list(run.shape),
            "columns": data.get("columns", []),
            "missing_values": "NaN" if run.config.missing else "refused",
            "binarization": run.config.binarization,
        },
        "weights": tensor_digest(run.vae.state_dict()),
        "versions": versions(),
    }


def signature(program: TensorProgram, file: str) -> dict[str, Any]:
    """Return file, inputs and outputs of a function of tensors, and what it was compared with the run's programs on."""
    takes, gives = (
        [
            {
                "name": name,
                "dtype": str(t.dtype).removeprefix("torch."),
                "shape": shape_of(name, t.shape),
                "is": MEANING[name],
            }
            for name, t in tensors.items()
        ]
        for tensors in (program.inputs, program.outputs)
    )
    checked_on = [on for on, _ in program.cases()]
    return {"file": file, "inputs": takes, "outputs": gives, "checked_on": checked_on}


def shape_of(name: str, shape: tuple[int, ...]) -> list[str | int]:
    """Return a shape with names in the place of what may have any size.

    Example:
        >>> shape_of("noise", (3, 5, 2))
        ['particles', 'rows', 2]
    """
    return [*LEADING[name], *shape[len(LEADING[name]) :]]
