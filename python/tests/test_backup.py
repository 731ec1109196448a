"""examples/backup.py: what it writes comes back, and what is damaged is refused before anything is written."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import BLOCK, MIB, write

import volmux

PROGRAM = Path(__file__).parents[2] / "examples" / "backup.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("backup", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["backup"] = module
    spec.loader.exec_module(module)
    return module


backup = load()


def content(pool: volmux.Pool, name: str) -> bytes:
    with pool.open_volume(name) as device:
        return device.read_at(0, device.size)


@pytest.fixture
def chain(pool: volmux.Pool, tmp_path: Path) -> list[Path]:
    """Three backups of a volume that is written, discarded, resized and written again between them."""
    files = [tmp_path / f"web-{number}.backup" for number in range(3)]
    pool.create_volume("web", 16 * MIB)
    write(pool, "web", 0, b"A" * (3 * MIB))
    write(pool, "web", 8 * MIB, b"B" * BLOCK)
    parent = backup.backup(pool, "web", files[0], None).snapshot
    write(pool, "web", MIB, b"C" * BLOCK)
    with pool.open_volume("web", access="read-write") as device:
        device.discard(8 * MIB, BLOCK)
    pool.resize_volume("web", 24 * MIB)
    write(pool, "web", 20 * MIB, b"D" * (2 * MIB))
    parent = backup.backup(pool, "web", files[1], parent).snapshot
    write(pool, "web", 4 * MIB, b"E" * BLOCK)
    backup.backup(pool, "web", files[2], parent)
    return files


def test_a_chain_comes_back_in_another_pool(pool: volmux.Pool, chain: list[Path], memory: volmux.Pool) -> None:
    assert len(backup.verify(chain)) == 3
    restored = backup.restore(memory, "again", chain)
    assert restored.virtual_size == 24 * MIB
    assert content(memory, "again") == content(pool, "web")
    assert [volume.name for volume in memory.volumes()] == ["again"]
    # Each point in time comes back, and what is sparse stays so.
    backup.restore(memory, "first", chain[:1])
    assert content(memory, "first")[8 * MIB : 8 * MIB + BLOCK] == b"B" * BLOCK
    assert memory.usage().used < 16 * MIB


@pytest.mark.parametrize(
    ("offset", "where"),
    [
        (2 * MIB, "an extent of the first file"),
        (20 * MIB, "an extent of a later one"),
        (MIB, "what a later file tells otherwise"),
        (8 * MIB, "what was discarded"),
        (12 * MIB, "what was never written"),
        (24 * MIB - 1, "the end"),
    ],
)
def test_a_volume_that_differs_is_told(chain: list[Path], memory: volmux.Pool, offset: int, where: str) -> None:
    backup.restore(memory, "again", chain)
    backup.compare(memory, "again", chain)
    write(memory, "again", offset, b"x")
    with pytest.raises(backup.Wrong, match="differs"):
        backup.compare(memory, "again", chain)


def test_an_older_state_differs(chain: list[Path], memory: volmux.Pool) -> None:
    backup.restore(memory, "older", chain[:2])
    backup.compare(memory, "older", chain[:2])
    with pytest.raises(backup.Wrong):
        backup.compare(memory, "older", chain)
    with pytest.raises(backup.Wrong):
        backup.compare(memory, "older", chain[:1])


def test_a_range_is_looked_at_once() -> None:
    chance = random.Random(7)
    for _ in range(200):
        seen = backup.Seen()
        there: set[int] = set()
        for _ in range(12):
            start = chance.randrange(40)
            end = start + 1 + chance.randrange(12)
            new = {at for part in seen.add(start, end) for at in range(*part)}
            assert new == set(range(start, end)) - there
            there |= new


def test_increments_are_small(chain: list[Path]) -> None:
    sizes = [path.stat().st_size for path in chain]
    assert sizes[0] > 3 * MIB
    assert sizes[2] < 512 << 10


def test_a_volume_that_was_shrunk_and_grown(memory: volmux.Pool, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(3)]
    memory.create_volume("web", 4 * MIB)
    write(memory, "web", 0, b"A" * (4 * MIB))
    parent = None
    for file, size in zip(files, (4 * MIB, 2 * MIB, 3 * MIB)):
        memory.resize_volume("web", size, allow_shrink=True)
        parent = backup.backup(memory, "web", file, parent).snapshot
    with volmux.open_pool("memory:") as other:
        backup.restore(other, "web", files)
        assert content(other, "web") == b"A" * (2 * MIB) + bytes(MIB)
        backup.restore(other, "two", files[:2])
        assert content(other, "two") == b"A" * (2 * MIB)


def damaged(path: Path) -> dict[str, bytes]:
    """Ways in which a file may be wrong."""
    whole = path.read_bytes()
    half = len(whole) // 2

    def flip(position: int) -> bytes:
        return whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]

    def sealed(body: bytes) -> bytes:
        """With a checksum that fits, as a wrong program would write it."""
        return body + hashlib.sha256(body).digest()

    end = len(whole) - 32
    return {
        "empty": b"",
        "no magic": b"x" + whole[1:],
        "magic alone": whole[:8],
        "half": whole[:half],
        "without its last byte": whole[:-1],
        "without its end": whole[: end - 9],
        "more": whole + b"x",
        "in the header": flip(20),
        "in the data": flip(half),
        "in the number of extents": flip(end - 1),
        "in the checksum": flip(len(whole) - 1),
        "a huge header": whole[:8] + b"\xff\xff\xff\xff" + whole[12:],
        "an extent past the end": sealed(
            whole[: end - 9] + b"Z" + (1 << 50).to_bytes(8, "little") + bytes([1]) + bytes(7) + whole[end - 9 : end]
        ),
        "out of order": sealed(whole[: end - 9] + b"Z" + bytes(8) + bytes([1]) + bytes(7) + whole[end - 9 : end]),
        "another kind of extent": sealed(whole[: end - 9] + b"Q" + whole[end - 9 : end]),
    }


def test_what_is_damaged_is_refused_before_anything_is_written(chain: list[Path], memory: volmux.Pool) -> None:
    whole = chain[1].read_bytes()
    for way, bad in damaged(chain[1]).items():
        chain[1].write_bytes(bad)
        with pytest.raises(backup.Wrong):
            backup.restore(memory, "web", chain)
            pytest.fail(way)
        assert memory.volumes() == [] and memory.usage().used == 0, way
    chain[1].write_bytes(whole)
    backup.restore(memory, "web", chain)


def test_every_byte_counts(memory: volmux.Pool, tmp_path: Path) -> None:
    memory.create_volume("web", 8192)
    write(memory, "web", 0, b"x" * 512)
    path, bad = tmp_path / "web.backup", tmp_path / "bad.backup"
    backup.backup(memory, "web", path, None)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        bad.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(backup.Wrong):
            backup.verify([bad])
        bad.write_bytes(whole[:position])
        with pytest.raises(backup.Wrong):
            backup.verify([bad])


def test_the_wrong_order_is_refused(chain: list[Path], memory: volmux.Pool) -> None:
    first, second, third = chain
    for order in ([], [second], [second, first], [first, third], [first, first], [first, third, second]):
        with pytest.raises(backup.Wrong):
            backup.restore(memory, "web", order)
    assert memory.volumes() == []


def test_what_is_there_stays(pool: volmux.Pool, chain: list[Path]) -> None:
    before = chain[0].read_bytes()
    volumes = len(pool.volumes())
    with pytest.raises(backup.Wrong):
        backup.backup(pool, "web", chain[0], None)
    with pytest.raises(backup.Wrong):
        backup.restore(pool, "web", chain)
    assert chain[0].read_bytes() == before
    assert len(pool.volumes()) == volumes
    assert {path.name for path in chain[0].parent.iterdir()} - {"pool"} == {path.name for path in chain}


def test_an_increment_needs_its_parent(pool: volmux.Pool, chain: list[Path], tmp_path: Path) -> None:
    with backup.reading(chain[2]) as reader:
        last = reader.header.snapshot
    pool.create_volume("other", MIB)
    with pytest.raises(backup.Wrong, match="not a snapshot of"):
        backup.backup(pool, "other", tmp_path / "x", last)
    pool.delete_volume(last.name)
    pool.snapshot_volume("web", last.name)
    with pytest.raises(backup.Wrong, match="full backup"):
        backup.backup(pool, "web", tmp_path / "x", last)


def test_the_program(tmp_path: Path) -> None:
    def run(*given: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, given)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (f"dir://{tmp_path}/{name}" for name in ("one", "two"))
    first, second = tmp_path / "0.backup", tmp_path / "1.backup"
    with volmux.open_pool(one) as pool:
        pool.create_volume("web", 4 * MIB)
        write(pool, "web", MIB, b"A" * BLOCK)
        assert run("full", one, "web", first).returncode == 0
        write(pool, "web", 2 * MIB, b"B" * BLOCK)
        done = run("incremental", one, "web", second, "--parent", first, "--drop-parent")
        assert done.returncode == 0, done.stderr
        assert len(pool.volumes()) == 2
        assert run("verify", first, second).stdout.count("4 MiB") == 2
        assert run("restore", two, "again", first, second).stdout == "restored again: 4 MiB\n"
        assert run("compare", two, "again", first, second).returncode == 0
        differs = run("compare", two, "again", first)
        assert differs.returncode == 1 and "differs" in differs.stderr
        with volmux.open_pool(two) as other:
            assert content(other, "again") == content(pool, "web")
    second.write_bytes(second.read_bytes()[:-1])
    failed = run("restore", two, "third", first, second)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("backup: ") and "ends too early" in failed.stderr
    with volmux.open_pool(two) as other:
        assert [volume.name for volume in other.volumes()] == ["again"]
