"""Write cores of chosen processes in the capture kernel, before makedumpfile drops their memory.

``config`` reads what a site wants, ``run`` writes the cores within its limits, ``install`` puts the units and hooks
where kdump finds them, ``journal`` shows the cores to ``coredumpctl`` after the reboot.
"""
