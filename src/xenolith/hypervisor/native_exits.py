"""The native helper, which handles the commonest exits without Python (exits.c): finding it, and giving it its state.

It is compiled when Xenolith is installed, if there is a C compiler. Without it everything works as well, more slowly.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenolith.cpu import kvm_loop
from xenolith.cpu.compiled import Compiled, load
from xenolith.cpu.shortcuts import STATE_FIELDS, Shortcuts
from xenolith.hypervisor.shared_state import LAYOUT

if TYPE_CHECKING:
    from xenolith.hypervisor.machine import Hypervisor

_HERE: Final = Path(__file__).parent
COMPILED: Final = Compiled(
    _HERE / "exits.so",
    (
        *(_HERE / name for name in ("exits.c", "tables.c", "machine.h")),
        *(_HERE.parent / "cpu" / name for name in ("kvm_loop.c", "processor.h")),
    ),
)
_FUNCTIONS: Final = ("syscall", "exception", "syscall_done", "exception_done", "kvm_run")
"""Of the library, as `Shortcuts` calls them."""


@cache
def library() -> ctypes.CDLL | None:
    """The helper, if it agrees with us on every structure."""
    library = load(COMPILED)
    return library if library is not None and _numbers(library, "xenolith_layout", len(LAYOUT)) == LAYOUT else None


def _numbers(library: ctypes.CDLL, name: str, count: int) -> tuple[int, ...]:
    return tuple((ctypes.c_uint32 * count).in_dll(library, name))


def shortcuts(hv: Hypervisor) -> Shortcuts | None:
    """The helper's functions, working on the state of `hv`, for its engine to call. None where there is no helper."""
    helper, state, frames = library(), hv.state, hv.frames
    if helper is None or COMPILED.missing() is not None:
        return None
    state.ram, state.ram_size = hv.ram.host_address, frames.total << 12
    state.frame_owners, state.frame_counts = frames.owners.ctypes.data, frames.counts.ctypes.data
    state.frame_types, state.frame_type_counts = frames.types.ctypes.data, frames.type_counts.ctypes.data
    state.frame_flags, state.frame_stale_epochs = frames.all_flags.ctypes.data, frames.stale_epochs.ctypes.data
    state.epoch = ctypes.addressof(frames.epoch_counter)
    functions = {name: ctypes.cast(helper[f"xenolith_{name}"], ctypes.c_void_p).value or 0 for name in _FUNCTIONS}
    state_layout = _numbers(helper, "xenolith_state_layout", len(STATE_FIELDS))
    kvm_layout = _numbers(helper, "xenolith_kvm_layout", len(kvm_loop.LAYOUT))
    return Shortcuts(
        state.processor,
        context=ctypes.addressof(state),
        state_layout=state_layout,
        kvm_layout=kvm_layout,
        **functions,
    )
