"""The profile tool's reading of perf's and Python's output."""

import pytest

from benchmarks.profile_boot import (
    BRIDGE,
    ENGINE,
    GUEST,
    KERNEL,
    PYTHON,
    layer_of,
    module_of,
    module_seconds,
    parse_samples,
)

LISTING = """# Samples: 751  of event 'cpu-clock'
#      Samples|Shared Object      |Symbol
 162        |libunicorn.so.2      |[.] helper_check_exit_request_x86_64
 34         |[JIT] tid 16693      |[.] 0x00007f9637a00100
 26         |[JIT] tid 16693      |[.] 0x00007f9637a00112
 33         |libpython3.11.so.1.0 |[.] _PyEval_EvalFrameDefault

"""


@pytest.mark.parametrize(
    ("shared_object", "layer"),
    [
        ("libunicorn.so.2", ENGINE),
        ("[JIT] tid 16693", GUEST),
        ("//anon", GUEST),
        ("libpython3.11.so.1.0", PYTHON),
        ("python3.11", PYTHON),
        ("_ctypes.cpython-311-x86_64-linux-gnu.so", BRIDGE),
        ("libffi.so.8.1.2", BRIDGE),
        ("[kernel.kallsyms]", KERNEL),
        ("libc.so.6", "library libc.so.6"),
    ],
)
def test_layers(shared_object: str, layer: str) -> None:
    assert layer_of(shared_object) == layer


def test_samples_are_summed_by_layer_and_guest_addresses_are_no_symbols() -> None:
    layers, symbols = parse_samples(LISTING)
    assert layers == {ENGINE: 162, GUEST: 60, PYTHON: 33}
    assert symbols == {(ENGINE, "helper_check_exit_request_x86_64"): 162, (PYTHON, "_PyEval_EvalFrameDefault"): 33}


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("/home/u/xenolith/src/xenolith/hypervisor/hypercalls/mmu.py", "xenolith.hypervisor.hypercalls.mmu"),
        ("/v/lib/python3.11/site-packages/xenolith/cpu/unicorn.py", "xenolith.cpu.unicorn"),
        ("/work/src/xenolith/abi/__init__.py", "xenolith.abi"),
        ("/home/u/xenolith/.venv/lib/python3.11/site-packages/numpy/core/numeric.py", "(numpy)"),
        ("/usr/lib/python3.11/lzma.py", "(standard library)"),
        ("<frozen importlib._bootstrap>", "(imports)"),
        ("<string>", "(generated)"),
        ("~", "(built in)"),
    ],
)
def test_modules(path: str, module: str) -> None:
    assert module_of(path) == module


def test_the_engines_time_is_not_counted_as_pythons() -> None:
    functions = [
        ("/x/src/xenolith/cpu/unicorn.py", "run", 9.0),
        ("/x/src/xenolith/cpu/unicorn.py", "on_exit", 1.0),
        ("/x/src/xenolith/cpu/unicorn.py", "on_exception", 0.5),
    ]
    assert module_seconds(functions) == {"xenolith.cpu.unicorn": 1.5}
