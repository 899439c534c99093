"""Tasks of revision 2026-07-28, which go on after their call is answered, and what a listen tells of them."""

from __future__ import annotations

from twisted.internet import reactor

from tests.e2e.cases import EndToEnd
from tests.e2e.kinds import BackendKind, python2
from tests.e2e.processes import Command, Program, until
from tests.support import modern
from tests.support.messages import Json
from tests.support.modern_client import ModernClient
from tests.support.streamable_client import Sent

DECLARED: Json = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


def _server(*, keeps_tasks: bool) -> Program:
    """The server that the conformance suite is run against; it is the only one with tasks."""
    options = "['--port', port, '--tasks', folder]" if keeps_tasks else "['--port', port]"
    given = f"import sys; _, port, folder = sys.argv; sys.argv[1:] = {options}"
    return Command([python2(), "-c", f"{given}; from tests.conformance.everything_server import main; main()"])


class TasksCase(EndToEnd):
    """One client."""

    client_kinds = ()

    async def setUp(self) -> None:
        """The client, ready."""
        await super().setUp()
        self.visitor = ModernClient(reactor, self.proxy.port)
        self.addCleanup(self.visitor.hang_up)
        self._count = 0

    async def asked(self, method: str, **params: object) -> Sent:
        """Send a request of a client that knows of tasks."""
        self._count += 1
        more = {modern.META_CAPABILITIES: DECLARED}
        return await self.visitor.request(modern.request(method, self._count, params, **more))

    async def result(self, method: str, **params: object) -> Json:
        """The same with its result."""
        sent = await self.asked(method, **params)
        (message,) = await until(lambda: sent.messages, f"{method} is answered")
        result: Json = message["result"]
        return result

    async def begun(self, seconds: float) -> str:
        """Begin a task that takes so long; return its id."""
        result = await self.result("tools/call", name="slow_compute", arguments={"seconds": seconds})
        identity: str = result["taskId"]
        return identity

    async def listening(self, *identities: str) -> Sent:
        """Listen for tasks, and wait until each has been told of."""
        sent = await self.asked("subscriptions/listen", notifications={"taskIds": list(identities)})
        await until(lambda: len(sent.messages) == 1 + len(identities), "they are told of")
        acknowledged = modern.acknowledged(self._count, taskIds=list(identities))
        self.assertEqual(sent.messages[0], acknowledged)
        return sent

    def told(self, sent: Sent) -> list[tuple[str, str]]:
        """Of which tasks what has been told."""
        told = [each["params"] for each in sent.messages if each.get("method") == "notifications/tasks"]
        return [(each["taskId"], each["status"]) for each in told]

    async def ended(self, sent: Sent) -> None:
        """Wait until it ends, as it must: with a complete result."""
        answer = await self.visitor.complete(sent)
        result = sent.messages[-1]["result"]
        subscription = sent.messages[0]["params"]["_meta"][modern.META_SUBSCRIPTION]
        self.assertEqual(result["resultType"], "complete", answer)
        self.assertEqual(result["_meta"][modern.META_SUBSCRIPTION], subscription)


class Forgetful(TasksCase):
    """A server that loses its tasks."""

    backend_kind = BackendKind("Forgetful", "streamable", lambda: _server(keeps_tasks=False), (), "/mcp")

    async def test_undisturbed(self) -> None:
        """What becomes of a task is told, and can be asked for."""
        task = await self.begun(0.5)
        sent = await self.listening(task)
        await self.ended(sent)
        self.assertEqual(self.told(sent), [(task, "working"), (task, "completed")])
        self.assertEqual((await self.result("tasks/get", taskId=task))["status"], "completed")

    async def test_crash(self) -> None:
        """With a crash the listen ends, for nothing will be told of its tasks any more."""
        task = await self.begun(600)
        sent = await self.listening(task)
        await self.backend.restart()
        await self.ended(sent)
        self.assertEqual(self.told(sent), [(task, "working")])


class Mindful(TasksCase):
    """A server that knows after a crash which tasks it has lost."""

    backend_kind = BackendKind("Mindful", "streamable", lambda: _server(keeps_tasks=True), (), "/mcp")

    async def test_crash(self) -> None:
        """The listen goes on with the next server, which tells what has become of the same task."""
        task = await self.begun(600)
        sent = await self.listening(task)
        await self.backend.restart()
        await self.ended(sent)
        self.assertEqual(self.told(sent), [(task, "working"), (task, "failed")])
        self.assertEqual([each.get("method", "result") for each in sent.messages].count(modern.ACKNOWLEDGED), 1)
        self.assertEqual((await self.result("tasks/get", taskId=task))["status"], "failed")
