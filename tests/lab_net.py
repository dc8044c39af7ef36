"""Hosts of a lab: network namespaces on one bridge, each with a name, a boot and clocks of its own.

Needs root. Names and addresses are of this process alone, so that two labs do not meet.
"""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from conftest import missing


def call(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def may_make_hosts() -> str:
    """Say why no hosts can be made here; nothing where they can."""
    if os.getuid() != 0:
        return "not root: no network namespaces"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "no ip (iproute2) or unshare"
    name = f"lab{os.getpid()}-try"
    try:
        call("ip", "netns", "add", name)
        call("ip", "netns", "exec", name, "unshare", "--mount", "--uts", "--time", "true")
    except AssertionError as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return ""


class Network:
    """Some hosts on one switch, and a place where senders and the judge stand."""

    OUTSIDE = "out"

    def __init__(self, names: str) -> None:
        if words := may_make_hosts():
            missing(words)
        self._prefix = f"lab{os.getpid()}-"
        self._names = [*names, self.OUTSIDE]
        self.addresses = {name: f"10.77.0.{at}" for at, name in enumerate(self._names, 1)}

    def start(self) -> None:
        switch = self.space(self.OUTSIDE)
        for name in reversed(self._names):  # the outside first: the switch stands there
            call("ip", "netns", "add", self.space(name))
            call("ip", "-n", self.space(name), "link", "set", "lo", "up")
            if name == self.OUTSIDE:
                call("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
                call(
                    "ip", "-n", switch, "addr", "add", f"{self.addresses[name]}/24", "dev", "switch"
                )
                call("ip", "-n", switch, "link", "set", "switch", "up")
                continue
            own = self.space(name)
            call("ip", "-n", own, "link", "add", "eth0", "type", "veth", "peer", "name",
                 f"port-{name}", "netns", switch)  # fmt: skip
            call("ip", "-n", switch, "link", "set", f"port-{name}", "master", "switch", "up")
            call("ip", "-n", own, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            call("ip", "-n", own, "link", "set", "eth0", "up")

    def space(self, name: str) -> str:
        return self._prefix + name

    def enter(self, name: str) -> tuple[str, ...]:
        """What stands before a command that is to run on a host."""
        return ("ip", "netns", "exec", self.space(name))

    def boot(self, name: str, folder: Path, number: int) -> tuple[str, ...]:
        """The same for its first process after a boot: a host's name, clock and boot are its own.

        Hosts' monotonic clocks lie days apart.
        """
        identity = folder / f"boot-{number}"
        identity.write_text(f"{uuid.uuid4()}\n")
        offset = 86400 * (ord(name) + 10 * number)
        script = 'hostname "$0" && mount --bind "$1" /proc/sys/kernel/random/boot_id'
        script += ' && shift && exec "$@"'
        return (*self.enter(name), "unshare", "--mount", "--uts", "--time", "--boottime",
                str(offset), "sh", "-c", script, f"host-{name}", str(identity))  # fmt: skip

    def cut(self, name: str) -> None:
        """Pull a host's cable."""
        switch = self.space(self.OUTSIDE)
        call("ip", "-n", switch, "link", "set", f"port-{name}", "down")

    def mend(self, name: str) -> None:
        switch = self.space(self.OUTSIDE)
        call("ip", "-n", switch, "link", "set", f"port-{name}", "up")

    def end(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", self.space(name)], capture_output=True)
