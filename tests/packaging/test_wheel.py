"""The wheel, installed by itself, has all it needs: plugin, script, and a proxy that starts and stops."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.config import VARIABLES

from .test_docker import command, instructions

ROOT = Path(__file__).parents[2]
# What an sdist is made of, without what a developer's checkout has besides.
SOURCES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
JUNK = shutil.ignore_patterns("__pycache__", "dropin.cache")
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
START_WITHIN = 30.0


def run(words: list[str], cwd: Path) -> str:
    """Run a command in `cwd` with a clean environment; return what it printed, or fail with it."""
    done = subprocess.run(words, cwd=cwd, env=clean(), capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AssertionError(f"{words} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def clean(**more: str) -> dict[str, str]:
    """Return the environment without what would lead Python back into the checkout, and without settings."""
    left_out = {"PYTHONPATH", "PYTHONHOME", *(variable.name for variable in VARIABLES)}
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, **more}


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@attrs.frozen
class Installed:
    """A wheel, and the environment into which it was installed."""

    wheel: Path
    bin: Path
    packages: Path


@functools.cache
def installed() -> Installed:
    """Build the wheel and install it into an environment of its own, once for all tests."""
    home = Path(tempfile.mkdtemp(prefix="wheel", dir=".")).absolute()
    source = home / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in ("mcp_proxy", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=JUNK)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(home / "dist"), str(source)]
    run(build, cwd=home)
    (wheel,) = (home / "dist").glob("*.whl")

    venv.create(home / "venv", with_pip=False)
    python = str(home / "venv/bin/python")
    packages = Path(run([python, "-c", PURELIB], cwd=home).strip())
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], cwd=home)
    # The dependencies come from the environment of the tests, which saves minutes of downloads. They follow
    # the wheel's own files on sys.path; an editable install of the project must not come along, so the
    # folder is named in a .pth file: Python does not read further .pth files there.
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(folders), encoding="utf-8")
    return Installed(wheel, home / "venv/bin", packages)


class Wheel(SynchronousTestCase):
    def setUp(self) -> None:
        self.installed = installed()
        self.bin = self.installed.bin
        self.cwd = Path(self.mktemp()).absolute()
        self.cwd.mkdir()

    def test_content(self) -> None:
        """The wheel has the plugin, the type marker and every module, and neither tests nor bench nor soak."""
        names = set(zipfile.ZipFile(self.installed.wheel).namelist())
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mcp_proxy").rglob("*.py")}
        self.assertEqual(modules - names, set())
        self.assertIn("twisted/plugins/mcp_proxy_plugin.py", names)
        self.assertIn("mcp_proxy/py.typed", names)
        self.assertNotIn("twisted/__init__.py", names)
        self.assertNotIn("twisted/plugins/__init__.py", names)
        self.assertEqual([name for name in names if name.startswith(("tests", "bench", "soak"))], [])

    def test_own_code(self) -> None:
        """The code that these tests run is the wheel's, not the checkout's."""
        printed = run([str(self.bin / "python"), "-c", "import mcp_proxy; print(mcp_proxy.__file__)"], self.cwd)
        self.assertEqual(Path(printed.strip()).parents[1], self.installed.packages)

    def test_plugin_is_listed(self) -> None:
        """``twistd --help`` lists mcp-proxy from any folder."""
        self.assertIn("mcp-proxy", run([*self.twistd(), "--help"], self.cwd))

    def test_version(self) -> None:
        """``mcp-proxy --version`` prints the version of setup.cfg."""
        printed = run([str(self.bin / "mcp-proxy"), "--version"], self.cwd)
        self.assertIn("version = " + printed.removeprefix("mcp-proxy "), (ROOT / "setup.cfg").read_text("utf-8"))

    def test_bad_setting(self) -> None:
        """A bad setting ends each of the three commands with status 1 and one line on stderr."""
        for words in self.commands():
            done = subprocess.run(
                words, cwd=self.cwd, env=clean(PROXY_PORT="x"), capture_output=True, text=True, timeout=60
            )
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), words)
            self.assertTrue(done.stderr.startswith("mcp-proxy: PROXY_PORT (from the environment) is 'x'"))

    def test_start_and_stop(self) -> None:
        """Each of the three commands serves /health, and ends with status 0 on SIGTERM or SIGINT."""
        for words, number in zip(self.commands(), (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True):
            port = free_port()
            log = self.cwd / "log"
            with log.open("w") as out:
                process = subprocess.Popen(
                    words, cwd=self.cwd, env=clean(PROXY_PORT=str(port)), stdout=out, stderr=subprocess.STDOUT
                )
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            try:
                self.assertEqual(self.health(port, process), 200)
                process.send_signal(number)
                self.assertEqual(process.wait(START_WITHIN), 0)
            except Exception as error:
                raise AssertionError(f"{words} failed; its log: {log.read_text()}") from error
            self.assertIn(f"received {number.name}, stopping", log.read_text())
            self.assertEqual([path.name for path in self.cwd.iterdir()], ["log"])

    def twistd(self) -> list[str]:
        """Return the command twistd, in the wheel's environment."""
        # Its script is in the environment of the dependencies; this is the same entry point.
        return [str(self.bin / "python"), "-c", "from twisted.scripts.twistd import run; run()"]

    def commands(self) -> list[list[str]]:
        """Return the container's command, the script, and Twisted's module."""
        _, *arguments = command([rest for word, rest in instructions() if word == "CMD"][-1])
        return [
            [*self.twistd(), *arguments],
            [str(self.bin / "mcp-proxy")],
            [str(self.bin / "python"), "-m", "twisted", "mcp-proxy"],
        ]

    def health(self, port: int, process: subprocess.Popen[bytes]) -> int:
        """Wait until GET /health is answered, and return the status; fail if the process ends before."""
        deadline = time.monotonic() + START_WITHIN
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=START_WITHIN) as response:
                    return int(response.status)
            except urllib.error.HTTPError as error:
                return error.code
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
