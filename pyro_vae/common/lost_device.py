"""A device that fails while something runs on it: tell that apart from other errors, and raise one error for it."""

from __future__ import annotations

from pyro_vae.errors import DeviceLostError, PyroVAEError

BEGINS = ("CUDA error:", "HIP error:")  # torch's messages
# those after which a process must end, by CUDA's own list of errors (cudaError); others leave the device as it was
STICKY = (
    "unspecified launch failure",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "address space",
    "invalid program counter",
    "hardware stack error",
    "device-side assert",
    "launch timed out",
    "uncorrectable",
    "peer GPU memory",
    "busy or unavailable",
    "unknown error",
)
CAUSE = (
    "What failed may have begun earlier, as a GPU runs behind the program: with CUDA_LAUNCH_BLOCKING=1 in the environment the "
    "error is where it begins"
)


def is_lost(error: BaseException) -> bool:
    """Return whether a device failed, so that whatever asks it next fails, too.

    References:
        CUDA Runtime API, error handling (NVIDIA), https://docs.nvidia.com/cuda/cuda-runtime-api/

    Example:
        >>> import torch
        >>> is_lost(RuntimeError("CUDA error: unspecified launch failure"))
        True
        >>> is_lost(RuntimeError("CUDA error: invalid device ordinal")), is_lost(torch.OutOfMemoryError("CUDA out of memory"))
        (False, False)
    """
    if isinstance(error, DeviceLostError):
        return True
    if isinstance(error, PyroVAEError) or not isinstance(error, RuntimeError):
        return False
    first = (str(error).strip().splitlines() or [""])[0]
    return first.startswith(BEGINS) and any(words in first for words in STICKY)


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
