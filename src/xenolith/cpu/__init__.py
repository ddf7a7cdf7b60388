"""CPU engines: they execute guest instructions, report exits and know nothing of Xen."""
