"""What the host does for a device: done as it is, until it brings a bug of ours out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xenolith.toolstack.device_host import DeviceHost

Action = Callable[[], None]


class Host:
    """Keeps what it is to do."""

    def __init__(self) -> None:
        self.soon: dict[Action, None] = {}
        self.posted: list[Action] = []
        self.watched: dict[int, Action] = {}

    def post(self, action: Action) -> None:
        self.posted.append(action)

    def watch_readable(self, fd: int, action: Action) -> None:
        self.watched[fd] = action

    watch_writable = watch_readable

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            result = work()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)


class Device:
    def __init__(self) -> None:
        self.outside = Host()
        self.failures: list[Exception] = []
        self.host = DeviceHost(self.outside, lambda action: self.outside.soon.update({action: None}), self.failed)
        self.done: list[object] = []

    def failed(self, error: Exception) -> None:
        self.failures.append(error)

    def work(self) -> None:
        self.done.append("work")

    def break_down(self) -> None:
        raise LookupError("a bug")


@pytest.fixture
def device() -> Device:
    return Device()


def test_what_is_done_for_a_device_that_works(device: Device) -> None:
    for _ in range(2):
        device.host.soon(device.work)
    (action,) = device.outside.soon
    action()
    device.host.post(device.work)
    device.host.watch_readable(5, device.work)
    device.host.watch_writable(6, device.work)
    for action in (*device.outside.posted, *device.outside.watched.values()):
        action()
    assert device.done == ["work"] * 4
    device.host.submit(lambda: 7, lambda *told: device.done.append(told))
    device.host.submit(lambda: 1 // 0, lambda result, error: device.done.append(type(error)))
    assert device.done[4:] == [(7, None), ZeroDivisionError]
    device.host.unwatch(5)
    assert device.outside.watched.keys() == {6}
    assert device.failures == []


def test_a_bug_stops_the_device_and_is_told_once(device: Device) -> None:
    device.host.watch_readable(5, device.break_down)
    device.host.soon(device.work)
    device.host.post(device.break_down)
    (broken,) = device.outside.watched.values()
    broken()
    assert [type(error) for error in device.failures] == [LookupError]
    assert device.outside.watched == {}
    for action in (*device.outside.soon, *device.outside.posted):
        action()
    device.host.submit(lambda: 7, lambda *told: device.done.append(told))
    assert device.done == []
    assert len(device.failures) == 1


def test_a_bug_in_how_work_ends_is_one(device: Device) -> None:
    device.host.submit(lambda: 7, lambda result, error: device.break_down())
    assert [type(error) for error in device.failures] == [LookupError]
