"""The command `xenolith`: turns every error into its one sentence and exit status.

Little is imported before signals are heard, so that Ctrl-C is answered as it should be from the first moment on.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Final

SECTIONS: Final = {
    "Machines": {
        "boot": "Start a machine whose control domain starts by itself.",
        "run": "Run one unprivileged guest and nothing else.",
        "machines": "List the machines that run in the background.",
        "halt": "Switch a machine off.",
        "info": "Say what a machine has.",
        "dmesg": "Print the hypervisor's own log.",
        "events": "Follow what happens in a machine.",
        "policy": "Show what each domain may do, and what it has done.",
        "service": "List the native domains, or start one again.",
        "store": "Look at xenstore, and change it.",
    },
    "Domains": {
        "list": "List the domains.",
        "create": "Make a guest and let it run.",
        "console": "Be at a domain's console.",
        "shutdown": "Ask a guest to end.",
        "reboot": "Ask a guest to start again.",
        "destroy": "End a guest at once.",
        "pause": "Let a guest not run for a while.",
        "unpause": "Let a paused guest run again.",
        "rename": "Give a guest another name.",
        "domid": "Print the domid of a domain by its name.",
        "domname": "Print the name of a domain by its domid.",
        "uptime": "Print for how long domains have run.",
        "top": "Watch what domains use.",
        "vcpu-list": "List the vCPUs of domains.",
        "vcpu-set": "Set how many of its vCPUs a guest uses.",
        "mem-set": "Set how much memory a guest uses.",
        "mem-max": "Set how much memory a guest may have.",
        "sched-credit2": "Show or set the weights of domains.",
        "trigger": "Send a trigger to a guest.",
        "sysrq": "Press a SysRq key in a guest.",
        "config-update": "Set what a guest is made of when it starts again.",
    },
    "Devices": {
        "block-attach": "Give a guest one more disk.",
        "block-list": "List the disks of a guest.",
        "block-detach": "Take a disk from a guest.",
        "network-attach": "Give a guest one more network device.",
        "network-list": "List the network devices of a guest.",
        "network-detach": "Take a network device from a guest.",
    },
    "Kernels and this host": {
        "kernels": "List the kernels on this host and in the cache.",
        "inspect": "Say what a kernel image says about itself.",
        "pull": "Bring kernels from the distribution's registry.",
        "ramdisk": "Build an initramfs.",
        "doctor": "Say what this host offers.",
        "bench": "Compare measurements.",
        "completion": "Print what a shell needs to complete this command.",
    },
}
VERBS: Final = {name: sentence for section in SECTIONS.values() for name, sentence in section.items()}

USER_MISTAKE: Final = 1
INTERNAL_ERROR: Final = 5
INTERRUPTED: Final = 130
_COLLECT_AFTER: Final = 100_000
"""New objects after which Python looks for cycles; with its own 700 it does so a hundred times before a guest runs."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 the user's mistake, 2 usage, 3-6 of a guest, 128 + n by signal n."""
    from xenolith.cli.signals import Interrupted, end, heard

    gc.set_threshold(_COLLECT_AFTER)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads for linear algebra, of which there is none
    try:
        with heard(end):
            status = _run()
    except Interrupted as interruption:
        complain(interruption.sentence)
        status = interruption.status
    sys.exit(status)


def _run() -> int:
    import click

    from xenolith.cli.verbs import cli
    from xenolith.errors import UserError

    try:
        status = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        complain(error.message, error.hint)
        return USER_MISTAKE
    except MemoryError:
        complain("this host has not enough free memory", "give the machine less memory, or free some")
        return USER_MISTAKE
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USER_MISTAKE
    return status if isinstance(status, int) else 0


def complain(message: str, hint: str = "") -> None:
    """One sentence on standard error, and below it what to do."""
    print(f"xenolith: {message}", file=sys.stderr)
    if hint:
        print(f"          {hint}", file=sys.stderr)
