"""What an administrator can do when metadata is damaged, or when a host is gone for good."""

from __future__ import annotations

import time

import volmux

from . import metadata
from .failure import Failure


def recover(pool: volmux.Pool, uuid: str, name: str) -> str | None:
    """Makes metadata anew, with keys for names, and keeps the damaged volume: its name is returned. Good metadata is
    left as it is."""
    kept = None
    try:
        metadata.read(pool)
        return None
    except metadata.Damaged:
        kept = f"{metadata.VOLUME}-damaged-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
        pool.rename_volume(metadata.VOLUME, kept)
    except Failure as failure:
        if failure.params[0] != "SR_does_not_exist":
            raise
    metadata.create(pool, metadata.new_document(uuid, name, ""))
    return kept


def unfinished(pool: volmux.Pool, host: str | None) -> list[str]:
    """The volumes that calls were making which have not ended. With ``host``, those of that host are removed: it must
    be gone for good."""
    with metadata.change(pool) as document:
        found = [key for key, entry in document["volumes"].items() if entry["maker"]]
        for key in found:
            if document["volumes"][key]["maker"]["host"] == host:
                pool.delete_volume(key)
                del document["volumes"][key]
        return found
