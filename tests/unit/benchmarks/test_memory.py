"""Memory use as /proc tells it."""

import os

from benchmarks.memory import Usage, parse_rollup, private_memory_kib, tree_usage

ROLLUP = """55d0c0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]
Rss:              300000 kB
Pss:              250000 kB
Pss_Anon:          90000 kB
Pss_File:          10000 kB
Pss_Shmem:        150000 kB
"""


def test_rollup_is_parsed() -> None:
    assert parse_rollup(ROLLUP) == Usage(250000, 150000)


def test_shared_memory_counts_as_the_guests_only_up_to_what_it_was_given() -> None:
    assert Usage(250000, 150000).above_kib(200000) == 100000
    assert Usage(250000, 150000).above_kib(120000) == 130000


def test_usage_of_this_process_is_not_nothing() -> None:
    assert tree_usage(os.getpid()).total_kib > 1000


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert tree_usage(2**22 + 1) == Usage()


def test_memory_of_a_machine_that_is_not_shared_is_found_by_its_flags() -> None:
    smaps = """\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Rss:              131072 kB
Pss:              131000 kB
VmFlags: rd wr mr mw me dc nr sd
7f0030000000-7f0030010000 rw-p 00000000 00:00 0
Pss:                  64 kB
VmFlags: rd wr mr mw me nr sd
"""
    assert private_memory_kib(smaps) == 131000
