"""The interface Plugin: what this is."""

from __future__ import annotations

import json
from typing import Any

from . import host

FEATURES = [
    "VDI_CREATE",
    "VDI_DESTROY",
    "VDI_SNAPSHOT",
    "VDI_CLONE",
    "VDI_COPY",
    "VDI_RESIZE",
    "VDI_REVERT",
    "VDI_ACTIVATE_READONLY",
    "VDI_CONFIG_CBT",
    "THIN_PROVISIONING",
    "LARGE_VDI",
]


def query(dbg: str) -> dict[str, Any]:
    from volmux import __version__

    return {
        "plugin": "volmux",
        "name": "volmux",
        "description": "Volumes on directories, LVM, NFS, iSCSI and object storage",
        "vendor": "volmux",
        "copyright": "MIT OR Apache-2.0",
        "version": __version__,
        "required_api_version": "5.0",
        "features": FEATURES,
        "configuration": {
            "url": "the pool: dir:///PATH, nfs://HOST/EXPORT, lvm://GROUP/POOL, iscsi://…, s3://BUCKET/PREFIX",
            "config": "in place of url: a file on each host with the pool's configuration as JSON",
            "datapath": "auto (device of the pool, or loop device, or NBD), or nbd",
        },
        "required_cluster_stack": [],
    }


def ls(dbg: str) -> list[str]:
    from .attached import every

    return every()


def diagnostics(dbg: str) -> str:
    from volmux import __version__, schemes

    from . import attached, datapath

    told = {
        "version": __version__,
        "schemes": schemes(),
        "host": host.host(),
        "srs": {sr: datapath.states(sr) for sr in attached.every()},
    }
    return json.dumps(told, indent=2)
