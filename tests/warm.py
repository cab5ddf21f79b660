"""Whole commands without the seconds that imports take: a warm process forks one for each.

    python warm.py SOCKET     serves until it is ended

`client` is the text of a ``python`` that hands ``-m attribution ...`` over with its folder, its
environment and its standard files, and is the real interpreter for all else.
"""

import json
import os
import socket
import sys
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys

if sys.argv[1:3] != ["-m", "attribution"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    asked = json.dumps([sys.argv[3:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    sys.exit(server.recv(1)[0])
"""


def client(place: Path) -> str:
    return CLIENT.format(python=sys.executable, place=str(place))


def serve(place: str) -> None:
    import sklearn  # noqa: F401  # with the next three, most of what a command imports
    import torch._dynamo

    import attribution.engine
    from attribution.__main__ import main

    assert torch._dynamo and attribution.engine
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(f"{place}.new")
        ours.listen()
        Path(f"{place}.new").rename(place)  # who sees it there is answered
        while True:
            asking, _ = ours.accept()
            with asking:
                size, files, _, _ = socket.recv_fds(asking, 4, 3)
                asked = asking.makefile("rb").read(int.from_bytes(size, "big"))
                child = os.fork()
                if not child:
                    run(main, files, *json.loads(asked))
                for file in files:
                    os.close(file)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                asking.sendall(bytes([code % 256]))


def run(main, files: list[int], words: list[str], folder: str, env: dict[str, str]) -> None:
    """Be the command; never returns."""
    code: object = 1
    try:
        for ours, its in enumerate(files):
            os.dup2(its, ours)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["attribution", *words]
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
