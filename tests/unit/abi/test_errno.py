"""Error numbers, their names, and the exception that carries one."""

import errno as host

import pytest

from xenolith.abi import errno
from xenolith.abi.errno import EAGAIN, EDEADLK, EFAULT, EINVAL, ENOSYS, XenError


@pytest.mark.parametrize(
    ("number", "name"), [(EINVAL, "EINVAL"), (-EINVAL, "EINVAL"), (1, "EPERM"), (ENOSYS, "ENOSYS")]
)
def test_name_of_either_sign(number: int, name: str) -> None:
    assert errno.name(number) == name


@pytest.mark.parametrize(("number", "name"), [(EAGAIN, "EAGAIN"), (EDEADLK, "EDEADLK")])
def test_an_alias_does_not_take_the_name(number: int, name: str) -> None:
    assert errno.name(number) == name


def test_a_number_that_xen_lacks_stands_for_itself() -> None:
    assert errno.name(4095) == "4095"
    assert errno.name(0) == "0"


def test_xens_numbers_are_those_of_linux_on_x86() -> None:
    ours = {name: value for name, value in vars(errno).items() if name.startswith("E") and isinstance(value, int)}
    assert len(ours) > 45
    assert {name: getattr(host, name) for name in ours} == ours


def test_xen_error_carries_number_and_reason() -> None:
    error = XenError(EFAULT, "argument crosses the end of the address space")
    assert error.errno == 14
    assert error.reason == "argument crosses the end of the address space"
    assert str(error) == "EFAULT: argument crosses the end of the address space"
    assert str(XenError(EFAULT)) == "EFAULT"
