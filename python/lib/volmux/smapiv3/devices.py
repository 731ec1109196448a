"""The block device of an active volume: the pool's own, a loop device, or one of a server (NBD)."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any

import volmux

from . import attached, gateway, host
from .failure import Failure, active_elsewhere, in_use

#: kind (``block``, ``loop``, ``nbd``), path, mode (``rw``, ``ro``); of a loop device, its file.
Device = dict[str, Any]


def path(sr: str, key: str) -> str:
    """What guests are given: a link, since a volume is attached before it is known what device it will have."""
    return host.run_path("dev", sr, key)


def is_served(pool: volmux.Pool, configuration: dict[str, str], volume: volmux.Volume) -> bool:
    """Whether the volume surely has no device. A chain of several files is for a server to read."""
    if configuration.get("datapath") == "nbd" or not pool.capabilities().attach:
        return True
    # A portal is logged in to by the server, with volmux's own initiator.
    return (volume.depth or 0) > 1 or configuration.get("url", "").startswith("iscsi:")


def take(sr: str, key: str, mode: str, sharable: bool, served: bool) -> Device:
    """Takes the volume for this host, alone if it is to be written, and gives it a device. May be repeated."""
    configuration = attached.record(sr)["configuration"]
    with attached.open_pool(configuration) as pool:
        device = None if served else _attach(pool, key, mode, sharable)
        if device is None:
            try:
                gateway.start(sr, configuration, key, mode, sharable and mode == "rw")
            except Failure as failure:
                raise _whose(pool, key, failure) from failure
            device = _connect(sr, key, mode)
    link(sr, key, device["path"])
    return device


def link(sr: str, key: str, device: str) -> None:
    # No key begins with a dot.
    new = path(sr, f".{os.getpid()}")
    host.remove(new)
    os.symlink(device, new)
    os.replace(new, path(sr, key))


def _attach(pool: volmux.Pool, key: str, mode: str, sharable: bool) -> Device | None:
    """By the pool itself; None if that gives no device."""
    access = volmux.Access.READ_WRITE if mode == "rw" else volmux.Access.READ_ONLY
    sharing = volmux.Sharing.SHARED if sharable and mode == "rw" else volmux.Sharing.EXCLUSIVE
    try:
        found = _attach_again(pool, key, access, sharing)
        _alone(pool, key, access, sharing)
        return _device(found.target, mode)
    except BaseException:
        with contextlib.suppress(volmux.Error):
            pool.detach_volume(key, host.host())
        raise


def _attach_again(
    pool: volmux.Pool, key: str, access: volmux.Access, sharing: volmux.Sharing
) -> volmux.Attachment:
    me = host.host()
    try:
        return pool.attach_volume(key, me, access=access, sharing=sharing)
    except volmux.Busy as busy:
        holders = [one.holder for one in pool.volume(key).attachments]
        if me not in holders:
            raise _whose(pool, key, in_use(str(busy))) from busy
    # This host had it before it was started again, with other rights; nothing of that time is left.
    pool.detach_volume(key, me)
    try:
        return pool.attach_volume(key, me, access=access, sharing=sharing)
    except volmux.Busy as busy:
        raise _whose(pool, key, in_use(str(busy))) from busy


def _whose(pool: volmux.Pool, key: str, failure: Failure) -> Failure:
    """The error for a volume that is in use: with the host that has it, where the pool knows."""
    if failure.params[0] != "Busy":
        return failure
    others = [one.holder for one in pool.volume(key).attachments if one.holder != host.host()]
    return active_elsewhere(others[0]) if others else failure


def _alone(pool: volmux.Pool, key: str, access: volmux.Access, sharing: volmux.Sharing) -> None:
    """Readers and a writer do not go together, which pools would allow."""
    for other in pool.volume(key).attachments:
        same = other.access is access and (access is volmux.Access.READ_ONLY or sharing is volmux.Sharing.SHARED)
        if other.holder != host.host() and not same:
            raise active_elsewhere(other.holder)


def _device(target: volmux.AttachTarget, mode: str) -> Device | None:
    if isinstance(target, volmux.BlockDeviceTarget):
        return {"kind": "block", "path": str(target.path), "mode": mode}
    if isinstance(target, volmux.FileTarget):
        return _loop(str(target.path), mode)
    return None


def release(sr: str, key: str, device: Device) -> None:
    """Undoes `take`, with everything written back. May be repeated."""
    if device["kind"] == "nbd":
        _disconnect(device)
        gateway.stop(sr, key)
    elif device["kind"] == "loop":
        _drop_loop(device)
    else:
        _flush(device["path"])
    # A server that was needed after all may have been preceded by an attachment.
    with attached.pool(sr) as pool, contextlib.suppress(volmux.Unsupported):
        pool.detach_volume(key, host.host())
    host.remove(path(sr, key))


def is_alive(sr: str, key: str, device: Device) -> bool:
    if not os.path.exists(device["path"]) or not os.path.islink(path(sr, key)):
        return False
    if device["kind"] == "nbd":
        return gateway.is_up(sr, key) and _is_connected(device["path"])
    return device["kind"] != "loop" or device["path"] in _loops(device["file"])


def _flush(device: str) -> None:
    """What programs of this host wrote through the page cache; a guest's writes do not go there."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(device, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _loops(file: str) -> dict[str, bool]:
    """The loop devices on a file, and whether each is read-only."""
    lines = host.command("losetup", "-n", "-O", "NAME,RO", "-j", file).splitlines()
    pairs = [line.split() for line in lines if line.strip()]
    return {name: only == "1" for name, only in pairs}


def _loop(file: str, mode: str) -> Device:
    with host.locked(host.run_path("loop.lock")):
        for name, only in _loops(file).items():
            # Made by a call that died, or by hand. It may have been resized since.
            if only == (mode == "ro"):
                host.command("losetup", "-c", name)
                return {"kind": "loop", "path": name, "file": file, "mode": mode}
        options = ["--read-only"] if mode == "ro" else []
        name = host.command("losetup", "--find", "--show", *options, file).strip()
    # Not every file system has it; flushes reach the disk either way.
    with contextlib.suppress(Failure):
        host.command("losetup", "--direct-io=on", name)
    return {"kind": "loop", "path": name, "file": file, "mode": mode}


def _drop_loop(device: Device) -> None:
    name, file = device["path"], device["file"]
    # By now it may be on another file: then it is somebody else's.
    if name in _loops(file):
        _flush(name)
        host.command("losetup", "-d", name)
    if name in _loops(file):
        raise in_use(f"{name}: somebody still has it open")


def _connect(sr: str, key: str, mode: str) -> Device:
    with host.locked(host.run_path("nbd.lock")):
        present = host.read_json(_note(sr, key))
        if present is not None and _is_connected(present["path"]):
            return {**present, "mode": mode}
        device = {"kind": "nbd", "path": _free_nbd(), "mode": mode}
        # Before it is connected, so that it is found if this process dies.
        host.write_json(_note(sr, key), device)
        host.command(
            "nbd-client",
            "-unix",
            gateway.socket(sr, key),
            device["path"],
            "-name",
            key,
            "-persist",
            "-timeout",
            "120",
            apart=True,
        )
    return device


def _note(sr: str, key: str) -> str:
    return os.path.join(gateway.directory(sr, key), "device")


def _disconnect(device: Device) -> None:
    if _is_connected(device["path"]):
        _flush(device["path"])
        host.command("nbd-client", "-d", device["path"])


def _free_nbd() -> str:
    sys = host.settings()["sys"]
    devices = glob.glob(f"{sys}/block/nbd*")
    if not devices:
        host.command("modprobe", "nbd", "nbds_max=256")
        devices = glob.glob(f"{sys}/block/nbd*")
    for device in sorted(devices, key=lambda one: (len(one), one)):
        if not os.path.exists(f"{device}/pid"):
            return os.path.join(host.settings()["dev"], os.path.basename(device))
    raise Failure("NoDevice", f"all {len(devices)} devices of the module nbd are in use: load it with more (nbds_max)")


def _is_connected(device: str) -> bool:
    return os.path.exists(f"{host.settings()['sys']}/block/{os.path.basename(device)}/pid")
