"""Declarations only: structures, numbers and masks as their sources define them; no I/O, no behaviour.

A module is named as its source of truth names the format; it imports nothing of vmcore2core but other modules here.
Variants (32 and 64 bit, header versions, byte orders) are separate declarations. All are immutable.
"""
