"""The command `pyro-vae export`: a finished run in a form that another program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pyro_vae.common.plain_text import plain
from pyro_vae.errors import UsageError
from pyro_vae.runs.export.hub import export_hub
from pyro_vae.runs.export.onnx import export_onnx
from pyro_vae.runs.export.tensorboard import export_tensorboard
from pyro_vae.runs.export.torch_archive import export_torch

from .commands import RunFolder, app

FORMS = {"tensorboard": export_tensorboard, "hub": export_hub, "onnx": export_onnx, "torch": export_torch}


@app.command
def export(
    run: RunFolder,
    to: Annotated[Path, Parameter(help="Folder to make.")],
    /,
    *,
    tensorboard: Annotated[
        bool, Parameter(negative=(), help="For TensorBoard (extra tensorboard): epochs, log p(x), pictures.")
    ] = False,
    hub: Annotated[
        bool, Parameter(negative=(), help="For the Hugging Face hub: card, weights, config, evidence.")
    ] = False,
    onnx: Annotated[
        bool, Parameter(negative=(), help="encode, decode and score for onnxruntime and others (extra onnx).")
    ] = False,
    torch: Annotated[
        bool, Parameter(negative=(), help="encode, decode and score as graphs of torch.export, without a pickle.")
    ] = False,
) -> None:
    """Writes a run as a folder for another program. Nothing is uploaded."""
    given = {"tensorboard": tensorboard, "hub": hub, "onnx": onnx, "torch": torch}
    asked = [name for name, wanted in given.items() if wanted]
    if len(asked) != 1:
        raise UsageError(f"say one form to export to: {' or '.join(f'--{name}' for name in FORMS)}")
    print(plain(FORMS[asked[0]](run, to)))
