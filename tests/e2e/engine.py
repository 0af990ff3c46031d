"""A container engine of its own for tests: podman and buildah on a base made with debootstrap, so without any registry.

Everything lies in one folder: CLIPWORKS_TEST_IMAGES, which stays and is found again (base, uv's cache, layers), or a
temporary one, which is removed with its gigabytes. Nothing of the machine's own containers is seen or touched.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

BASE, IMAGE = "docker.io/library/debian:bookworm-slim", "localhost/clipworks:test"
MARK = "a-registry-whose-name-no-layer-holds.invalid"
ROOT = Path(__file__).parents[2]
_NEEDED = ("podman", "buildah", "runc", "debootstrap")
_SUITE = "bookworm"
_KEPT = "CLIPWORKS_TEST_IMAGES"
_MOST_BYTES = 25_000_000_000  # of packages, unpacked and cached, and of the layer that is made of them, three times
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
# Debian's runc refuses the engine's own defaults where the machine's limits are lower, and there may be no systemd
_ENGINE = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def why_not() -> str | None:
    """Why there can be no engine here; None where there can."""
    if platform.system() != "Linux":
        return f"containers need Linux, this is {platform.system()}"
    if os.geteuid() != 0:
        return "debootstrap and the images' users need root"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    folder, most = _folder(), _MOST_BYTES / 1e9
    free = shutil.disk_usage(folder).free / 1e9
    return f"{free:.0f} GB free in {folder}, a build takes {most:.0f}" if free < most else None


def _folder() -> Path:
    """Where the engine's folder lies; not in memory, as /tmp may be."""
    folder = Path(os.environ.get(_KEPT) or "/var/tmp")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Engine:
    """podman, buildah and podman's docker-compatible socket, on a storage of their own."""

    def __init__(self) -> None:
        self._is_temporary = not os.environ.get(_KEPT)
        # a short path: that of a socket has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="cw-", dir=_folder())) if self._is_temporary else _folder()
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        (self.folder / "engine.conf").write_text(_ENGINE)
        storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/storage"\nrunroot = "{self.folder}/run"\n'
        (self.folder / "storage.conf").write_text(storage)
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "engine.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "TMPDIR": str(self.folder / "tmp"),
        }
        self.address = f"unix://{self.folder}/engine.sock"
        self._service: subprocess.Popen[bytes] | None = None

    def do(self, *command: str | Path, timeout: float = 1800, check: bool = True) -> str:
        """Run podman, buildah ...; its output."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command[:3]} ... exit {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def make_base(self) -> None:
        """A Debian under the name that the Containerfiles' FROM uses."""
        if self.do("podman", "images", "-q", BASE).strip():
            return
        tree = self.folder / "base"
        shutil.rmtree(tree, ignore_errors=True)
        self.do("debootstrap", "--variant=minbase", _SUITE, tree)
        self.do("sh", "-c", f"tar -C {tree} -c . | podman import -q - {BASE}")
        shutil.rmtree(tree)

    def build(self, context: Path = ROOT, tag: str = IMAGE, file: str = "Containerfile.cpu", **arguments: str) -> str:
        """Build an image as a user behind a package registry does: its address and certificate are secrets."""
        registry = self.folder / "registry.env"
        registry.write_text(f"CLIPWORKS_TEST_MARK={MARK}\n")
        secrets = [f"id=registry,src={registry}"]
        secrets += [f"id=certificates,src={path}" for path in _CERTIFICATES if Path(path).exists()][:1]
        return self.do(
            "buildah", "build", "--layers", "--pull-never", "--network=host", "--isolation=chroot", "--tag", tag,
            "--file", context / "k8s" / "images" / file, *(f"--secret={secret}" for secret in secrets),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()), context,
        )  # fmt: skip

    def inspect(self, image: str = IMAGE) -> dict:
        """What the engine knows of an image."""
        return json.loads(self.do("podman", "image", "inspect", image))[0]

    def run(self, *words: str, options: tuple[str, ...] = (), check: bool = True) -> str:
        """Run a shell command in a container of the image, as its own user unless the options say otherwise."""
        return self.do("podman", "run", "--rm", "--network=host", *options, IMAGE, *words, check=check)

    def containers(self) -> list[str]:
        """Names of all containers, running or not."""
        return self.do("podman", "ps", "--all", "--format", "{{.Names}}").split()

    def serve(self) -> None:
        """Open podman's docker-compatible socket."""
        with (self.folder / "service.log").open("wb") as log:
            self._service = subprocess.Popen(
                ["podman", "system", "service", "--time=0", self.address], env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while not Path(self.address.removeprefix("unix://")).exists():
            assert self._service.poll() is None, (self.folder / "service.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def close(self) -> None:
        """End what was started; remove what is not to be kept."""
        if self._service:
            self._service.terminate()
            self._service.wait(timeout=30)
        self.do("podman", "rm", "--all", "--force", check=False)
        if self._is_temporary:
            mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
            for mount in sorted(mounts, reverse=True):  # inner ones first
                if mount.startswith(f"{self.folder}/"):
                    subprocess.run(["umount", mount], check=True)
            shutil.rmtree(self.folder)  # faster than the engine's own removal of an image after the other
