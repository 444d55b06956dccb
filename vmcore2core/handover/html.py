"""``index.html``: the index as one page that opens from disk, without network and without other files.

Strings from the dump are data: they are in a JSON block, and the script puts them into the page as text alone. A
content security policy lets no other script or style run than the template's own.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from importlib.resources import files
from pathlib import Path

from vmcore2core.corefile.atomic import atomic_file

HTML_NAME = "index.html"
TEMPLATE = "index.template.html"
_IN_SCRIPTS = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def page(document: str) -> str:
    """Return the page of an index.

    Args:
        document: the index, JSON in ASCII.
    """
    template = files("vmcore2core.handover").joinpath(TEMPLATE).read_text("utf-8")
    for tag in ("script", "style"):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        digest = hashlib.sha256(source[1].encode() if source else b"").digest()
        template = template.replace(f"@{tag.upper()}_HASH@", f"sha256-{base64.b64encode(digest).decode()}")
    # "<" and the like are in JSON's strings alone, where such an escape says the same.
    return template.replace("@INDEX@", document.translate(_IN_SCRIPTS))


def write_html(path: Path, document: str) -> None:
    """Write the page; it appears whole.

    Raises:
        OutputError: the system refuses.
    """
    with atomic_file(path, force=True) as fd, os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
        file.write(page(document))
