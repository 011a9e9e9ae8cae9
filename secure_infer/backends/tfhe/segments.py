"""A check of serialized data before concrete's native parser sees it: a size that lies makes that parser wait forever.

Concrete writes Cap'n Proto streams: a little-endian u32 with the number of segments less one, a u32 with the size of
each in words of 8 bytes, padding to a whole word, then the segments.
"""

from __future__ import annotations

import struct

from secure_infer.errors import BundleError, Problem

_MOST_SEGMENTS = 512


def checked(part: bytes, kind: str) -> bytes:
    """The same bytes, if their segments add up to their length.

    Raises:
        BundleError: They do not.
    """
    if not _adds_up(part):
        raise BundleError(
            f"This is not a usable {kind}.",
            [Problem(kind, "Its segments do not add up to its length.", "fetch or make it again.")],
        )
    return part


def _adds_up(part: bytes) -> bool:
    if len(part) < 8:
        return False
    count = struct.unpack_from("<I", part)[0] + 1
    header = (4 + 4 * count + 7) // 8 * 8
    if count > _MOST_SEGMENTS or header > len(part):
        return False
    return bool(header + 8 * sum(struct.unpack_from(f"<{count}I", part, 4)) == len(part))
