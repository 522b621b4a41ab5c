"""Functions of tensors as graphs of torch.export, of any number of rows and particles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from pyro_vae.common.plain_text import plain
from pyro_vae.programs.pair import quiet
from pyro_vae.runs.load import Run

from .tensor_programs import LEADING, NoFormError, TensorProgram, tensor_programs

SHIFT = 10  # Stirling's series is right to 1e-16 from here on
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack")  # of the source on this machine
OPERATION = re.compile(r"torch\.ops\.aten\.(\w+)")


def graph_of(program: TensorProgram) -> ExportedProgram:
    """Trace a function of tensors, and check that the graph gives what the run's programs give."""
    inputs = tuple(program.inputs.values())
    shapes = tuple(dict.fromkeys(range(len(LEADING[name])), Dim.DYNAMIC) for name in program.inputs)
    with quiet(program.module, seed=0):
        graph = torch.export.export(program.module, inputs, dynamic_shapes=shapes, strict=False)
        for part in graph.graph_module.modules():  # with the graphs within the graph
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                for place in PLACES:
                    node.meta.pop(place, None)
        traced = graph.module()
        for on, case in program.cases():
            given = traced(*case.inputs.values())
            values = given if isinstance(given, tuple) else (given,)
            case.check(dict(zip(case.outputs, values, strict=True)), f"in its graph, on {on},")
    graph.example_inputs = None  # which would be saved as a pickle
    return graph


def forms_of(run: Run, form: Callable[[str, TensorProgram], Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Make a form of encode, decode and score; return those that there are, and why there are no others, by name.

    Raises:
        NoFormError: there is none of the three.
    """
    made, missing, config = dict[str, Any](), dict[str, str](), run.config.to_dict()
    for name, make in tensor_programs(run):
        roles = {"encode": ("posterior",), "decode": ("likelihood",)}.get(name, ("prior", "likelihood", "posterior"))
        try:
            made[name] = form(name, make())
        except (MemoryError, OSError):
            raise
        except Exception as error:  # torch and onnx raise of all kinds where they have no form of an operation
            parts = ", ".join(f"{role} {config[role]!r}" for role in roles)
            missing[name] = f"{parts}: {reason_of(error)}"
    if not made:
        raise NoFormError(
            f"{run.path} has no such form: " + "; ".join(f"{name}: {why}" for name, why in missing.items())
        )
    return made, missing


def reason_of(error: BaseException) -> str:
    """Say in a line why there is no form: the operation that has none, if one is named."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    named = next((found[1] for one in chain if (found := OPERATION.search(str(one)))), None)
    if named is not None and not isinstance(error, NoFormError):
        return f"the operation {named} has no such form"
    return plain(str(error).strip().partition("\n")[0])[:200] or type(error).__name__


def log_gamma(x: Tensor) -> Tensor:
    r"""log Γ(x) for x > 0 by Stirling's series at x + 10, in float64: a table entry for formats that have no log-gamma.

    Example:
        >>> x = torch.tensor([1e-3, 0.5, 1.0, 2.0, 30.0, 1e5], dtype=torch.float64)
        >>> bool(torch.allclose(log_gamma(x), x.lgamma(), rtol=1e-13, atol=1e-13))
        True
    """
    y = x.double()
    product = y
    for step in range(1, SHIFT):
        product = product * (y + step)  # Γ(y + 10) / Γ(y)
    w = y + SHIFT
    series = torch.full_like(w, STIRLING[-1])
    for coefficient in reversed(STIRLING[:-1]):
        series = series / (w * w) + coefficient
    stirling = (w - 0.5) * w.log() - w + 0.5 * math.log(2 * math.pi) + series / w
    return (stirling - product.log()).to(x.dtype)


def solve_lower(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """Solve a X = b for a lower triangular a, row by row."""
    if upper or not left or unitriangular:
        raise NotImplementedError("torch.ops.aten.linalg_solve_triangular")
    rows: list[Tensor] = []
    for i in range(a.shape[-1]):
        known = sum((a[..., i, j, None] * row for j, row in enumerate(rows)), torch.zeros_like(b[..., i, :]))
        rows.append((b[..., i, :] - known) / a[..., i, i, None])
    return torch.stack(rows, -2)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^βx) / β, in float64: onnxruntime has it in float32 alone.

    Example:
        >>> x = torch.tensor([-30.0, -1.0, 0.0, 30.0])
        >>> bool(torch.allclose(softplus(x), torch.nn.functional.softplus(x), rtol=1e-6, atol=1e-16))
        True
    """
    y = beta * x.double()
    return ((y.relu() + (1 + (-y.abs()).exp()).log()) / beta).to(x.dtype)


SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.lgamma.default: log_gamma,
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.linalg_solve_triangular.default: solve_lower,
}
