"""The way from a volume to a guest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from devices import devices, hosts, loops, servers  # noqa: F401
from smapi_host import MIB, Host, url, write  # noqa: F401

import volmux


def uri_of(host: Host, sr: str, **more: bool) -> str:
    return str(host.create(sr, **more)["uri"][0])  # type: ignore[arg-type]


def is_writable(device: str) -> bool:
    return subprocess.check_output(["blockdev", "--getro", device], text=True).strip() == "0"


def step(host: Host, call: str, uri: str, domain: str = "1") -> None:
    assert host.call(f"Datapath.{call}", uri=uri, domain=domain) is None


def link(host: Host, uri: str) -> Path:
    answer = host.call("Datapath.attach", uri=uri, domain="1")
    return Path(devices(answer)["XenDisk"]["params"])


def test_a_loop_device(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    host = hosts[0]
    sr = host.create_sr(url)
    uri = uri_of(host, sr)
    answer = host.call("Datapath.attach", uri=uri, domain="1")
    assert host.call("Datapath.attach", uri=uri, domain="1") == answer
    found = devices(answer)
    path = Path(found["XenDisk"]["params"])
    assert found["XenDisk"] == {"params": str(path), "extra": {}, "backend_type": "vbd"}
    assert found["BlockDevice"] == {"path": str(path)}
    # Attached to any number of hosts, and active on none.
    assert not path.exists() and not loops(tmp_path)
    for _ in range(2):
        step(host, "activate", uri)
    (loop,) = loops(tmp_path)
    # What the hotplug script of Xen reads is the end of the link.
    assert os.path.realpath(path) == loop and path.is_block_device() and is_writable(loop)
    fd = os.open(path, os.O_RDWR)
    os.write(fd, b"guest")
    os.close(fd)
    for _ in range(2):
        step(host, "deactivate", uri)
    assert not loops(tmp_path) and not path.exists()
    key = uri.rpartition("/")[2]
    with volmux.open_pool(url) as pool:
        assert pool.volume(key).attachments == ()
        with pool.open_volume(key) as device:
            assert device.read_at(0, 5) == b"guest"
    for _ in range(2):
        step(host, "detach", uri)
    assert not list((host.place / "run" / "datapath" / sr).glob("*.json"))
    host.call("Volume.destroy", sr=sr, key=key)


def test_read_only(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    one, two = hosts
    sr = one.create_sr(url)
    two.attach_sr(url, sr)
    uri = uri_of(one, sr)
    for host in hosts:
        step(host, "activate_readonly", uri)
    # Readers of two hosts have a device each; both are those of this machine.
    for loop in loops(tmp_path):
        assert not is_writable(loop)
    # Not for reading and for writing at once, on one host or on two.
    assert one.fails("Datapath.activate", uri=uri, domain="1")[0] == "Busy"
    assert one.fails("Datapath.activate", uri=uri, domain="2")[0] == "Busy"
    step(one, "activate_readonly", uri, "2")
    step(one, "deactivate", uri, "1")
    assert one.fails("Datapath.activate", uri=uri, domain="1")[0] == "Busy"
    step(one, "deactivate", uri, "2")
    assert one.fails("Datapath.activate", uri=uri, domain="1") == ["Activated_on_another_host", "host-b"]
    step(two, "deactivate", uri)
    step(one, "activate", uri)
    assert two.fails("Datapath.activate_readonly", uri=uri, domain="1") == ["Activated_on_another_host", "host-a"]


def test_a_snapshot_is_only_read(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    host = hosts[0]
    sr = host.create_sr(url)
    key = host.create(sr)["key"]
    uri = host.call("Volume.snapshot", sr=sr, key=key)["uri"][0]
    step(host, "activate", uri)
    for loop in loops(tmp_path):
        assert not is_writable(loop)


def test_one_host_at_a_time(hosts: list[Host], url: str) -> None:  # noqa: F811
    """A migration: attached to both, handed over by deactivation."""
    one, two = hosts
    sr = one.create_sr(url)
    two.attach_sr(url, sr)
    uri = uri_of(one, sr)
    for host in hosts:
        host.call("Datapath.attach", uri=uri, domain="1")
    step(one, "activate", uri)
    for _ in range(2):
        assert two.fails("Datapath.activate", uri=uri, domain="1") == ["Activated_on_another_host", "host-a"]
    step(one, "activate", uri)
    step(two, "deactivate", uri)
    assert link(one, uri).exists()
    step(one, "deactivate", uri)
    step(two, "activate", uri)
    assert one.fails("Datapath.activate", uri=uri, domain="1") == ["Activated_on_another_host", "host-b"]
    # What is active is neither destroyed nor left.
    key = uri.rpartition("/")[2]
    assert one.fails("Volume.destroy", sr=sr, key=key)[0] == "Busy"
    assert two.fails("SR.detach", sr=sr)[0] == "Busy"
    # A detach does what a deactivation would have.
    step(two, "detach", uri)
    step(one, "activate", uri)


def test_two_hosts_race(hosts: list[Host], url: str) -> None:  # noqa: F811
    one, two = hosts
    sr = one.create_sr(url)
    two.attach_sr(url, sr)
    uri = uri_of(one, sr)
    for host in hosts:
        host.call("Datapath.attach", uri=uri, domain="1")
    for _ in range(4):
        racing = [host.start("Datapath.activate", uri=uri, domain="1") for host in hosts]
        answers = [process.communicate()[0] for process in racing]
        won = [process.returncode == 0 for process in racing]
        assert sum(won) == 1, answers
        loser = json.loads(answers[won.index(False)])
        assert loser["params"] == ["Activated_on_another_host", hosts[won.index(True)].name]
        step(hosts[won.index(True)], "deactivate", uri)


def test_sharable(hosts: list[Host], url: str) -> None:  # noqa: F811
    one, two = hosts
    sr = one.create_sr(url)
    two.attach_sr(url, sr)
    uri = uri_of(one, sr, sharable=True)
    for host in hosts:
        step(host, "activate", uri)
    step(one, "activate", uri, "2")
    step(one, "deactivate", uri, "1")
    assert link(one, uri).exists()
    for domain in ("1", "2"):
        step(one, "detach", uri, domain)
    assert not link(one, uri).exists()


def test_a_server(hosts: list[Host], url: str) -> None:  # noqa: F811
    """For what has no device of its own: here, as all volumes of the SR are to be served."""
    one, two = hosts
    sr = one.create_sr(url, datapath="nbd")
    two.call("SR.attach", configuration={"url": url, "sr_uuid": sr, "datapath": "nbd"})
    uri = uri_of(one, sr)
    found = devices(one.call("Datapath.attach", uri=uri, domain="1"))
    socket, _, export = found["Nbd"]["uri"].removeprefix("nbd:unix:").partition(":exportname=")
    assert export == uri.rpartition("/")[2] and len(socket) < 108
    for _ in range(2):
        step(one, "activate", uri)
    assert len(servers(one)) == 2
    assert Path(os.path.realpath(found["XenDisk"]["params"])).read_text() == export
    if shutil.which("nbdinfo"):
        size = subprocess.check_output(["nbdinfo", "--size", f"nbd+unix:///{export}?socket={socket}"], text=True)
        assert int(size) == MIB
    two.call("Datapath.attach", uri=uri, domain="1")
    assert two.fails("Datapath.activate", uri=uri, domain="1")[0] == "Busy"
    assert servers(two) == []
    for _ in range(2):
        step(one, "deactivate", uri)
    assert servers(one) == []
    step(two, "activate", uri)
    step(two, "detach", uri)
    assert servers(two) == [] and not list((two.place / "run" / "datapath" / sr).glob("*.json"))


def test_a_chain_is_served(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    """What a directory without reflinks makes of a volume that has a snapshot."""
    host = hosts[0]
    sr = host.create_sr(url)
    made = host.create(sr)
    host.call("Volume.snapshot", sr=sr, key=made["key"])
    uri = made["uri"][0]
    step(host, "activate", uri)
    with volmux.open_pool(url) as pool:
        chained = (pool.volume(made["key"]).depth or 0) > 1
    assert bool(servers(host)) == chained
    assert bool(loops(tmp_path)) != chained
    step(host, "detach", uri)
    assert not servers(host) and not loops(tmp_path)


def test_a_server_that_dies_is_started_again(hosts: list[Host], url: str) -> None:  # noqa: F811
    host = hosts[0]
    sr = host.create_sr(url, datapath="nbd")
    uri = uri_of(host, sr)
    step(host, "activate", uri)
    (ready,) = host.place.glob("run/nbd/*/ready")
    first = json.loads(ready.read_text())["pid"]
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while json.loads(ready.read_text())["pid"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    step(host, "activate", uri)
    # Both are gone, or the supervisor alone, whose server still has the volume: the next activation starts them.
    for names in (["pid", "ready"], ["pid"]):
        before = servers(host)
        for name in names:
            os.kill(json.loads(ready.with_name(name).read_text())["pid"], signal.SIGKILL)
        step(host, "activate", uri)
        assert len(servers(host)) == 2 and not set(before) & set(servers(host))
    step(host, "deactivate", uri)
    assert servers(host) == []


def test_no_device_is_left(hosts: list[Host], url: str) -> None:  # noqa: F811
    host = hosts[0]
    sr = host.create_sr(url, datapath="nbd")
    uris = [uri_of(host, sr) for _ in range(4)]
    for uri in uris[:3]:
        step(host, "activate", uri)
    assert host.fails("Datapath.activate", uri=uris[3], domain="1")[0] == "NoDevice"
    # Nothing of the failed one is left to hinder it.
    step(host, "deactivate", uris[0])
    step(host, "activate", uris[3])
    ends = [os.path.realpath(link(host, uri)) for uri in uris[1:]]
    assert len(set(ends)) == 3
    for uri in uris:
        step(host, "detach", uri)


def test_detach_never_fails(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    host = hosts[0]
    for uri in ("", "nonsense", "volmux://x/y", f"volmux://{uuid.uuid4()}/x", "file:///etc/passwd"):
        step(host, "detach", uri)
    sr = host.create_sr(url)
    uri = uri_of(host, sr)
    step(host, "activate", uri)
    # The program that is needed is not there: it is done when the SR is detached.
    settings = json.loads(host.settings.read_text())
    broken = {**settings, "commands": {**settings["commands"], "losetup": ["false"]}}
    host.settings.write_text(json.dumps(broken))
    assert host.fails("Datapath.deactivate", uri=uri, domain="1")[0] == "CommandFailed"
    step(host, "detach", uri)
    assert host.fails("SR.detach", sr=sr)[0] == "Busy"
    assert loops(tmp_path)
    host.settings.write_text(json.dumps(settings))
    host.call("SR.detach", sr=sr)
    assert not loops(tmp_path)
    with volmux.open_pool(url) as pool:
        assert pool.volume(uri.rpartition("/")[2]).attachments == ()


def test_what_detach_left_hinders_nobody(hosts: list[Host], url: str) -> None:  # noqa: F811
    """A program had the device open."""
    host = hosts[0]
    sr = host.create_sr(url)
    for call in ("destroy", "revert"):
        disk = host.create(sr)
        key, uri = disk["key"], disk["uri"][0]
        snapshot = host.call("Volume.snapshot", sr=sr, key=key)["key"] if call == "revert" else key
        step(host, "activate", uri)
        with open(link(host, uri), "rb"):
            step(host, "detach", uri)
        more = {"snapshot": snapshot} if call == "revert" else {}
        host.call(f"Volume.{call}", sr=sr, key=key, **more)


def test_what_can_not_be_activated(hosts: list[Host], url: str) -> None:  # noqa: F811
    host = hosts[0]
    sr = host.create_sr(url)
    unknown = f"volmux://{sr}/{uuid.uuid4()}"
    for call in ("attach", "activate", "activate_readonly"):
        assert host.fails(f"Datapath.{call}", uri=unknown, domain="1")[0] == "Volume_does_not_exist"
        assert host.fails(f"Datapath.{call}", uri="volmux://x", domain="1")[0] == "InvalidInput"
        elsewhere = f"volmux://{uuid.uuid4()}/x"
        assert host.fails(f"Datapath.{call}", uri=elsewhere, domain="1")[0] == "Sr_not_attached"
    step(host, "deactivate", unknown)
    assert host.fails("Datapath.open", uri=unknown, persistent=False)[0] == "Unimplemented"
    assert host.call("Datapath.open", uri=unknown, persistent=True) is None
    assert host.call("Datapath.close", uri=unknown) is None


def test_a_host_that_was_started_again(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    """What lies below /run is gone, and so are its guests; the pool still has the volume attached to this host."""
    one, two = hosts
    sr = one.create_sr(url)
    two.attach_sr(url, sr)
    uri = uri_of(one, sr)
    step(one, "activate", uri)
    for name in loops(tmp_path):
        subprocess.check_call(["losetup", "-d", name])
    shutil.rmtree(one.place / "run")
    assert two.fails("Datapath.activate", uri=uri, domain="1") == ["Activated_on_another_host", "host-a"]
    one.attach_sr(url, sr)
    step(one, "activate_readonly", uri)
    step(one, "deactivate", uri)
    step(two, "activate", uri)


def test_killed_while_it_activates(hosts: list[Host], url: str, tmp_path: Path) -> None:  # noqa: F811
    host = hosts[0]
    sr = host.create_sr(url)
    uri = uri_of(host, sr)
    host.call("Datapath.attach", uri=uri, domain="1")
    for number in range(6):
        process = host.start("Datapath.activate", uri=uri, domain="1")
        time.sleep(0.05 + 0.05 * number)
        process.kill()
        process.communicate()
        if number % 2:
            step(host, "activate", uri)
            assert len(loops(tmp_path)) == 1 and link(host, uri).exists()
        step(host, "deactivate", uri)
        assert not loops(tmp_path)
        with volmux.open_pool(url) as pool:
            assert pool.volume(uri.rpartition("/")[2]).attachments == ()
