"""The contract of pools, as the conformance suite has it, told in Python."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from conftest import BLOCK, MIB, read, write

import volmux
from volmux import Access, Provisioning, Sharing, Support


def test_create_is_idempotent(pool: volmux.Pool) -> None:
    made = pool.create_volume("web", "16MiB")
    assert (made.name, made.virtual_size) == ("web", 16 * MIB)
    assert made.provisioning is Provisioning.THIN
    assert pool.create_volume("web", 16 * MIB).id == made.id
    with pytest.raises(volmux.AlreadyExists):
        pool.create_volume("web", 32 * MIB)
    assert pool.volume("web").virtual_size == 16 * MIB


def test_created_now_in_utc(pool: volmux.Pool) -> None:
    created = pool.create_volume("web", MIB).created
    assert created.tzinfo is datetime.timezone.utc
    assert abs(datetime.datetime.now(datetime.timezone.utc) - created) < datetime.timedelta(hours=1)


def test_what_is_not_there(pool: volmux.Pool) -> None:
    assert pool.find_volume("web") is None
    pool.delete_volume("web")
    for call in (
        lambda: pool.volume("web"),
        lambda: pool.open_volume("web"),
        lambda: pool.snapshot_volume("web", "s"),
        lambda: pool.rename_volume("web", "s"),
        lambda: pool.extents("web"),
    ):
        with pytest.raises(volmux.NotFound):
            call()
    assert pool.volumes() == []


def test_unwritten_reads_as_zeros(pool: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    assert read(pool, "web", 8 * MIB) == bytes(BLOCK)
    write(pool, "web", MIB, b"x" * BLOCK)
    assert read(pool, "web", MIB) == b"x" * BLOCK
    assert read(pool, "web", MIB + BLOCK) == bytes(BLOCK)


def test_discard_and_zeroes(pool: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    with pool.open_volume("web", access=Access.READ_WRITE) as device:
        device.write_at(0, b"x" * (4 * BLOCK))
        device.discard(0, BLOCK)
        device.write_zeroes(BLOCK, BLOCK, may_discard=True)
        device.flush()
        assert device.read_at(0, 2 * BLOCK) == bytes(2 * BLOCK)
        assert device.read_at(2 * BLOCK, 2 * BLOCK) == b"x" * (2 * BLOCK)
        assert sum(extent.length for extent in device.extents()) >= 2 * BLOCK


def test_a_snapshot_stands_on_its_own(pool: volmux.Pool) -> None:
    web = pool.create_volume("web", 16 * MIB)
    write(pool, "web", 0, b"A" * BLOCK)
    monday = pool.snapshot_volume("web", "monday")
    assert monday.is_snapshot and monday.origin is not None
    assert (monday.origin.parent_id, monday.origin.parent_name) == (web.id, "web")
    assert pool.snapshot_volume("web", "monday").id == monday.id
    write(pool, "web", 0, b"B" * BLOCK)
    with pytest.raises(volmux.InvalidInput):
        pool.open_volume("monday", access="read-write")
    pool.delete_volume("web")
    assert read(pool, "monday") == b"A" * BLOCK


def test_clones_and_copies(pool: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    write(pool, "web", 0, b"A" * BLOCK)
    pool.snapshot_volume("web", "monday")
    clone = pool.clone_volume("monday", "test")
    copy = pool.copy_volume("test", "spare")
    assert clone.origin is not None and copy.origin is not None
    assert (str(clone.origin.kind), str(copy.origin.kind)) == ("clone", "copy")
    write(pool, "test", 0, b"C" * BLOCK)
    assert read(pool, "monday") == read(pool, "spare") == b"A" * BLOCK
    assert pool.flatten_volume("test").id == clone.id
    with pytest.raises(volmux.InvalidInput):
        pool.flatten_volume("monday")
    assert read(pool, "test") == b"C" * BLOCK


def test_copies_into_another_pool(pool: volmux.Pool, memory: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    write(pool, "web", 3 * MIB, b"A" * BLOCK)
    seen: list[volmux.Progress] = []
    copy = pool.copy_volume_to("web", memory, "web-copy", control=volmux.Control(seen.append))
    assert (copy.name, copy.virtual_size) == ("web-copy", 16 * MIB)
    assert read(memory, "web-copy", 3 * MIB) == b"A" * BLOCK
    assert seen[-1].done == seen[-1].total >= BLOCK
    with pytest.raises(volmux.AlreadyExists):
        pool.copy_volume_to("web", memory, "web-copy")


def test_revert(pool: volmux.Pool) -> None:
    web = pool.create_volume("web", 16 * MIB)
    write(pool, "web", 0, b"A" * BLOCK)
    pool.snapshot_volume("web", "monday")
    write(pool, "web", 0, b"B" * BLOCK)
    assert pool.revert_volume("web", "monday").id == web.id
    assert read(pool, "web") == b"A" * BLOCK
    pool.create_volume("other", 16 * MIB)
    with pytest.raises(volmux.InvalidInput):
        pool.revert_volume("other", "monday")


def test_resize(pool: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    with pool.open_volume("web", access="read-write") as device:
        assert pool.resize_volume("web", "32MiB").virtual_size == 32 * MIB
        assert device.refresh() == device.size == 32 * MIB
    with pytest.raises(volmux.InvalidInput):
        pool.resize_volume("web", "16MiB")
    assert pool.resize_volume("web", "16MiB", allow_shrink=True).virtual_size == 16 * MIB


def test_rename(pool: volmux.Pool) -> None:
    web = pool.create_volume("web", MIB)
    assert pool.rename_volume("web", "www").id == web.id
    with pytest.raises(volmux.NotFound):
        pool.rename_volume("web", "www")
    pool.create_volume("web", MIB)
    with pytest.raises(volmux.AlreadyExists):
        pool.rename_volume("web", "www")
    assert [volume.name for volume in pool.volumes()] == ["web", "www"]


def test_extents(pool: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    write(pool, "web", MIB, b"A" * BLOCK)
    extents = pool.extents("web")
    assert extents.granularity > 0
    assert covers(list(extents), MIB, BLOCK)
    pool.snapshot_volume("web", "monday")
    write(pool, "web", 8 * MIB, b"B" * BLOCK)
    changed = pool.extents("web", since="monday")
    assert isinstance(changed.grade, volmux.Grade)
    ranges = list(changed)
    assert covers(ranges, 8 * MIB, BLOCK)
    if changed.grade is volmux.Grade.EXACT:
        assert sum(length for _, length in ranges) <= changed.granularity + BLOCK
    assert list(pool.extents("web", since="monday", offset=12 * MIB)) == []
    assert list(pool.extents("web", offset=0, length=BLOCK)) == []
    with pytest.raises(volmux.InvalidInput):
        pool.extents("web", offset=16 * MIB, length=1)
    with pytest.raises(volmux.InvalidInput):
        pool.extents("web", offset=17 * MIB)


def covers(ranges: list[volmux.ByteRange], offset: int, length: int) -> bool:
    return any(r.offset <= offset and r.end >= offset + length for r in ranges)


def test_one_writer(pool: volmux.Pool) -> None:
    pool.create_volume("web", 16 * MIB)
    with pool.open_volume("web", access="read-write"):
        with pool.open_volume("web") as reader:
            assert reader.access is Access.READ_ONLY
            with pytest.raises(volmux.InvalidInput):
                reader.write_at(0, b"x")
        with pytest.raises(volmux.Busy) as caught:
            pool.open_volume("web", access="read-write")
        assert caught.value.is_retryable
        with pytest.raises(volmux.Busy):
            pool.delete_volume("web")
    with pool.open_volume("web", access="read-write"):
        pass


def test_shared_writers(memory: volmux.Pool) -> None:
    assert memory.capabilities().shared_writers
    memory.create_volume("web", 16 * MIB)
    how = {"access": Access.READ_WRITE, "sharing": Sharing.SHARED}
    with memory.open_volume("web", **how) as one, memory.open_volume("web", **how) as two:  # type: ignore[arg-type]
        one.write_at(0, b"one")
        assert two.read_at(0, 3) == b"one"


def test_a_writer_that_was_taken_over_is_fenced(memory: volmux.Pool) -> None:
    assert memory.capabilities().fencing is Support.NATIVE
    memory.create_volume("web", 16 * MIB)
    old = memory.open_volume("web", access="read-write")
    with memory.open_volume("web", access="read-write", take_over=True) as new:
        with pytest.raises(volmux.Fenced):
            old.write_at(0, b"old")
        with pytest.raises(volmux.Fenced):
            old.close()
        assert old.closed
        new.write_at(0, b"new")
    assert read(memory, "web", 0, 3) == b"new"


def test_attach_and_detach_can_be_repeated(tmp_path: Path) -> None:
    with volmux.open_pool(tmp_path) as pool:
        web = pool.create_volume("web", 16 * MIB)
        attachment = pool.attach_volume("web", "host-1", access="read-write")
        assert pool.attach_volume("web", "host-1", access="read-write") == attachment
        assert (attachment.volume, attachment.id, attachment.holder) == ("web", web.id, "host-1")
        assert isinstance(attachment.target, (volmux.FileTarget, volmux.Qcow2Target))
        assert attachment.target.path.is_file()
        assert pool.volume("web").attachments == (
            volmux.AttachOptions("host-1", Access.READ_WRITE, Sharing.EXCLUSIVE),
        )
        with pytest.raises(volmux.Busy):
            pool.attach_volume("web", "host-2", access="read-write")
        pool.detach_volume("web", "host-1")
        pool.detach_volume("web", "host-1")
        assert pool.volume("web").attachments == ()


def test_what_a_pool_can_not_do(memory: volmux.Pool) -> None:
    assert not memory.capabilities().attach
    for call in (
        lambda: memory.attach_volume("web", "host"),
        lambda: memory.adopt_volume("web", "web"),
    ):
        memory.create_volume("web", MIB)
        with pytest.raises(volmux.Unsupported) as caught:
            call()
        assert isinstance(caught.value, NotImplementedError)


def test_adopt(tmp_path: Path) -> None:
    (tmp_path / "image.raw").write_bytes(b"A" * MIB)
    with volmux.open_pool(tmp_path, init=True) as pool:
        pool.create_volume("first", MIB)
        kinds = {finding.kind for finding in pool.audit().findings}
        assert kinds == {volmux.FindingKind.FOREIGN}
        assert pool.adopt_volume(Path("image.raw"), "web").virtual_size == MIB
        assert read(pool, "web") == b"A" * BLOCK


def test_audit_scrub_and_garbage(pool: volmux.Pool) -> None:
    pool.create_volume("web", MIB)
    report = pool.audit(repair=True)
    assert report.is_clean and report.volumes == 1 and report.findings == ()
    assert isinstance(pool.collect_garbage(), volmux.Collected)


def test_scrub() -> None:
    with volmux.open_pool("memory+object:", init=True) as pool:
        pool.create_volume("web", MIB)
        assert pool.scrub().is_clean


def test_usage_and_policy(memory: volmux.Pool) -> None:
    usage, policy = memory.usage(), memory.policy()
    assert usage.free <= usage.total == 1 << 40
    assert policy.pressure(usage) is volmux.Pressure.NORMAL
    with volmux.open_pool("memory:", total="1MiB", warn_percent=50) as small:
        assert small.policy().warn_percent == 50.0
        small.create_volume("web", "1MiB")
        assert small.usage().overcommit == 1.0
        write(small, "web", 0, bytes([1]) * (600 << 10))
        assert small.policy().pressure(small.usage()) is volmux.Pressure.WARN
        with pytest.raises(volmux.NoSpace) as caught:
            small.create_volume("thick", "1MiB", provisioning=Provisioning.THICK)
        assert isinstance(caught.value, OSError)


def test_volumes_stream(pool: volmux.Pool) -> None:
    names = {f"v{number}" for number in range(300)}
    for name in names:
        pool.create_volume(name, MIB)
    volumes = pool.list_volumes()
    assert iter(volumes) is volumes
    assert {volume.name for volume in volumes} == names
    assert next(volumes, None) is None
