"""A few thousand random hypercalls, and random code; `python -m tests.guest.fuzzing SECONDS` makes more."""

from __future__ import annotations

import random
from typing import Final

import pytest

from tests.guest.fuzzing import Fuzzer
from tests.guest.pvguest import PAGE, PRESENT, RW, USER, USER_CODE, USER_DATA, USER_STACK, PvGuest, TestMachine


@pytest.mark.parametrize("seed", range(1, 7))
def test_random_calls_keep_the_books_balanced(machine: TestMachine, seed: int) -> None:
    fuzzer = Fuzzer(machine, seed)
    try:
        fuzzer.live()
    except BaseException:
        print(f"seed {seed}, after {fuzzer.calls} calls:", *fuzzer.log[-20:], sep="\n  ")
        raise
    assert fuzzer.accepted > 20


@pytest.mark.parametrize("seed", range(1, 5))
def test_random_code_harms_nobody(machine: TestMachine, bystander: PvGuest, seed: int) -> None:
    """Guests that execute noise, in kernel and in user mode: whatever it does, the machine and the others live on."""
    noise = random.Random(seed)
    for life in range(3):
        guest = machine.start(f"noise{life}")
        guest.make_user_space(40)
        guest.protect(guest.page(0), PRESENT | RW)
        guest.mmu_update((guest.maddr(guest.page(40)) + 8 * 5, guest.mfn(guest.page(0)) << 12 | PRESENT | USER))
        for _ in range(40):
            if guest.stopped:
                break
            guest.write(guest.page(0), _noise(noise))
            kind, target = noise.choice(((2, guest.page(0)), (3, USER_CODE + 5 * PAGE)))
            guest.write_words(guest.symbols["step_0"] + 136, USER_STACK)
            guest._prepare(kind, target, tuple(noise.choice((0, 1, guest.page(1), USER_DATA)) for _ in range(6)), 0)
            deadline = machine.hv.now_ns() + 20_000_000
            machine.run(lambda: guest.stopped or guest.waits or machine.hv.now_ns() > deadline)  # noqa: B023
            if not guest.waits:
                break
        machine.check()
        guest.destroy()
        assert bystander.call("nothing").rax == 42


_HEX: Final = (
    "0f05 0f34 0f01 0f00 0f20 0f22 0f23 0f30 0f32 cd80 cc cf 48cf 48cb ff18 ff28 8e 9d f4 fa 6c f36c 6e ec ee e470 "
    "0f0b78656e0fa2 0fa2 0f31 0fae 0fc7 d9 0f28 f0 67 66 65 0fb2 0fa9 c4"
)

WITHOUT_HELPER_TOO = True
"""System calls, returns, descriptor tables, control registers, MSRs, ports, segments, and their prefixes."""
_OPCODES: Final = [bytes.fromhex(opcode) for opcode in _HEX.split()]


def _noise(noise: random.Random) -> bytes:
    """Half of it random bytes, half of it instructions that are somebody's privilege."""
    code = b""
    while len(code) < 48:
        code += noise.choice(_OPCODES) if noise.random() < 0.5 else noise.randbytes(noise.randrange(1, 4))
    return code + b"\xc3" * 16
