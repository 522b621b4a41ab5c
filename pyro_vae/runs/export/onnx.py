"""A run as ONNX: encode, decode and score, which onnxruntime and others compute without Python or torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_vae.common.atomic_write import publish
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.optional import imported
from pyro_vae.runs.custom_components import NOTHING, Components
from pyro_vae.runs.load import load_run

from .graphs import SUBSTITUTES, forms_of, graph_of
from .interface import described
from .new_folder import check_new
from .tensor_programs import FEW, TensorProgram

EXTRA, WHO = "onnx", "export --onnx"
FILE = "{name}.onnx"


@suggest_keywords
def export_onnx(path: Path | str, to: Path | str, *, components: Components = NOTHING) -> Path:
    """Write encode.onnx, decode.onnx, score.onnx, and what they take and give, into a new folder; return where it is.

    Each was computed by onnxruntime before it is written, and gave the numbers of the run's own programs to 1e-5 (of
    themselves; of 1, where they are smaller) on rows that the model draws. What has no form in ONNX is left out, and
    interface.json and README.md say why.

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
    run, target = load_run(Path(path), components), check_new(Path(to))
    made, missing = forms_of(run, lambda name, program: (program, onnx_bytes(program)))
    programs = {name: program for name, (program, _) in made.items()}
    files = {FILE.format(name=name): content for name, (_, content) in made.items()}
    publish(target, files | described(run, programs, missing, "onnx"))
    return Path(to)


def onnx_bytes(program: TensorProgram) -> bytes:
    """Translate a function of tensors, and check what onnxruntime makes of it: the example, fewer rows, a single one."""
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
    for rows in (FEW, 2, 1):
        few = program.of_rows(rows)
        values = session.run(list(few.outputs), {name: value.numpy() for name, value in few.inputs.items()})
        few.check(dict(zip(few.outputs, map(torch.as_tensor, values), strict=True)), "in onnxruntime")
    return content
