#!/usr/bin/env python3
"""Installs the clients of the interoperability tests into target/interop, once, and prints that folder.

What must hold: the stamp is there only if the installation is complete, also after a kill. One process installs at a
time; the others wait for it. Registries, proxies and certificates are those that pip and npm are configured with.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "target" / "interop"
STAMP = FOLDER / "stamp"
FILES = ["requirements.txt", "package.json", "package-lock.json", ".npmrc"]
OLDEST_NODE = 18
ATTEMPTS = 5


def main():
    check_tools()
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = fingerprint()
    if not is_installed(wanted):
        with open(FOLDER / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have installed it in the meantime.
            if not is_installed(wanted):
                install(wanted, lock)
    print(FOLDER)


def check_tools():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail("python3 has no venv. Install it (apt-get install python3-venv)")
    for tool in ["node", "npm"]:
        if shutil.which(tool) is None:
            fail(f"no {tool} was found. Install it (apt-get install nodejs npm, brew install node)")
    if int(node_version().split(".")[0]) < OLDEST_NODE:
        fail(f"the tests need Node {OLDEST_NODE} or newer, and this is {node_version()}. Install a newer one")


def node_version():
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return version.stdout.strip().lstrip("v")


def fingerprint():
    """Everything that the installation depends on. A venv works only where it was made, and with its Python."""
    of = hashlib.sha256()
    for file in FILES:
        of.update((HERE / file).read_bytes() + b"\0")
    of.update(f"{FOLDER}\0{os.path.realpath(sys.executable)}\0{sys.version}\0{node_version()}".encode())
    return of.hexdigest()


def is_installed(wanted):
    return STAMP.exists() and STAMP.read_text() == wanted


def install(wanted, lock):
    print(f"installing the Python and Node clients of the tests into {FOLDER}", file=sys.stderr)
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    install_python(lock)
    install_node(lock)
    complete = FOLDER / "stamp.new"
    complete.write_text(wanted)
    complete.replace(STAMP)
    print(f"installed them in {time.monotonic() - started:.0f} s", file=sys.stderr)


def install_python(lock):
    venv = FOLDER / "venv"
    shutil.rmtree(venv, ignore_errors=True)
    run("python3 -m venv", [sys.executable, "-m", "venv", venv], lock, attempts=1)
    requirements = ["--requirement", HERE / "requirements.txt"]
    run("pip install", [venv / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements], lock)


def install_node(lock):
    for file in FILES:
        shutil.copy(HERE / file, FOLDER)
    # `npm ci` empties node_modules first. No package needs its scripts.
    run("npm ci", ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], lock)


def run(name, command, lock, attempts=ATTEMPTS):
    # The command inherits the lock: it may outlive this process, and still writes into the folder then.
    options = {"cwd": FOLDER, "stdin": subprocess.DEVNULL, "pass_fds": [lock.fileno()]}
    for attempt in range(1, attempts + 1):
        done = subprocess.run(command, capture_output=True, text=True, **options)
        if done.returncode == 0:
            return
        if attempt < attempts:
            print(f"{name} failed, attempt {attempt} of {attempts}; trying again", file=sys.stderr)
            time.sleep(2**attempt)
    print(done.stdout + done.stderr, file=sys.stderr)
    fail(
        f"{name} failed {attempts} times, see above. Check that this machine reaches PyPI and the npm registry, or"
        " configure pip and npm with the ones that it reaches"
        if attempts > 1
        else f"{name} failed, see above"
    )


def fail(reason):
    sys.exit(f"error: {reason}")


if __name__ == "__main__":
    main()
