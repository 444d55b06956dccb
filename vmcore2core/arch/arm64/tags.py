"""arm64: memory tags (MTE)."""

from __future__ import annotations

from vmcore2core.arch.arm64 import features
from vmcore2core.arch.capabilities import Tags
from vmcore2core.arch.spec import TagSpec
from vmcore2core.interfaces import KernelView
from vmcore2core.overrides import override


class Arm64Tags(Tags):
    """Memory tags of arm64."""

    @override
    def spec(self, kernel: KernelView) -> TagSpec | None:
        return features.tag_spec(kernel)
