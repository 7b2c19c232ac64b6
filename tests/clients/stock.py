"""What the programs around stock clients share: a server of their own, and before it the proxy that looks at its answers."""

import argparse
import contextlib
import pathlib
import re
import subprocess
import threading

from validating_proxy import Proxy

#: For a server whose model is to call tools: the built-in one's own template knows none.
TOOLS = ("--chat-template", str(pathlib.Path(__file__).with_name("tools.jinja")))


def options(document, **more):
    """The command line of such a program: the server, and OpenAI's schema where there is one."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("binary", help="the candlewick program")
    parser.add_argument("--schema", help="OpenAI's openapi.json; without it nothing is checked against it")
    for name, given in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **given)
    return parser.parse_args()


@contextlib.contextmanager
def served(given, *arguments):
    """The name of the model and the origin to ask. Fails at the end where an answer was not as OpenAI's schema has it."""
    command = [given.binary, "serve", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            found = re.match(r"candlewick serves (\S+) on (\S+):", line)
            assert found, f"the server did not come up: {line}"
            threading.Thread(target=server.stdout.read, daemon=True).start()
            model, address = found.groups()
            if given.schema is None:
                print("no schema was given: answers are not checked against OpenAI's")
                yield model, f"http://{address}"
                return
            with Proxy(given.schema, address) as proxy:
                yield model, f"http://{proxy.address}"
            assert proxy.report(), "answers were not as OpenAI's schema has them"
        finally:
            server.terminate()


def passed(name, part):
    """Runs a part of a program, and says so."""
    said = part()
    print(f"ok    {name}{f': {said}' if said else ''}", flush=True)
