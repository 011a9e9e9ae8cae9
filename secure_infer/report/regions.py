"""Generated regions of a Markdown file, each between `<!-- begin:NAME -->` and `<!-- end:NAME -->`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

_LOG = logging.getLogger(__name__)


def replace_regions(text: str, bodies: Mapping[str, Callable[[], str]]) -> str:
    """The text with the named regions replaced and everything else as it was; absent regions are logged.

    Args:
        text: The file's content.
        bodies: What makes the new content, by region name; not called for a region that is absent.
    """
    for name, make in bodies.items():
        pattern = _pattern(name)
        if not pattern.search(text):
            _LOG.warning("There is no region %s; skipped.", name)
            continue
        body = make()
        text = pattern.sub(lambda match, body=body: f"{match[1]}\n{body}\n{match[3]}", text)  # type: ignore[misc]
    return text


def region(text: str, name: str) -> str | None:
    """The content of a region, or None if it is absent."""
    found = _pattern(name).search(text)
    return found[2].strip("\n") if found else None


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- begin:{re.escape(name)} -->)(.*?)(<!-- end:{re.escape(name)} -->)", re.DOTALL)
