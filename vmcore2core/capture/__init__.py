"""Cores of chosen processes at the time of the crash: in the capture kernel, before makedumpfile drops them.

``config`` reads what a site wants, ``run`` writes the cores within its limits, ``install`` puts the units and hooks
where kdump finds them, ``journal`` shows the cores to ``coredumpctl`` after the reboot.
"""
