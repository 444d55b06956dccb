"""Call frame information in .eh_frame, and DWARF expressions.

References: DWARF 5, sections 2.5, 6.4 and 7.24; Linux Standard Base Core 5.0, chapter 10.6 ("Exception Frames");
binutils' include/dwarf2.def (2.44) for the GNU extensions.
"""

from __future__ import annotations

from enum import IntEnum

DWARF64_ESCAPE = 0xFFFFFFFF
"""Initial length of an entry whose real length is in the following 8 bytes."""

CIE_ID = 0
"""In .eh_frame, the word where an FDE has the distance back to its CIE."""

DEBUG_FRAME_CIE_ID = 0xFFFFFFFF
"""The same in a .debug_frame of 32-bit DWARF, where an FDE has its CIE's offset in the section."""

CIE_VERSIONS = (1, 3, 4)

EH_FRAME_HDR_VERSION = 1

DW_EH_PE_omit = 0xFF
DW_EH_PE_indirect = 0x80
DW_EH_PE_FORMAT = 0x0F
DW_EH_PE_APPLICATION = 0x70


class EhFormat(IntEnum):
    """Low four bits of a pointer's encoding."""

    DW_EH_PE_absptr = 0x00
    DW_EH_PE_uleb128 = 0x01
    DW_EH_PE_udata2 = 0x02
    DW_EH_PE_udata4 = 0x03
    DW_EH_PE_udata8 = 0x04
    DW_EH_PE_sleb128 = 0x09
    DW_EH_PE_sdata2 = 0x0A
    DW_EH_PE_sdata4 = 0x0B
    DW_EH_PE_sdata8 = 0x0C


class EhApplication(IntEnum):
    """The base from which a pointer's value counts."""

    DW_EH_PE_absolute = 0x00
    DW_EH_PE_pcrel = 0x10
    DW_EH_PE_textrel = 0x20
    DW_EH_PE_datarel = 0x30


DW_EH_PE_TABLE = EhApplication.DW_EH_PE_datarel | EhFormat.DW_EH_PE_sdata4
"""The only encoding of .eh_frame_hdr's table that can be searched; all linkers write it."""

EH_TABLE_ENTRY = 8
"""Bytes of one of its entries: initial location and address of the FDE, both int32_t."""

DW_CFA_PRIMARY = 0xC0
DW_CFA_LOW = 0x3F


class DwCfa(IntEnum):
    """Call frame instructions; the first three have their operand in the low six bits."""

    DW_CFA_advance_loc = 0x40
    DW_CFA_offset = 0x80
    DW_CFA_restore = 0xC0
    DW_CFA_nop = 0x00
    DW_CFA_set_loc = 0x01
    DW_CFA_advance_loc1 = 0x02
    DW_CFA_advance_loc2 = 0x03
    DW_CFA_advance_loc4 = 0x04
    DW_CFA_offset_extended = 0x05
    DW_CFA_restore_extended = 0x06
    DW_CFA_undefined = 0x07
    DW_CFA_same_value = 0x08
    DW_CFA_register = 0x09
    DW_CFA_remember_state = 0x0A
    DW_CFA_restore_state = 0x0B
    DW_CFA_def_cfa = 0x0C
    DW_CFA_def_cfa_register = 0x0D
    DW_CFA_def_cfa_offset = 0x0E
    DW_CFA_def_cfa_expression = 0x0F
    DW_CFA_expression = 0x10
    DW_CFA_offset_extended_sf = 0x11
    DW_CFA_def_cfa_sf = 0x12
    DW_CFA_def_cfa_offset_sf = 0x13
    DW_CFA_val_offset = 0x14
    DW_CFA_val_offset_sf = 0x15
    DW_CFA_val_expression = 0x16
    DW_CFA_AARCH64_negate_ra_state_with_pc = 0x2C
    DW_CFA_AARCH64_negate_ra_state = 0x2D
    DW_CFA_GNU_args_size = 0x2E
    DW_CFA_GNU_negative_offset_extended = 0x2F


class DwOp(IntEnum):
    """Operations of DWARF expressions that can stand in call frame information."""

    DW_OP_addr = 0x03
    DW_OP_deref = 0x06
    DW_OP_const1u = 0x08
    DW_OP_const1s = 0x09
    DW_OP_const2u = 0x0A
    DW_OP_const2s = 0x0B
    DW_OP_const4u = 0x0C
    DW_OP_const4s = 0x0D
    DW_OP_const8u = 0x0E
    DW_OP_const8s = 0x0F
    DW_OP_constu = 0x10
    DW_OP_consts = 0x11
    DW_OP_dup = 0x12
    DW_OP_drop = 0x13
    DW_OP_over = 0x14
    DW_OP_pick = 0x15
    DW_OP_swap = 0x16
    DW_OP_rot = 0x17
    DW_OP_abs = 0x19
    DW_OP_and = 0x1A
    DW_OP_div = 0x1B
    DW_OP_minus = 0x1C
    DW_OP_mod = 0x1D
    DW_OP_mul = 0x1E
    DW_OP_neg = 0x1F
    DW_OP_not = 0x20
    DW_OP_or = 0x21
    DW_OP_plus = 0x22
    DW_OP_plus_uconst = 0x23
    DW_OP_shl = 0x24
    DW_OP_shr = 0x25
    DW_OP_shra = 0x26
    DW_OP_xor = 0x27
    DW_OP_bra = 0x28
    DW_OP_eq = 0x29
    DW_OP_ge = 0x2A
    DW_OP_gt = 0x2B
    DW_OP_le = 0x2C
    DW_OP_lt = 0x2D
    DW_OP_ne = 0x2E
    DW_OP_skip = 0x2F
    DW_OP_lit0 = 0x30
    DW_OP_lit31 = 0x4F
    DW_OP_breg0 = 0x70
    DW_OP_breg31 = 0x8F
    DW_OP_bregx = 0x92
    DW_OP_deref_size = 0x94
    DW_OP_nop = 0x96
