"""Names, types and results of all calls, held against a table of xapi's IDL."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from smapi_host import MIB, CallFailed, Host, host, pool, sr, url, write  # noqa: F401

import volmux
from volmux.smapiv3 import idl

# Of ocaml/xapi-storage/generator/lib: {plugin,control,data,task}.ml. s: string, i: integer, b: boolean, m: map of
# strings, l: list of blocks, o: operation. Each call has dbg (s) besides.
TABLE = """
Plugin.query              -> query
Plugin.ls                 -> strings
Plugin.diagnostics        -> string
SR.probe                  configuration:m -> probed
SR.create                 uuid:s configuration:m name:s description:s -> map
SR.attach                 configuration:m -> string
SR.detach                 sr:s -> unit
SR.destroy                sr:s -> unit
SR.stat                   sr:s -> sr
SR.set_name               sr:s new_name:s -> unit
SR.set_description        sr:s new_description:s -> unit
SR.ls                     sr:s -> volumes
Volume.create             sr:s name:s description:s size:i sharable:b -> volume
Volume.snapshot           sr:s key:s -> volume
Volume.clone              sr:s key:s -> volume
Volume.copy               sr:s key:s dest_sr:s -> volume
Volume.destroy            sr:s key:s -> unit
Volume.revert             sr:s snapshot:s key:s -> unit
Volume.set_name           sr:s key:s new_name:s -> unit
Volume.set_description    sr:s key:s new_description:s -> unit
Volume.set                sr:s key:s k:s v:s -> unit
Volume.unset              sr:s key:s k:s -> unit
Volume.resize             sr:s key:s new_size:i -> unit
Volume.stat               sr:s key:s -> volume
Volume.compare            sr:s key:s key2:s -> blocks
Volume.similar_content    sr:s key:s -> strings
Volume.enable_cbt         sr:s key:s -> unit
Volume.disable_cbt        sr:s key:s -> unit
Volume.data_destroy       sr:s key:s -> unit
Volume.list_changed_blocks sr:s key:s key2:s offset:i length:i -> changed
Volume.compose            sr:s key:s key2:s -> unit
Datapath.open             uri:s persistent:b -> unit
Datapath.attach           uri:s domain:s -> backend
Datapath.activate         uri:s domain:s -> unit
Datapath.activate_readonly uri:s domain:s -> unit
Datapath.import_activate  uri:s domain:s -> string
Datapath.deactivate       uri:s domain:s -> unit
Datapath.detach           uri:s domain:s -> unit
Datapath.close            uri:s -> unit
Data.copy                 uri:s domain:s remote:s blocklist:l -> operation
Data.mirror               uri:s domain:s remote:s -> operation
Data.stat                 operation:o -> status
Data.cancel               operation:o -> unit
Data.destroy              operation:o -> unit
Data.ls                   -> operations
Task.stat                 id:s -> task
Task.cancel               id:s -> unit
Task.destroy              id:s -> unit
Task.ls                   -> strings
"""

KINDS = {"s": "string", "i": "int", "b": "bool", "m": "string map", "l": "blocklist", "o": "operation"}

#: A value of each type, and some that are of another.
GOOD: dict[str, Any] = {
    "s": "x",
    "i": 1,
    "b": True,
    "m": {"url": "dir:///nowhere"},
    "l": {"blocksize": 1, "ranges": [[0, 1]]},
    "o": ["CopyV1", "x"],
}
BAD: dict[str, list[Any]] = {
    "s": [1, None, ["x"], {}],
    "i": ["1", 1.5, True, None, 1 << 63],
    "b": [0, "true", None],
    "m": [[], "x", {"a": 1}, None],
    "l": [{}, {"blocksize": 1}, {"blocksize": 1, "ranges": [[1]]}, {"blocksize": 1, "ranges": [[1, "2"]]}, []],
    "o": ["CopyV1", ["CopyV1"], ["Other", "x"], ["CopyV1", 1], None],
}


def rows() -> dict[str, tuple[dict[str, str], str]]:
    table = {}
    for line in TABLE.strip().splitlines():
        left, _, result = line.partition(" -> ")
        call, *arguments = left.split()
        table[call] = (dict(argument.split(":") for argument in arguments), result.strip())
    return table


def is_volume(value: Any) -> bool:
    kinds: dict[str, Any] = {
        "key": str,
        "uuid": str,
        "name": str,
        "description": str,
        "read_write": bool,
        "sharable": bool,
        "virtual_size": int,
        "physical_utilisation": int,
        "uri": list,
        "keys": dict,
        "volume_type": str,
        "cbt_enabled": bool,
    }
    typed = {name: type(item) for name, item in value.items()} == kinds
    return typed and value["volume_type"] in ("Data", "CBT_Metadata", "Data_and_CBT_Metadata")


def is_sr(value: Any) -> bool:
    kinds = {"sr": str, "name": str, "uuid": str, "description": str, "free_space": int, "total_space": int}
    more = {"datasources": list, "clustered": bool, "health": list}
    healths = ("Healthy", "Recovering", "Unreachable", "Unavailable")
    typed = {name: type(item) for name, item in value.items()} == {**kinds, **more}
    return typed and value["health"][0] in healths and isinstance(value["health"][1], str)


def is_probed(value: Any) -> bool:
    for one in value:
        if set(one) - {"sr"} != {"configuration", "complete", "extra_info"}:
            return False
        # As xapi-storage-script demands: what can be attached has its uuid.
        if "sr" in one and not (is_sr(one["sr"]) and one["complete"] and "sr_uuid" in one["configuration"]):
            return False
    return isinstance(value, list)


def is_query(value: Any) -> bool:
    texts = {"plugin", "name", "description", "vendor", "copyright", "version", "required_api_version"}
    lists = {"features", "required_cluster_stack"}
    right = set(value) == texts | lists | {"configuration"}
    return right and all(isinstance(value[name], str) for name in texts) and is_map(value["configuration"])


def is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def is_backend(value: Any) -> bool:
    kinds = {"XenDisk": {"params", "extra", "backend_type"}, "BlockDevice": {"path"}, "File": {"path"}, "Nbd": {"uri"}}
    found = value["implementations"]
    return set(value) == {"implementations"} and all(set(item) == kinds[kind] for kind, item in found)


def is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_blocks(value: Any) -> bool:
    return set(value) == {"blocksize", "ranges"} and idl.CHECKS["blocklist"](value)


STATUS = {"failed": bool, "complete": bool, "progress": float}

RESULTS: dict[str, Callable[[Any], bool]] = {
    "unit": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "strings": is_strings,
    "map": is_map,
    "query": is_query,
    "probed": is_probed,
    "sr": is_sr,
    "volume": is_volume,
    "volumes": lambda value: all(map(is_volume, value)),
    "blocks": is_blocks,
    "changed": lambda value: {name: type(item) for name, item in value.items()} == {"granularity": int, "bitmap": str},
    "backend": is_backend,
    "operation": idl.CHECKS["operation"],
    "operations": lambda value: all(map(idl.CHECKS["operation"], value)),
    "status": lambda value: {name: type(one) for name, one in value.items()} == STATUS,
}


def test_arguments_are_those_of_the_idl() -> None:
    table = {call: arguments for call, (arguments, _) in rows().items()}
    assert idl.CALLS == {
        call: {name: KINDS[kind] for name, kind in arguments.items()} for call, arguments in table.items()
    }


def test_what_is_installed(host: Host) -> None:
    for call in rows():
        path = host.executable(call)
        assert path.is_symlink() and os.access(path, os.X_OK)
    volume = host.root / "volume" / "org.xen.xapi.storage.volmux"
    datapath = host.root / "datapath" / "volmux"
    assert {path.name.split(".")[0] for path in volume.iterdir()} == {*idl.VOLUME, "volmux-smapiv3"}
    assert {path.name.split(".")[0] for path in datapath.iterdir()} == {*idl.DATAPATH, "volmux-smapiv3"}
    assert sorted(path.name for path in host.root.iterdir()) == ["datapath", "volume"]
    assert stat.S_IMODE((volume / "volmux-smapiv3").stat().st_mode) == 0o755
    host.command("install", "--root", str(host.root))
    assert host.call("Plugin.ls") == []
    host.command("uninstall", "--root", str(host.root))
    assert not volume.exists() and not datapath.exists()


def test_the_names_xapi_uses_are_in_any_case(host: Host) -> None:
    query = host.executable("Plugin.query")
    query.rename(query.with_name("Plugin.Query"))
    assert is_query(host.call("Plugin.Query"))


def test_every_argument_is_checked() -> None:
    """In this process: by real calls, it would take minutes."""
    for call, (arguments, _) in rows().items():
        good = {"dbg": "", **{name: GOOD[kind] for name, kind in arguments.items()}}
        assert idl.take(call, {**good, "else": 1}) == good
        for name, kind in {"dbg": "s", **arguments}.items():
            with pytest.raises(Exception, match=f"{call}: the argument {name} is missing"):
                idl.take(call, {key: value for key, value in good.items() if key != name})
            for bad in BAD[kind]:
                with pytest.raises(Exception, match=f"{call}: the argument {name} is not of type {KINDS[kind]}"):
                    idl.take(call, {**good, name: bad})


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff\xfe", b"{}", b'{"dbg": 1}', b"[" * 100_000, b"\0" * 4096],
)
def test_garbage(host: Host, text: bytes) -> None:
    with pytest.raises(CallFailed) as caught:
        host.raw("SR.ls", text)
    report = caught.value.report
    assert report["code"] == "SR_BACKEND_FAILURE" and report["params"][0] == "InvalidInput"
    assert set(report["backtrace"]) == {"error", "files", "lines"}
    assert len(report["backtrace"]["files"]) == len(report["backtrace"]["lines"])


def test_other_options_and_other_names(host: Host) -> None:
    with pytest.raises(CallFailed) as caught:
        host.raw("Plugin.query", "{}", "--test")
    assert caught.value.params[0] == "InvalidInput"
    query = host.executable("Plugin.query")
    query.rename(query.with_name("Plugin.reboot"))
    assert host.fails("Plugin.reboot") == ["Unimplemented", "Plugin.reboot"]


def test_every_call_and_its_result(host: Host, url: str, sr: str, pool: volmux.Pool) -> None:
    """Each call once, in the order of a disk's life; what is left out is unimplemented, and says so."""
    seen = set()

    def call(name: str, /, **arguments: Any) -> Any:
        seen.add(name)
        result = host.call(name, **arguments)
        assert RESULTS[rows()[name][1]](result), (name, result)
        return result

    def fails(name: str, /, **arguments: Any) -> str:
        seen.add(name)
        return host.fails(name, **arguments)[0]

    seen |= {"SR.create", "SR.attach"}
    for name in ("Plugin.query", "Plugin.ls", "Plugin.diagnostics", "Task.ls", "Data.ls"):
        call(name)
    call("SR.probe", configuration={})
    call("SR.probe", configuration={"url": url})
    call("SR.stat", sr=sr)
    call("SR.set_name", sr=sr, new_name="slow")
    call("SR.set_description", sr=sr, new_description="tapes")
    key = call("Volume.create", sr=sr, name="disk", description="", size=MIB, sharable=False)["key"]
    call("Volume.enable_cbt", sr=sr, key=key)
    snapshot = call("Volume.snapshot", sr=sr, key=key)["key"]
    write(pool, key, 0, b"x")
    call("Volume.compare", sr=sr, key=key, key2=snapshot)
    call("Volume.list_changed_blocks", sr=sr, key=snapshot, key2=key, offset=0, length=-1)
    call("Volume.revert", sr=sr, snapshot=snapshot, key=key)
    clone = call("Volume.clone", sr=sr, key=snapshot)["key"]
    call("Volume.similar_content", sr=sr, key=key)
    call("Volume.data_destroy", sr=sr, key=snapshot)
    call("Volume.disable_cbt", sr=sr, key=key)
    copy = call("Volume.copy", sr=sr, key=key, dest_sr=sr)
    calls: dict[str, dict[str, Any]] = {
        "set_name": {"new_name": "n"},
        "set_description": {"new_description": "d"},
        "set": {"k": "a", "v": "b"},
        "unset": {"k": "a"},
        "resize": {"new_size": 2 * MIB},
        "stat": {},
    }
    for name, more in calls.items():
        call(f"Volume.{name}", sr=sr, key=copy["key"], **more)
    uri = copy["uri"][0]
    call("Datapath.open", uri=uri, persistent=True)
    call("Datapath.attach", uri=uri, domain="1")
    for name in ("activate", "deactivate", "activate_readonly", "deactivate", "detach"):
        call(f"Datapath.{name}", uri=uri, domain="1")
    call("Datapath.close", uri=uri)
    call("SR.ls", sr=sr)
    assert fails("Volume.compose", sr=sr, key=clone, key2=key) == "Unimplemented"
    assert fails("Datapath.import_activate", uri=uri, domain="0") == "Unimplemented"
    assert fails("Data.mirror", uri=uri, domain="0", remote="nbd://x/y") == "Unimplemented"
    blocks = {"blocksize": 512, "ranges": [[0, 1]]}
    operation = call("Data.copy", uri=uri, domain="0", remote="nbd:unix:/nowhere:exportname=x", blocklist=blocks)
    while not call("Data.stat", operation=operation)["complete"]:
        pass
    call("Data.cancel", operation=operation)
    call("Data.destroy", operation=operation)
    for name in ("stat", "cancel", "destroy"):
        assert fails(f"Task.{name}", id="1") == "NotFound"
    call("Volume.destroy", sr=sr, key=key)
    call("SR.detach", sr=sr)
    host.attach_sr(url, sr)
    call("SR.destroy", sr=sr)
    assert seen == set(rows())
    assert [volume.name for volume in pool.volumes()] == []


def test_the_answer_is_alone_on_standard_output(host: Host, tmp_path: Path) -> None:
    """A program that a call runs may print what it likes."""
    settings = json.loads(host.settings.read_text())
    settings["nothing"] = 1
    host.settings.write_text(json.dumps(settings))
    assert host.fails("Plugin.diagnostics")[0] == "InvalidConfig"
