#!/usr/bin/env python3
"""The client of every language whose tools are installed, built from the contract and run against one server.

    python3 tests/clients/languages.py target/debug/candlewick [--only python go] [--require python go]

Prints a line for each, and passes over what is not installed, by name. Ends with 1 where a client failed, or where one that
--require names was passed over. What is built lies in the clients' own folders, which git ignores; Python's and Node's
packages come from their registries, at the versions that clients/python/pyproject.toml, tests/clients/requirements-languages.txt
and clients/typescript/package-lock.json pin; Go and Java take Debian's packages and need no network. docs/clients.md names
them. Listens on the loopback interface alone.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "clients"
REQUIREMENTS = ROOT / "tests/clients/requirements-languages.txt"
PATIENCE_S = 600


class NotInstalled(Exception):
    """What is missing."""


def run(*command, folder=ROOT):
    """The output of a program that must end well."""
    words = [str(word) for word in command]
    ended = subprocess.run(words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


def needs(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise NotInstalled(", ".join(missing))


def needs_folders(*folders):
    missing = [folder for folder in folders if not pathlib.Path(folder).is_dir()]
    if missing:
        raise NotInstalled(", ".join(missing))


def python(binary, address):
    folder = CLIENTS / "python"
    venv = folder / "build/venv"
    if not (venv / "bin/pip").exists():
        run(sys.executable, "-m", "venv", venv)
    run(venv / "bin/pip", "install", "-q", "--disable-pip-version-check", "-c", REQUIREMENTS, f"{folder}[test]")
    # Types are checked on the sources, so the stubs are made there too, from the same contract.
    run(venv / "bin/pip", "install", "-q", "--disable-pip-version-check", "-r", REQUIREMENTS)
    run(venv / "bin/python", "hatch_build.py", folder=folder)
    types = run(venv / "bin/mypy", folder=folder)
    tests = run(venv / "bin/pytest", f"--candlewick={binary}", "-p", "no:cacheprovider", folder=folder)
    return f"mypy --strict: {last(types)}; {last(tests)}"


def typescript(_binary, address):
    needs("node", "npm")
    folder = CLIENTS / "typescript"
    # Not `npm ci`: that fails where a registry lacks buf for another platform. The lock file decides the versions here too.
    run("npm", "install", "--no-save", "--ignore-scripts", "--silent", folder=folder)
    run("npm", "run", "--silent", "build", folder=folder)
    return last(run("node", "dist/example.js", f"http://{address}", folder=folder), "session")


def go(_binary, address):
    needs("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    sources = pathlib.Path(os.environ.get("DEBIAN_GOPATH", "/usr/share/gocode")) / "src/google.golang.org"
    needs_folders(*(sources / name for name in ("grpc", "protobuf", "genproto")))
    run(CLIENTS / "go/build.sh")
    return last(run(CLIENTS / "go/build/example", address), "session")


def java(_binary, address):
    needs("java", "javac", "protoc", "grpc_java_plugin")
    try:
        run(CLIENTS / "java/build.sh", "check")
    except RuntimeError as error:
        raise NotInstalled(last(str(error))) from error
    run(CLIENTS / "java/build.sh")
    return last(run(CLIENTS / "java/build.sh", "run", address), "session")


def rust(binary, address):
    example = pathlib.Path(binary).resolve().parent / "examples/grpc_client"
    if not example.exists():
        raise NotInstalled("cargo build -p candlewick-client --example grpc_client makes it")
    said = run(example, "Once upon a time", f"http://{address}")
    return last(said, "session")


LANGUAGES = {"python": python, "typescript": typescript, "go": go, "java": java, "rust": rust}


def last(output, holding=""):
    """The last line that holds a word."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip() and holding in line), "")


def serve(binary):
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--threads", "1", "--num-gpu-blocks-override", "512"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in server.stdout:
        if found := re.search(r"127\.0\.0\.1:\d+", line):
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return server, found[0]
    sys.exit("the server did not come up")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", choices=LANGUAGES, default=list(LANGUAGES))
    parser.add_argument("--require", nargs="+", choices=LANGUAGES, default=[])
    options = parser.parse_args()
    binary = options.binary.resolve()
    server, address = serve(binary)
    failed = False
    try:
        for name in options.only:
            try:
                print(f"ok {name}: {LANGUAGES[name](binary, address)}", flush=True)
            except NotInstalled as missing:
                print(f"{name} NOT INSTALLED ({missing}): passed over", flush=True)
                failed |= name in options.require
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                print(f"FAILED {name}: {error}", flush=True)
                failed = True
    finally:
        server.terminate()
        server.wait(60)
    sys.exit(failed)


if __name__ == "__main__":
    main()
