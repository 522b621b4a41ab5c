"""A run as ONNX: encode, decode and score, which onnxruntime and others compute without Python or torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.optional import imported
from pyro_vae.runs.custom_components import NOTHING, Components

from .graphs import SUBSTITUTES, graph_of
from .tensor_programs import TensorProgram
from .written_graphs import write_graphs

EXTRA, WHO = "onnx", "export --onnx"


@suggest_keywords
def export_onnx(path: Path | str, to: Path | str, *, components: Components = NOTHING) -> Path:
    """Write encode.onnx, decode.onnx, score.onnx, and what they take and give, into a new folder; return where it is.

    Each was computed by onnxruntime before it is written, and gave the numbers of the run's own programs to 1e-5 (of
    themselves; of 1, where they are smaller) on 1 to 13 rows that the model draws, 1 to 13 particles, and rows at the edges of
    what it draws, which interface.json lists. What has no form in ONNX is left out, and interface.json and README.md say why.

    Args:
        path: the run.
        to: folder to make.
        components: parts of one's own, as :func:`~pyro_vae.load_run` takes them.

    Raises:
        UsageError: a model of another kind than the VAE, or none of the three has a form in ONNX.
        RunFolderError: no run, or a damaged one; `to` holds something.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        StorageError: it cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        imported(package, EXTRA, WHO)
    return write_graphs(Path(path), Path(to), components, onnx_bytes, "onnx")


def onnx_bytes(program: TensorProgram) -> bytes:
    """Translate a function of tensors, and check what onnxruntime makes of it: on rows and particles of several numbers."""
    graph = graph_of(program).run_decompositions(SUBSTITUTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own translation, about its own libraries
        translated: Any = torch.onnx.export(
            graph, dynamo=True, verbose=False, input_names=list(program.inputs), output_names=list(program.outputs)
        )
    for node in translated.model.graph:
        node.metadata_props.clear()  # where in the source of this machine it came from
    content: bytes = translated.model_proto.SerializeToString()
    session = imported("onnxruntime", EXTRA, WHO).InferenceSession(content, providers=["CPUExecutionProvider"])
    for on, case in program.cases():
        values = session.run(list(case.outputs), {name: value.numpy() for name, value in case.inputs.items()})
        case.check(dict(zip(case.outputs, map(torch.as_tensor, values), strict=True)), f"in onnxruntime, on {on},")
    return content
