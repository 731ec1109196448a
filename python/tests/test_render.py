"""What hypervisors are given of attachments."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import MIB

import volmux
from volmux import Access, Attachment, Hypervisor

ID = uuid.UUID(int=5)


def attached(target: volmux.AttachTarget, access: Access = Access.READ_WRITE) -> Attachment:
    return Attachment("web", ID, "host", access, target)


def test_of_a_pool(tmp_path: Path) -> None:
    with volmux.open_pool(tmp_path) as pool:
        volume = pool.create_volume("web", MIB)
        attachment = pool.attach_volume("web", "host", access="read-write")
        rendered = attachment.render(Hypervisor.QEMU, node="disk0")
        assert rendered.hypervisor is Hypervisor.QEMU and rendered.node == "disk0"
        assert rendered.serial == str(volume.id)
        assert str(tmp_path) in rendered.text and any(str(tmp_path) in part for part in rendered.arguments)
        for line in attachment.render("qmp").text.splitlines():
            assert "execute" in json.loads(line)
        disk = ElementTree.fromstring(attachment.render("libvirt", device="vdb").text)
        target = disk.find("target")
        assert disk.tag == "disk" and target is not None and target.get("dev") == "vdb"
        pool.detach_volume("web", "host")


@pytest.mark.parametrize(
    "target",
    [
        volmux.FileTarget(Path("/srv/web.raw")),
        volmux.BlockDeviceTarget(Path("/dev/vg/web")),
        volmux.Qcow2Target(Path("/srv/web.qcow2")),
        volmux.IscsiTarget(
            "host:3260", "iqn.2026-01.example:web", 1, "serial", volmux.ChapReference("u", Path("/run/s")), None
        ),
        volmux.NbdTarget("unix:/run/web.sock", "web"),
        volmux.NbdTarget("tcp:[::1]:10809", "web", True),
    ],
    ids=lambda target: type(target).__name__,
)
def test_each_target(target: volmux.AttachTarget) -> None:
    for hypervisor in Hypervisor:
        try:
            rendered = attached(target).render(hypervisor)
        except volmux.Unsupported as refused:
            assert refused.help, hypervisor
        else:
            assert rendered.text and rendered.hypervisor is hypervisor
    assert attached(target).render("qemu").text


def test_what_is_served_can_be_rendered(memory: volmux.Pool, tmp_path: Path) -> None:
    web = memory.create_volume("web", MIB)
    with memory.serve("web", listen=tmp_path / "socket") as server:
        target = volmux.NbdTarget(server.addresses[0], "web")
        attachment = Attachment("web", web.id, "host", Access.READ_ONLY, target)
        assert str(tmp_path / "socket") in attachment.render("qemu").text


def test_an_image_for_hyper_v() -> None:
    image = "D:\\disks\\web.vhdx"
    assert image in attached(volmux.FileTarget(Path("/srv/web.raw"))).render("hyperv", vhdx=image).text


def test_what_is_wrong() -> None:
    file = attached(volmux.FileTarget(Path("/srv/web.raw")))
    calls: tuple[Callable[[], object], ...] = (
        lambda: file.render("vmware"),
        lambda: file.render("qemu", node="1 2"),
        lambda: file.render("libvirt", device="/dev/sda"),
        lambda: file.render("qemu", bus="ide"),
        lambda: file.render("qemu", host_device="relative"),
        lambda: file.render("hyperv", vhdx="web.vhdx"),
        lambda: file.render("qemu", vhdx="D:\\web.vhdx"),
        lambda: attached(volmux.NbdTarget("host", "web")).render("qemu"),
        lambda: attached(volmux.OtherTarget("x")).render("qemu"),
        lambda: attached(volmux.FileTarget(Path("relative"))).render("qemu"),
    )
    for call in calls:
        with pytest.raises(volmux.InvalidInput):
            call()
    with pytest.raises(TypeError):
        file.render("qemu", shared="yes")  # type: ignore[arg-type]
