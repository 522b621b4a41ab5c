"""A device that fails while something runs on it: tell that apart from other errors, and raise one error for it."""

from __future__ import annotations

import torch

from pyro_vae.errors import DeviceLostError, PyroVAEError

WORDS = ("CUDA error:", "HIP error:")  # how torch's messages begin; those of libraries of CUDA have other words
FULL = "out of memory"
CAUSE = (
    "What failed may have begun earlier, as a GPU runs behind the program: with CUDA_LAUNCH_BLOCKING=1 in the environment the "
    "error is where it begins"
)


def is_lost(error: BaseException) -> bool:
    """Return whether a device failed, so that whatever asks it next fails, too.

    Example:
        >>> is_lost(RuntimeError("CUDA error: unspecified launch failure"))
        True
        >>> is_lost(torch.OutOfMemoryError("CUDA error: out of memory")), is_lost(RuntimeError("shapes do not fit"))
        (False, False)
    """
    if isinstance(error, DeviceLostError):
        return True
    if isinstance(error, PyroVAEError) or not isinstance(error, RuntimeError) or FULL in str(error):
        return False
    # torch 2.8 has a class of its own for errors of an accelerator
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or str(error).lstrip().startswith(WORDS)


def lost(error: Exception, what: str) -> DeviceLostError:
    """Return one error for a device that failed, or `error` if it is that already.

    Args:
        error: as torch raised it.
        what: ran then, such as ``"step 12: a batch of 500 rows on cuda:0"``.

    Example:
        >>> lost(RuntimeError("CUDA error: unspecified launch failure\\nmore"), "step 3 on cuda:0")
        DeviceLostError('step 3 on cuda:0: the device failed, and answers no more (CUDA error: unspecified launch failure)...
    """
    if isinstance(error, DeviceLostError):
        return error
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DeviceLostError(
        f"{what}: the device failed, and answers no more ({reason}). Start a new process. {CAUSE}.",
    )
