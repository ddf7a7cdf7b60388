"""How many slots a shared ring has."""

import pytest

from xenolith.abi.io.blkif import BlkifRequest
from xenolith.abi.io.netif import NetifRxRequest, NetifRxResponse, NetifTxRequest
from xenolith.abi.io.ring import Sring, ring_size
from xenolith.abi.types import PAGE_SIZE


def test_the_head_is_one_cache_line() -> None:
    assert Sring.sizeof() == 64


@pytest.mark.parametrize(
    ("pages", "slot", "slots"),
    [
        (1, BlkifRequest.sizeof(), 32),
        (16, BlkifRequest.sizeof(), 512),
        (1, NetifTxRequest.sizeof(), 256),
        (1, max(NetifRxRequest.sizeof(), NetifRxResponse.sizeof()), 256),
    ],
)
def test_ring_size_is_the_greatest_power_of_two_that_fits(pages: int, slot: int, slots: int) -> None:
    assert ring_size(pages * PAGE_SIZE, slot) == slots
    assert Sring.sizeof() + slots * slot <= pages * PAGE_SIZE < Sring.sizeof() + 2 * slots * slot
