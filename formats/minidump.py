"""Minidumps of Linux processes, as breakpad and similar programs write them: little-endian and packed.

Sources of truth: google/breakpad's src/google_breakpad/common/minidump_format.h and minidump_cpu_{amd64,arm,arm64,
x86}.h (August 2026), which follow Microsoft's minidumpapiset.h. Names are breakpad's.
"""

from __future__ import annotations

import numpy as np
from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

SIGNATURE = 0x504D444D  # "MDMP"
VERSION = 0xA793
WITH_FULL_MEMORY = 0x2
RVA_END = 1 << 32
"""Largest offset of an MDRVA; only MDMemory64List's data may lie beyond it."""

# MDStreamType.
THREAD_LIST_STREAM = 3
MODULE_LIST_STREAM = 4
EXCEPTION_STREAM = 6
SYSTEM_INFO_STREAM = 7
MEMORY_64_LIST_STREAM = 9
COMMENT_STREAM_A = 10
MISC_INFO_STREAM = 15
THREAD_NAME_LIST_STREAM = 24
LINUX_PROC_STATUS = 0x47670004
LINUX_CMD_LINE = 0x47670006
LINUX_ENVIRON = 0x47670007
LINUX_AUXV = 0x47670008
LINUX_MAPS = 0x47670009

# MDCPUArchitecture, MDOSPlatform.
CPU_ARCHITECTURE_X86 = 0
CPU_ARCHITECTURE_ARM = 5
CPU_ARCHITECTURE_AMD64 = 9
CPU_ARCHITECTURE_ARM64_OLD = 0x8003
"""Written by breakpad on Linux, with MDRawContextARM64_Old; lldb reads only this one."""
OS_LINUX = 0x8201

MDLocationDescriptor = Struct("data_size" / Int32ul, "rva" / Int32ul)

MDMemoryDescriptor = Struct("start_of_memory_range" / Int64ul, "memory" / MDLocationDescriptor)

MDRawHeader = Struct(
    "signature" / Int32ul,
    "version" / Int32ul,
    "stream_count" / Int32ul,
    "stream_directory_rva" / Int32ul,
    "checksum" / Int32ul,
    "time_date_stamp" / Int32ul,
    "flags" / Int64ul,
)

MDRawDirectory = Struct("stream_type" / Int32ul, "location" / MDLocationDescriptor)

COUNT = Int32ul
"""How MDRawThreadList, MDRawModuleList and MDRawThreadNameList begin; their records follow."""

MDRawThread = Struct(
    "thread_id" / Int32ul,
    "suspend_count" / Int32ul,
    "priority_class" / Int32ul,
    "priority" / Int32ul,
    "teb" / Int64ul,
    "stack" / MDMemoryDescriptor,
    "thread_context" / MDLocationDescriptor,
)

MDRawThreadName = Struct("thread_id" / Int32ul, "thread_name_rva" / Int64ul)

MDRawModule = Struct(
    "base_of_image" / Int64ul,
    "size_of_image" / Int32ul,
    "checksum" / Int32ul,
    "time_date_stamp" / Int32ul,
    "module_name_rva" / Int32ul,
    "version_info" / Padding(52),  # MDVSFixedFileInfo
    "cv_record" / MDLocationDescriptor,
    "misc_record" / Padding(8),
    "reserved" / Padding(16),
)

CVINFOELF_SIGNATURE = 0x4270454C  # "LEpB": the build ID follows

MDMemory64List = Struct("number_of_memory_ranges" / Int64ul, "base_rva" / Int64ul)
"""``MEMORY_RANGE_DTYPE`` records follow; the bytes of all ranges lie in their order from ``base_rva`` on."""

MEMORY_RANGE_DTYPE = np.dtype([("start_of_memory_range", "<u8"), ("data_size", "<u8")])

MDRawExceptionStream = Struct(
    "thread_id" / Int32ul,
    Padding(4),
    "exception_code" / Int32ul,
    "exception_flags" / Int32ul,
    "exception_record" / Int64ul,
    "exception_address" / Int64ul,
    "number_parameters" / Int32ul,
    Padding(4 + 15 * 8),
    "thread_context" / MDLocationDescriptor,
)

MDRawSystemInfo = Struct(
    "processor_architecture" / Int16ul,
    "processor_level" / Int16ul,
    "processor_revision" / Int16ul,
    "number_of_processors" / Int8ul,
    "product_type" / Int8ul,
    "major_version" / Int32ul,
    "minor_version" / Int32ul,
    "build_number" / Int32ul,
    "platform_id" / Int32ul,
    "csd_version_rva" / Int32ul,
    "suite_mask" / Int16ul,
    Padding(2),
    "cpu" / Padding(24),  # MDCPUInformation
)

MISC_INFO_PROCESS_ID = 1

MDRawMiscInfo = Struct(
    "size_of_info" / Int32ul,
    "flags1" / Int32ul,
    "process_id" / Int32ul,
    "process_create_time" / Int32ul,
    "process_user_time" / Int32ul,
    "process_kernel_time" / Int32ul,
)

MDStringHead = Int32ul
"""Size of an MDString; that many bytes of UTF-16 follow, and a NUL that does not count."""

# Context flags: the machine, and which parts are there.
CONTEXT_AMD64 = 0x00100000
CONTEXT_X86 = 0x00010000
CONTEXT_CONTROL, CONTEXT_INTEGER, CONTEXT_SEGMENTS, CONTEXT_FLOATING_POINT = 1, 2, 4, 8
CONTEXT_X86_EXTENDED_REGISTERS = 0x20
CONTEXT_ARM = 0x40000000
CONTEXT_ARM64_OLD = 0x80000000
CONTEXT_ARM_INTEGER, CONTEXT_ARM_FLOATING_POINT = 2, 4

FXSAVE_SIZE = 512

MDRawContextAMD64 = Struct(
    Padding(6 * 8),
    "context_flags" / Int32ul,
    "mx_csr" / Int32ul,
    *(name / Int16ul for name in ("cs", "ds", "es", "fs", "gs", "ss")),
    "eflags" / Int32ul,
    Padding(6 * 8),  # debug registers
    *(name / Int64ul for name in ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")),
    *(f"r{number}" / Int64ul for number in range(8, 16)),
    "rip" / Int64ul,
    "flt_save" / Bytes(FXSAVE_SIZE),
    Padding(26 * 16 + 8 + 5 * 8),  # vector registers, debug control
)

X87_SIZE = 7 * 4 + 80

MDRawContextX86 = Struct(
    "context_flags" / Int32ul,
    Padding(6 * 4),  # debug registers
    "float_save" / Bytes(X87_SIZE),
    Padding(4),  # cr0_npx_state
    *(name / Int32ul for name in ("gs", "fs", "es", "ds", "edi", "esi", "ebx", "edx", "ecx", "eax")),
    *(name / Int32ul for name in ("ebp", "eip", "cs", "eflags", "esp", "ss")),
    "extended_registers" / Bytes(FXSAVE_SIZE),
)

MDRawContextARM = Struct(
    "context_flags" / Int32ul,
    "iregs" / Array(16, Int32ul),
    "cpsr" / Int32ul,
    "fpscr" / Int64ul,
    "regs" / Bytes(32 * 8),
    Padding(8 * 4),
)

MDRawContextARM64_Old = Struct(
    "context_flags" / Int64ul,
    "iregs" / Array(33, Int64ul),
    "cpsr" / Int32ul,
    "fpsr" / Int32ul,
    "fpcr" / Int32ul,
    "regs" / Bytes(32 * 16),
)
