"""A machine for Ray's cluster launcher: a real sshd on loopback, in namespaces of its own.

`ray down` has `ray stop` done on the head, and that ends every Ray that it finds in /proc, the clusters of other tests
among them. So the sshd and all that is started through it have a private process namespace: it sees none but its own,
and what is left behind dies with it. They have a /run (sshd wants a folder there) and a /tmp/ray of their own as well:
Ray keeps the address of "the" cluster there, and the launcher what it knows of a cluster's nodes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.pipeline import wait_until
from tests.ray_cluster import kill_all
from tests.s3_server import free_port

HEAD = "127.0.0.1"
RAY_START = "export RAY_AUTH_MODE=token; ray start --min-worker-port=0 --max-worker-port=0"
RAY_START += " --object-store-memory=80000000 --disable-usage-stats"


PROGRAMS = ("ssh", "ssh-keygen", "sshd", "rsync", "unshare", "setpriv")
"""What such a machine needs, beside the rights of root: namespaces for an sshd and a Ray of its own."""


class SshMachine:
    """The machine of a cluster's head, which is all of the cluster.

    A node would have to have an address of its own, and to Ray all of loopback is one.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is what its sessions find in theirs, such as the credentials of the store."""
        # The names of Ray's sockets have room for 107 characters: pytest's own folders are too deep.
        self.folder = Path(tempfile.mkdtemp(prefix="ssh-"))
        self.home = self.folder / "home"
        self.port = free_port()
        self.key = self.folder / "key"
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> str:
        """A PATH with an `ssh` that knows the port: the launcher's local provider has no setting for it."""
        return f"{self.folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def start(self) -> None:
        """Returns when it lets us in."""
        for folder in (self.home, self.folder / "bin", self.folder / "ray", Path("/tmp/ray")):  # noqa: S108
            folder.mkdir(parents=True, exist_ok=True)
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -p {self.port} "$@"\n')
        ssh.chmod(0o755)
        for name in ("key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self.folder / name)], check=True
            )
        # The launcher sources it; a login shell has thrown our PATH away before.
        exports = {**self._environment, "PATH": self.path, "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        exports |= {"RAY_worker_niceness": "0", "RAY_agent_register_timeout_ms": "180000"}
        (self.home / ".bashrc").write_text("".join(f"export {name}='{value}'\n" for name, value in exports.items()))
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {HEAD}\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.key}.pub\nSetEnv HOME={self.home}\nPasswordAuthentication no\n"
            "StrictModes no\nUsePAM no\nPidFile none\n"
        )
        inside = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount --bind {self.folder}/ray /tmp/ray"
        inside += f" && exec /usr/sbin/sshd -D -e -f {self.folder}/sshd_config"
        # Not even a test that is killed leaves it behind.
        command = ["setpriv", "--pdeathsig", "KILL"]
        command += ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", inside]
        with (self.folder / "sshd.txt").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: self._process is None or self._process.poll() is not None or self._lets_us_in(), 30, "sshd")
        assert self._process.poll() is None, (self.folder / "sshd.txt").read_text()

    def _lets_us_in(self) -> bool:
        command = [str(self.folder / "bin" / "ssh"), "-i", str(self.key), "-o", "StrictHostKeyChecking=no"]
        command += ["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", f"root@{HEAD}", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        """End it with all that was started through it."""
        if self._process is not None:
            kill_all([*psutil.Process(self._process.pid).children(recursive=True)])
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[str]:
        """The command lines of what runs there, without sshd and its sessions."""
        assert self._process is not None
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if line and "sshd" not in line:
                found.append(line)
        return found

    def cluster_file(self, name: str, **changes: Any) -> Path:
        """A file for Ray's launcher: a head with a CPU to run jobs on."""
        port = free_port()
        head = f"{RAY_START} --head --node-ip-address={HEAD} --port={port} --num-cpus=1 --num-gpus=0"
        head += f" --dashboard-host=127.0.0.1 --dashboard-port={free_port()} --dashboard-agent-listen-port=0"
        head += f" --ray-client-server-port={free_port()} --autoscaling-config=~/ray_bootstrap_config.yaml"
        config = {
            "cluster_name": name,
            "provider": {"type": "local", "head_ip": HEAD, "worker_ips": []},
            "auth": {"ssh_user": "root", "ssh_private_key": str(self.key)},
            "file_mounts": {"~/.ray/auth_token": str(self.folder / "token")},
            "head_start_ray_commands": ["ray stop", head],
            "worker_start_ray_commands": ["ray stop", f"{RAY_START} --address=$RAY_HEAD_IP:{port}"],
            **changes,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


@contextmanager
def ssh_machine(environment: Mapping[str, str]) -> Iterator[SshMachine]:
    """A running machine, gone afterwards with all that ran there."""
    machine = SshMachine(environment)
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()
