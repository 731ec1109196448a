"""The interface SR: storage repositories. One is a pool."""

from __future__ import annotations

from typing import Any

import volmux

from . import attached, metadata
from .failure import Failure, in_use, invalid, no_sr

Configuration = dict[str, str]


def probe(dbg: str, configuration: Configuration) -> list[dict[str, Any]]:
    if not configuration.keys() & {"url", "config"}:
        schemes = ", ".join(volmux.schemes())
        return [_found(configuration, {"url": f"is needed: a pool, of one of the schemes {schemes}"})]
    with _open_to_look(configuration) as pool:
        try:
            document = metadata.read(pool)
        except Failure as failure:
            if failure.params[0] != "SR_does_not_exist":
                raise
            return [{"configuration": _without_uuid(configuration), "complete": True, "extra_info": {}}]
        sr = document["sr"]["uuid"]
        complete = {**configuration, "sr_uuid": sr}
        return [{**_found(complete, {}), "complete": True, "sr": _stat(sr, pool, document)}]


def _found(configuration: Configuration, more: dict[str, str]) -> dict[str, Any]:
    return {"configuration": configuration, "complete": False, "extra_info": more}


def _without_uuid(configuration: Configuration) -> Configuration:
    return {key: value for key, value in configuration.items() if key != "sr_uuid"}


def _open_to_look(configuration: Configuration) -> volmux.Pool:
    """Nothing is made in a place that is only looked at, where the backend can do that."""
    try:
        return attached.open_pool({**configuration, "read_only": "true"})
    except (volmux.InvalidConfig, volmux.NotFound):
        return attached.open_pool(configuration)


def create(dbg: str, uuid: str, configuration: Configuration, name: str, description: str) -> Configuration:
    uuid = uuid.lower()
    if not attached.is_uuid(uuid):
        raise invalid(f"{uuid}: not a uuid")
    _datapath(configuration)
    with attached.open_pool(configuration) as pool:
        document = metadata.create(pool, metadata.new_document(uuid, name, description))
        present = document["sr"]["uuid"]
        if present != uuid:
            raise Failure("AlreadyExists", f"{pool} is the SR {present}: attach that, or destroy it first")
    # A place that is not there must not become a fresh pool when the SR is attached.
    kept = {key: value for key, value in configuration.items() if key not in ("init", "SRmaster")}
    return {**kept, "sr_uuid": uuid}


def _datapath(configuration: Configuration) -> None:
    if configuration.get("datapath", "auto") not in ("auto", "nbd"):
        raise invalid("datapath is auto, or nbd: a server for every volume")


def attach(dbg: str, configuration: Configuration) -> str:
    _datapath(configuration)
    with attached.open_pool(configuration) as pool:
        sr = str(metadata.read(pool)["sr"]["uuid"])
        wanted = configuration.get("sr_uuid", sr)
        if wanted.lower() != sr:
            raise no_sr(f"{wanted}: {pool} is the SR {sr}")
    attached.add(sr, configuration)
    return sr


def detach(dbg: str, sr: str) -> None:
    if not attached.is_uuid(sr) or sr not in attached.every():
        return
    from . import datapath

    active = datapath.tidy(sr)
    if active:
        raise in_use(f"volumes of the SR are active on this host: {', '.join(active)}")
    attached.remove(sr)


def destroy(dbg: str, sr: str) -> None:
    """Deletes the volumes that were made through this interface, and the SR. Others in the pool are not touched."""
    with attached.pool(sr) as pool:
        with metadata.change(pool) as document:
            _check(document, sr)
            ours = [volume.name for volume in pool.list_volumes() if _is_ours(document, volume)]
            used = [name for name in ours if pool.volume(name).attachments]
            if used:
                raise in_use(f"volumes of the SR are attached: {', '.join(used)}")
            for name in ours:
                pool.delete_volume(name)
                del document["volumes"][name]
        pool.delete_volume(metadata.VOLUME)
    attached.remove(sr)


def _is_ours(document: metadata.Document, volume: volmux.Volume) -> bool:
    entry = document["volumes"].get(volume.name)
    return entry is not None and entry["made"] and entry["id"] == str(volume.id)


def _check(document: metadata.Document, sr: str) -> None:
    """The place may hold another SR by now: another file system is mounted there, or somebody made it anew."""
    if document["sr"]["uuid"] != sr:
        raise no_sr(f"{sr}: its pool is now the SR {document['sr']['uuid']}")


def stat(dbg: str, sr: str) -> dict[str, Any]:
    configuration = attached.record(sr)["configuration"]
    try:
        with attached.open_pool(configuration) as pool:
            try:
                document = metadata.read(pool)
            except metadata.Damaged as damaged:
                nameless = metadata.new_document(sr, sr, "")
                return {**_stat(sr, pool, nameless), "health": ["Recovering", str(damaged)]}
            _check(document, sr)
            return _stat(sr, pool, document)
    except (volmux.Unavailable, volmux.TimedOut) as error:
        return _summary(sr, {"name": sr, "description": ""}, 0, 0, ["Unreachable", str(error)])


def _stat(sr: str, pool: volmux.Pool, document: metadata.Document) -> dict[str, Any]:
    usage = pool.usage()
    return _summary(sr, document["sr"], usage.free, usage.total, ["Healthy", ""])


def _summary(sr: str, names: dict[str, str], free: int, total: int, health: list[str]) -> dict[str, Any]:
    return {
        "sr": sr,
        "uuid": sr,
        "name": names["name"],
        "description": names["description"],
        "free_space": free,
        "total_space": total,
        "datasources": [],
        "clustered": False,
        "health": health,
    }


def set_name(dbg: str, sr: str, new_name: str) -> None:
    _set(sr, "name", new_name)


def set_description(dbg: str, sr: str, new_description: str) -> None:
    _set(sr, "description", new_description)


def _set(sr: str, what: str, value: str) -> None:
    with attached.pool(sr) as pool, metadata.change(pool) as document:
        _check(document, sr)
        document["sr"][what] = value


def ls(dbg: str, sr: str) -> list[dict[str, Any]]:
    from .volume import describe, shown

    with attached.pool(sr) as pool:
        try:
            document = metadata.read(pool)
            _check(document, sr)
        except metadata.Damaged:
            # The volumes are there all the same, by their keys.
            document = metadata.new_document(sr, sr, "")
        # A volume that can't be read is an error: one that is left out is forgotten by xapi, and its disks with it.
        volumes = [volume for volume in pool.list_volumes() if shown(document, volume.name)]
        return [describe(sr, document, volume) for volume in sorted(volumes, key=lambda volume: volume.name)]
