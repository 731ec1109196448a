"""A host with the plugin installed: calls are made as xapi-storage-script makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import volmux

MIB = 1 << 20

#: A server that is told to end, and a wait for the metadata, take far less.
SECONDS = 60


class CallFailed(Exception):
    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report["error"])
        self.report = report
        self.params: list[str] = report["params"]


class Host:
    """One host. Several share pools, and nothing else."""

    def __init__(self, place: Path, name: str, **settings: Any) -> None:
        self.place = place / name
        self.place.mkdir()
        self.name = name
        self.root = self.place / "root"
        self.settings = self.place / "settings.json"
        given = {"host": name, "run": str(self.place / "run"), "launcher": [], **settings}
        self.settings.write_text(json.dumps(given))
        self.environment = {**os.environ, "VOLMUX_SMAPIV3_SETTINGS": str(self.settings)}
        self.command("install", "--root", str(self.root))

    def command(self, *arguments: str) -> str:
        vector = [sys.executable, "-m", "volmux.smapiv3", *arguments]
        done = subprocess.run(vector, env=self.environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def executable(self, call: str) -> Path:
        if call.split(".")[0] in ("Datapath", "Data"):
            return self.root / "datapath" / "volmux" / call
        return self.root / "volume" / "org.xen.xapi.storage.volmux" / call

    def start(self, call: str, /, **arguments: Any) -> subprocess.Popen[str]:
        return self.launch([str(self.executable(call)), "--json"], **arguments)

    def launch(self, vector: list[str], **arguments: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            vector,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"dbg": "test", **arguments}))
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, call: str, /, **arguments: Any) -> Any:
        return self.raw(call, json.dumps({"dbg": "test", **arguments}))

    def raw(self, call: str, text: str | bytes, *options: str) -> Any:
        done = subprocess.run(
            [self.executable(call), *(options or ("--json",))],
            input=text.encode() if isinstance(text, str) else text,
            capture_output=True,
            env=self.environment,
            timeout=SECONDS,
        )
        answer = json.loads(done.stdout)
        if done.returncode:
            assert set(answer) == {"code", "params", "error", "backtrace"}, done.stderr
            raise CallFailed(answer)
        return answer

    def fails(self, call: str, /, **arguments: Any) -> list[str]:
        with pytest.raises(CallFailed) as caught:
            self.call(call, **arguments)
        return caught.value.params

    def create_sr(self, url: str, **more: str) -> str:
        sr = str(uuid.uuid4())
        configuration = {"url": url, **more}
        complete = self.call("SR.create", uuid=sr, configuration=configuration, name="fast", description="disks")
        attached = self.call("SR.attach", configuration=complete)
        assert attached == sr
        return sr

    def attach_sr(self, url: str, sr: str) -> None:
        assert self.call("SR.attach", configuration={"url": url, "sr_uuid": sr}) == sr

    def create(self, sr: str, name: str = "disk", size: int = MIB, sharable: bool = False) -> dict[str, Any]:
        made = self.call("Volume.create", sr=sr, name=name, description="", size=size, sharable=sharable)
        assert isinstance(made, dict)
        return made


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "pool").mkdir()
    return f"dir://{tmp_path / 'pool'}"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, "host-a")


@pytest.fixture
def other(tmp_path: Path) -> Host:
    return Host(tmp_path, "host-b")


@pytest.fixture
def sr(host: Host, url: str) -> str:
    return host.create_sr(url)


@pytest.fixture
def pool(url: str, sr: str) -> Iterator[volmux.Pool]:
    """The pool of the SR, looked at from outside."""
    with volmux.open_pool(url) as opened:
        yield opened


def write(pool: volmux.Pool, key: str, offset: int, data: bytes) -> None:
    with pool.open_volume(key, access="read-write") as device:
        device.write_at(offset, data)
