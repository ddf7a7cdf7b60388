"""The physical machine under the hypervisor: RAM, clock, buses, firmware tables and devices."""
