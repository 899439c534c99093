"""The container files agree with the tree, the settings and the plugin. No container is built here."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.config import VARIABLES, load

ROOT = Path(__file__).parents[2]
NAMES = {variable.name for variable in VARIABLES}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, arguments), comments gone and continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined) if word]


def command(arguments: str) -> list[str]:
    """Return the words of a command in its JSON form; a shell would swallow the signals."""
    words = json.loads(arguments[arguments.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return list(words)


class Dockerfile(SynchronousTestCase):
    def setUp(self) -> None:
        self.all = instructions()
        starts = [number for number, (word, _) in enumerate(self.all) if word == "FROM"]
        self.final = self.all[starts[-1] :]

    def last(self, word: str) -> str:
        return [arguments for each, arguments in self.final if each == word][-1]

    def test_copied_files_exist(self) -> None:
        """What is copied from the tree exists, and .dockerignore lets it through."""
        let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        for word, arguments in self.all:
            if word == "COPY" and not arguments.startswith("--from"):
                for source in shlex.split(arguments)[:-1]:
                    self.assertTrue((ROOT / source).exists(), source)
                    self.assertIn(f"!{source}", let_through)

    def test_only_the_wheel(self) -> None:
        """The image that runs takes nothing from the tree, only what was installed from the wheel."""
        copies = [arguments for word, arguments in self.final if word == "COPY"]
        self.assertEqual(copies, ["--from=install /opt/mcp-proxy /opt/mcp-proxy"])
        self.assertTrue(any(word == "RUN" and "pip wheel" in arguments for word, arguments in self.all))

    def test_plugin_cache(self) -> None:
        """The plugin cache is written while the build still runs as root."""
        self.assertTrue(any(word == "RUN" and "/twistd --help" in arguments for word, arguments in self.all))

    def test_user(self) -> None:
        """The proxy does not run as root."""
        self.assertNotIn(self.last("USER"), ("root", "0"))

    def test_healthcheck(self) -> None:
        """The health check is valid Python that asks /health on PROXY_PORT."""
        python, flag, code = command(self.last("HEALTHCHECK"))
        self.assertEqual((python, flag), ("python", "-c"))
        compile(code, "HEALTHCHECK", "exec")
        self.assertIn("PROXY_PORT", code)
        self.assertIn("/health", code)

    def test_command(self) -> None:
        """The command runs the plugin in the foreground without a pid file."""
        self.assertEqual(command(self.last("CMD")), ["twistd", "--nodaemon", "--pidfile=", "mcp-proxy"])

    def test_environment(self) -> None:
        """The image listens on every address, on the port that it exposes."""
        words = shlex.split(" ".join(arguments for word, arguments in self.final if word == "ENV"))
        environ = dict(word.split("=", 1) for word in words)
        settings = load({}, environ, None)
        self.assertEqual(settings.proxy_host, "0.0.0.0")
        self.assertEqual(str(settings.proxy_port), self.last("EXPOSE"))


class Compose(SynchronousTestCase):
    def setUp(self) -> None:
        self.services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]

    def test_environment(self) -> None:
        """The proxy's environment has only known variables with values that are allowed."""
        environ = self.services["proxy"]["environment"]
        self.assertEqual(set(environ) - NAMES, set())
        settings = load({}, environ, None)
        self.assertEqual(settings.proxy_host, "0.0.0.0")
        (port,) = self.services["proxy"]["ports"]
        self.assertTrue(port.endswith(f":{settings.proxy_port}"))

    def test_backend(self) -> None:
        """The proxy is pointed at the demonstration backend, on the port that it is started with."""
        backend = self.services["backend"]
        port = backend["command"][backend["command"].index("--port") + 1]
        self.assertEqual(self.services["proxy"]["environment"]["BACKEND_URL"], f"http://backend:{port}")
        self.assertEqual(backend["command"][:3], ["python", "-m", "mcp_proxy.demo.server"])
        self.assertTrue((ROOT / "mcp_proxy/demo/server.py").exists())

    def test_backend_extra(self) -> None:
        """The demonstration backend's image is built with its extra, by an argument of the Dockerfile."""
        self.assertEqual(self.services["backend"]["build"]["args"], {"EXTRAS": "[demo]"})
        self.assertIn(("ARG", 'EXTRAS=""'), instructions())
