"""The commands of an administrator, and those that the plugin starts itself with."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    # What the plugin starts itself with needs no more than this.
    if len(sys.argv) == 3 and sys.argv[1] in ("supervise", "serve", "copy"):
        return _started(sys.argv[1], sys.argv[2])
    given = _parser().parse_args()
    import volmux

    from .failure import Failure

    try:
        status: int = given.run(given)
    except (Failure, volmux.Error, OSError) as error:
        print(f"volmux.smapiv3: {error}", file=sys.stderr)
        return 1
    return status


def _started(command: str, what: str) -> int:
    if command == "copy":
        from . import data

        return data.work(what)
    from . import gateway

    return gateway.serve(what) if command == "serve" else gateway.Supervisor(what).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python3 -m volmux.smapiv3", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("install", _install, "put the executables where xapi-storage-script looks for them"),
        ("uninstall", _uninstall, "remove them"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--root", help="the directory of xapi-storage-script, with volume and datapath")
        command.set_defaults(run=run)
    command = commands.add_parser("recover", help="make the metadata of an SR anew; good metadata is left")
    command.add_argument("url")
    command.add_argument("--uuid", required=True, help="of the SR")
    command.add_argument("--name", default="", help="of the SR")
    command.set_defaults(run=_recover)
    command = commands.add_parser("unfinished", help="list the volumes that are being made")
    command.add_argument("url")
    command.add_argument("--remove-of", metavar="HOST", help="remove those of a host that is gone for good")
    command.set_defaults(run=_unfinished)
    return parser


def _install(given: argparse.Namespace) -> int:
    from . import install

    for place in install.install(given.root or install.default_root()):
        print(place)
    return 0


def _uninstall(given: argparse.Namespace) -> int:
    from . import install

    install.uninstall(given.root or install.default_root())
    return 0


def _recover(given: argparse.Namespace) -> int:
    from . import attached, recover

    with attached.open_pool({"url": given.url}) as pool:
        kept = recover.recover(pool, given.uuid, given.name or given.uuid)
    print(f"the damaged metadata is in the volume {kept}" if kept else "there was no damaged metadata")
    return 0


def _unfinished(given: argparse.Namespace) -> int:
    from . import attached, recover

    with attached.open_pool({"url": given.url}) as pool:
        for key in recover.unfinished(pool, given.remove_of):
            print(key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
