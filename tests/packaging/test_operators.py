"""What operators are given, pages and files, agrees with the program."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from prometheus_client.core import Metric
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.streamable import FAREWELL
from mcp_proxy.config import VARIABLES, Settings, load
from mcp_proxy.frontend.app import App
from mcp_proxy.metrics import OUTCOMES, Metrics, Tally
from mcp_proxy.session.exchanges import Delivery
from mcp_proxy.session.lifecycle import TABLE, Phase

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
#: What the proxy is asked for by probes.
ROUTES = {str(rule.rule) for rule in App.klein.url_map.iter_rules()}


def families() -> list[Metric]:
    """All metrics of ours."""
    backend: Any = SimpleNamespace(outages=0, outage=0.0, links=0)
    registry: Any = []
    health: Any = SimpleNamespace(is_healthy=True)
    return list(Metrics(Tally(), registry, [], backend, health, {}, 1000).collect())


def name_of(family: Metric) -> str:
    """What it is called on the page; the library keeps a counter's name without its end."""
    return family.name + ("_total" if family.type == "counter" else "")


class Pages(SynchronousTestCase):
    def test_clients(self) -> None:
        """What the README says clients are to be told is JSON, and leads to the proxy as it is by default."""
        text = (ROOT / "README.md").read_text("utf-8")
        blocks = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        self.assertEqual(len(blocks), 3)
        for block in blocks:
            ((servers),) = json.loads(block).values()
            self.assertEqual(servers["my-server"]["url"], f"http://localhost:{Settings().proxy_port}/mcp")
        for url in re.findall(r"http://localhost:8001(/[^ `\"]*)", text):
            self.assertIn(url, ROUTES)

    def test_links(self) -> None:
        """Each link from one page of ours to another leads somewhere."""
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
                if not link.startswith("http"):
                    self.assert_leads(page, link)

    def assert_leads(self, page: Path, link: str) -> None:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        self.assertTrue(target.exists(), f"{page.name}: {link}")
        if anchor:
            text = target.read_text("utf-8")
            titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            self.assertIn(anchor, anchors | set(re.findall(r'<a id="([^"]+)"', text)), f"{page.name}: {link}")

    def test_metrics(self) -> None:
        """The page about metrics has each, with its type and the program's own words, in the same order."""
        text = (ROOT / "docs/metrics.md").read_text("utf-8")
        rows = re.findall(r"^\| `(mcp_proxy_\w+)` \| (\w+) \| [^|]*\| (.*) \|$", text, re.MULTILINE)
        self.assertEqual(rows, [(name_of(each), each.type, each.documentation) for each in families()])

    def test_logs(self) -> None:
        """The page about operations has each message that is logged by default, but for failures of our own."""
        page = (ROOT / "docs/operations.md").read_text("utf-8")
        rows = re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE)
        named = [words for row in rows for words in re.findall(r"`([^`]+)`", row)]
        for path in sorted((ROOT / "mcp_proxy").rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(call, ast.Call) and ast.unparse(call.func) in ("log.info", "log.warn", "log.error"):
                    text = str(ast.literal_eval(call.args[0]))
                    self.assertTrue(any(is_about(words, text) for words in named), f"{path.name}: {text}")


def is_about(words: str, text: str) -> bool:
    """Whether these words, with dots for what is left out, are those of a message, with names in braces."""
    message = re.sub(r"\\{\w+(:[^}]*)?\\}", ".*", re.escape(text))
    return bool(re.fullmatch(message, words) or re.fullmatch(re.escape(words).replace(r"\.\.\.", ".*"), text))


def series() -> set[str]:
    """The names of all series of ours."""
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {each.name + end for each in families() for end in ends[each.type]}


class Queries(SynchronousTestCase):
    """What asks Prometheus."""

    def check(self, expressions: Iterable[str]) -> set[str]:
        """The names are those of series, and the outcomes those that there are; returns the names."""
        outcomes = {*OUTCOMES.values(), "result", "error", "cancelled", "own"}
        names: set[str] = set()
        for expression in expressions:
            found = set(re.findall(r"\bmcp_proxy_\w+", expression))
            self.assertEqual(found - series(), set(), expression)
            self.assertTrue(found or re.search(r"\b(up|process_\w+)\{", expression), expression)
            for words in re.findall(r'outcome[!=]=?~?"([^"]*)"', expression):
                self.assertEqual(set(words.split("|")) - outcomes, set(), expression)
            for opening, closing in ("()", "{}", "[]"):
                self.assertEqual(expression.count(opening), expression.count(closing), expression)
            names |= found
        return names

    def test_alerts(self) -> None:
        """Each alert asks for what there is, and has a name of its own, a severity and a sentence."""
        (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))["groups"]
        rules = group["rules"]
        self.assertEqual(len({rule["alert"] for rule in rules}), len(rules))
        self.assertGreater(len(self.check(rule["expr"] for rule in rules)), 5)
        for rule in rules:
            self.assertIn(rule["labels"]["severity"], ("warning", "critical"))
            self.assertTrue(rule["annotations"]["summary"].endswith("."), rule)
            self.assertEqual(set(rule) - {"alert", "expr", "for", "labels", "annotations"}, set())

    def test_advice(self) -> None:
        """The page about deployment says of each alert, and of no other, what to do."""
        text = (ROOT / "docs/deployment.md").read_text("utf-8")
        (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))["groups"]
        named = re.findall(r"^\| (Mcp\w+) \|", text, re.MULTILINE)
        self.assertEqual(named, [rule["alert"] for rule in group["rules"]])

    def test_dashboard(self) -> None:
        """The dashboard asks for what there is, and shows all of it; no two panels lie on each other."""
        board = json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))
        expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        variables = [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
        shown = self.check([*expressions, *variables])
        self.assertEqual(
            [name_of(each) for each in families() if not any(one.startswith(each.name) for one in shown)], []
        )
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
        self.assertEqual(len({panel["id"] for panel in board["panels"]}), len(board["panels"]))

    def test_words(self) -> None:
        """The page about metrics names each outcome and each delivery."""
        text = (ROOT / "docs/metrics.md").read_text("utf-8")
        for word in (*OUTCOMES.values(), *(each.value for each in Delivery)):
            self.assertIn(f"`{word}`", text)


def seconds(text: Any) -> float:
    """A time as compose writes it."""
    return float(str(text).removesuffix("s"))


class Places(SynchronousTestCase):
    """Where the proxy runs: settings that are allowed, probes that exist, and time enough to drain."""

    def settings(self, environ: dict[str, str]) -> Settings:
        """What the proxy makes of this environment."""
        self.assertEqual(set(environ) - {variable.name for variable in VARIABLES}, set())
        return load({}, environ, None)

    def read(self, name: str) -> list[Any]:
        """The documents in a file of YAML."""
        return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))

    def check_container(self, container: dict[str, Any], probes: Iterable[dict[str, Any]], port: int) -> Settings:
        """A container's environment and probes; secrets count as long ones."""
        environ = {each["name"]: each.get("value", "x" * 32) for each in container["env"]}
        settings = self.settings(environ)
        self.assertEqual((settings.proxy_host, settings.proxy_port), ("0.0.0.0", port))
        for probe in probes:
            self.assertIn(probe["httpGet"]["path"], ROUTES)
            # a backend that is away must not take the proxy away as well, which holds what is meant for it
            self.assertEqual(probe["httpGet"]["path"], "/health")
            self.assertIn(probe["httpGet"]["port"], (port, "http"))
        return settings

    def test_kubernetes(self) -> None:
        """The manifest."""
        deployment, service = self.read("kubernetes.yaml")
        pod = deployment["spec"]["template"]
        (container,) = pod["spec"]["containers"]
        (port,) = container["ports"]
        probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
        settings = self.check_container(container, probes, port["containerPort"])
        sleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
        self.assertGreater(pod["spec"]["terminationGracePeriodSeconds"], sleep + settings.drain_timeout + FAREWELL)
        self.assertEqual(deployment["spec"]["replicas"], 1)
        self.assertEqual(deployment["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
        self.assertEqual(service["spec"]["selector"], pod["metadata"]["labels"])
        self.assertEqual(service["spec"]["ports"][0]["targetPort"], port["name"])

    def test_azure(self) -> None:
        """The container app."""
        (app,) = self.read("azure-container-apps.yaml")
        configuration, template = app["properties"]["configuration"], app["properties"]["template"]
        (container,) = template["containers"]
        settings = self.check_container(container, container["probes"], configuration["ingress"]["targetPort"])
        self.assertEqual({probe["type"] for probe in container["probes"]}, {"Startup", "Liveness", "Readiness"})
        self.assertGreater(template["terminationGracePeriodSeconds"], settings.drain_timeout + FAREWELL)
        self.assertLess(settings.keepalive_interval, 240)
        self.assertEqual((template["scale"]["minReplicas"], template["scale"]["maxReplicas"]), (1, 1))
        names = {each["secretRef"] for each in container["env"] if "secretRef" in each}
        self.assertEqual(names, {each["name"] for each in configuration["secrets"]})

    def test_compose(self) -> None:
        """The compose files."""
        for path in (ROOT / "docker-compose.yml", DEPLOY / "compose.yaml"):
            proxy = yaml.safe_load(path.read_text("utf-8"))["services"]["proxy"]
            environ = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in proxy["environment"].items()}
            settings = self.settings(environ)
            self.assertGreater(seconds(proxy["stop_grace_period"]), settings.drain_timeout + FAREWELL)
            (port,) = proxy["ports"]
            self.assertTrue(port.startswith("127.0.0.1:") and port.endswith(f":{settings.proxy_port}"), port)

    def test_systemd(self) -> None:
        """The unit."""
        text = (DEPLOY / "mcp-proxy.service").read_text("utf-8")
        service = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        settings = self.settings(dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE)))
        self.assertTrue(service["ExecStart"].endswith("/bin/mcp-proxy"))
        self.assertGreater(float(service["TimeoutStopSec"]), settings.drain_timeout + FAREWELL)


class Machines(SynchronousTestCase):
    def setUp(self) -> None:
        self.made: str = runpy.run_path(str(ROOT / "docs/machines.py"))["page"]()

    def test_in_step(self) -> None:
        """The page is what the table makes; ``python docs/machines.py`` writes it."""
        self.assertEqual((ROOT / "docs/machines.md").read_text("utf-8"), self.made)

    def test_complete(self) -> None:
        """Each transition is drawn and each effect named."""
        for (phase, told), (target, *effects) in TABLE.items():
            (line,) = [each for each in self.made.splitlines() if each.startswith(f"| {phase.value} | {told} |")]
            self.assertEqual(line, f"| {phase.value} | {told} | {target.value} | {', '.join(effects)} |")
            self.assertTrue(re.search(rf"^    {phase.value} --> {target.value}: .*\b{told}\b", self.made, re.MULTILINE))
        for phase in Phase:
            self.assertIn(f"    {phase.value}", self.made)


class Extras(SynchronousTestCase):
    def test_without_otel(self) -> None:
        """Without the extra the whole program can be made, and makes no spans."""
        code = (
            "import sys; sys.modules['opentelemetry'] = None\n"
            "from mcp_proxy import config, service\n"
            "from twisted.internet import reactor\n"
            "service.make_service(config.load({}, {}, None), reactor)\n"
            "assert 'mcp_proxy.tracing' not in sys.modules and type(service._tally()).__name__ == 'Tally'\n"
        )
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
