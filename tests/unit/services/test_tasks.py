"""Coroutines without an event loop: they go on when what they wait for has come, and errors reach somebody."""

from __future__ import annotations

import pytest

from xenolith.services.tasks import Future, Tasks


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def tasks(failures: list[Exception]) -> Tasks:
    return Tasks(failures.append)


def test_a_coroutine_goes_on_in_the_turn_in_which_its_future_is_set(tasks: Tasks) -> None:
    future: Future[int] = Future()
    seen: list[int] = []

    async def wait() -> None:
        seen.append(await future)

    done = tasks.spawn(wait())
    assert not done.done
    future.set_result(7)
    assert seen == [7]
    assert done.done


def test_only_the_first_result_counts() -> None:
    future: Future[int] = Future()
    future.set_result(1)
    future.set_result(2)
    future.set_error(ValueError())
    assert future.result() == 1


def test_several_wait_for_one_future_and_go_on_in_their_order(tasks: Tasks) -> None:
    future: Future[None] = Future()
    order: list[int] = []

    async def wait(number: int) -> None:
        await future
        order.append(number)

    for number in range(4):
        tasks.spawn(wait(number))
    future.set_result(None)
    assert order == [0, 1, 2, 3]


def test_a_long_chain_of_futures_needs_no_stack(tasks: Tasks) -> None:
    async def count() -> int:
        total = 0
        for _ in range(20_000):
            future: Future[int] = Future()
            future.set_result(1)
            total += await future
        return total

    assert tasks.spawn(count()).result() == 20_000


def test_an_error_goes_to_who_awaits_it(tasks: Tasks, failures: list[Exception]) -> None:
    gate: Future[None] = Future()

    async def fail() -> None:
        await gate
        raise KeyError("lost")

    async def wait() -> str:
        try:
            await tasks.spawn(fail())
        except KeyError as error:
            return str(error)
        return "nothing"

    waiting = tasks.spawn(wait())
    gate.set_result(None)
    assert waiting.result() == "'lost'"
    assert not failures


def test_an_error_that_nobody_awaits_is_told(tasks: Tasks, failures: list[Exception]) -> None:
    async def fail() -> None:
        raise KeyError("lost")

    tasks.spawn(fail())
    assert [type(error) for error in failures] == [KeyError]


def test_closing_ends_coroutines_where_they_wait(tasks: Tasks) -> None:
    future: Future[None] = Future()
    said: list[str] = []

    async def wait() -> None:
        try:
            await future
            said.append("went on")
        finally:
            said.append("ended")

    tasks.spawn(wait())
    tasks.close()
    future.set_result(None)
    assert said == ["ended"]
