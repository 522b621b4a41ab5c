"""A disk that fills up, and a machine without a network: for the calling process alone, in namespaces of its own."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

USER, FILES, NETWORK = 0x10000000, 0x00020000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET
linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


def skip_without(what):
    """Skip the test where the system gives nobody namespaces of these kinds, as options of ``unshare``."""
    if subprocess.run(["unshare", what, "true"], capture_output=True).returncode:
        pytest.skip(f"no namespaces here (unshare {what})")


def leave(kinds):
    """Leave the namespaces of these kinds for new ones, as root of them. Only a process of one thread can."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(USER | kinds):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"0 {user} 1")
    (own / "gid_map").write_text(f"0 {group} 1")


def mount_small_disk(folder, size):
    """Give this process a disk of `size` at a folder, which others do not see."""
    leave(FILES)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
