"""What the conformance suite wants a server to offer, under the names and with the texts that it knows.

Tools, prompts and resources answer with plain JSON objects, so that what the suite judges is read here as it goes over
the wire. Only `everything_server` uses this.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import PromptsListChanged, ToolsListChanged
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

Json = dict[str, Any]
Context = ServerRequestContext[Any, Any]

#: Seconds between two notifications of one call; the suite wants to see them one by one.
PAUSE = 0.05
#: Seconds that a call goes on after its stream was closed: time for the client to come back.
ABSENCE = 0.3

#: One red pixel, and silence.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQIAAAAAAA=="

MINIMAL_SCHEMA: Json = {"type": "object", "properties": {}}


# What a request may ask for -----------------------------------------------------------------------------------------


def text(value: str) -> Json:
    """Return a content block with this text."""
    return {"type": "text", "text": value}


def image() -> Json:
    """Return a content block with a picture."""
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def embedded(uri: str, mime_type: str, value: str) -> Json:
    """Return a content block that carries a resource."""
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": value}}


def content(*blocks: Json) -> Json:
    """Return the result of a tool."""
    return {"content": list(blocks)}


def form(**properties: str | Json) -> Json:
    """Return the schema of an object that must have these properties; a string names the type of one."""
    described = {name: {"type": each} if isinstance(each, str) else each for name, each in properties.items()}
    return {"type": "object", "properties": described, "required": list(properties)}


class Unanswered(Exception):
    """A question has to be answered first; ``result`` asks it."""

    def __init__(self, result: Json) -> None:
        super().__init__("a question has to be answered first")
        self.result = result


class Input:
    """What a tool or prompt is called with.

    :ivar arguments: by name.
    :ivar answers: what the client has answered to the questions of the last round, by the question's key.
    :ivar state: what the last round gave the client to bring back.
    """

    def __init__(self, context: Context, params: types.CallToolRequestParams | types.GetPromptRequestParams) -> None:
        self.context = context
        self.arguments: Json = dict(params.arguments or {})
        self.answers: dict[str, Json] = {
            key: answer.model_dump(by_alias=True, mode="json", exclude_none=True)
            for key, answer in (params.input_responses or {}).items()
        }
        self.state = params.request_state

    @property
    def capabilities(self) -> types.ClientCapabilities:
        """What the client declares to support."""
        return self.context.session.client_capabilities or types.ClientCapabilities()

    def given(self, questions: dict[str, Json]) -> dict[str, Json]:
        """Return the answers to these questions; without them, the questions are the result of this round."""
        if not questions.keys() <= self.answers.keys():
            raise Unanswered(asks(**questions))
        return self.answers

    async def log(self, message: str) -> None:
        """Send a log message on the stream of this request."""
        await self.context.session.send_log_message("info", message, related_request_id=self.context.request_id)

    async def elicit(self, message: str, schema: Json) -> str:
        """Ask the user; return the answer as text."""
        if self.is_stateless:
            question: Json = {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}
            given = self.given({"question": question})["question"]
            return f"action={given.get('action')}, content={json.dumps(given.get('content') or {})}"
        request = types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))
        answer = await self.context.session.send_request(request, types.ElicitResult, metadata=self._here())
        return f"action={answer.action}, content={json.dumps(answer.content or {})}"

    async def sample(self, prompt: str) -> str:
        """Ask the client's model."""
        if self.is_stateless:
            return str(self.given({"question": model_question(prompt)})["question"].get("content", {}).get("text"))
        question = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=prompt))
        request = types.CreateMessageRequest(
            params=types.CreateMessageRequestParams(messages=[question], max_tokens=100)
        )
        answer = await self.context.session.send_request(request, types.CreateMessageResult, metadata=self._here())
        return answer.content.text if isinstance(answer.content, types.TextContent) else answer.content.type

    @property
    def is_stateless(self) -> bool:
        """Whether the revision is one in which questions are results."""
        return self.context.protocol_version in MODERN_PROTOCOL_VERSIONS

    def _here(self) -> ServerMessageMetadata:
        """Keep what is sent on the stream of this request; the client may have no other."""
        return ServerMessageMetadata(related_request_id=self.context.request_id)


# Questions in the answer: how a server of the stateless revisions asks ----------------------------------------------


def asks(state: str | None = None, /, **questions: Json) -> Json:
    """Return the result that asks these questions before the real one, with something to bring back."""
    result: Json = {"resultType": "input_required", "inputRequests": questions}
    return result if state is None else {**result, "requestState": state}


def form_question(message: str, **properties: str | Json) -> Json:
    """Return a question to the user."""
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": form(**properties)}}


def model_question(prompt: str, tokens: int = 100) -> Json:
    """Return a question to the client's model."""
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


ROOTS_QUESTION: Json = {"method": "roots/list", "params": {}}
NAME_QUESTION = form_question("What is your name?", name="string")
CONFIRM_QUESTION = form_question("Please confirm", ok="boolean")


# Tools --------------------------------------------------------------------------------------------------------------

Tool = Callable[[Input], Coroutine[Any, Any, Json]]
TOOLS: dict[str, Tool] = {}
SCHEMAS: dict[str, Json] = {}


def tool(schema: Json = MINIMAL_SCHEMA) -> Callable[[Tool], Tool]:
    """Offer the decorated function as a tool: its name is the tool's, its docstring the description."""

    def register(function: Tool) -> Tool:
        TOOLS[function.__name__] = function
        SCHEMAS[function.__name__] = schema
        return function

    return register


@tool()
async def test_simple_text(call: Input) -> Json:
    """Return a text."""
    return content(text("This is a simple text response for testing."))


@tool()
async def test_image_content(call: Input) -> Json:
    """Return a picture."""
    return content(image())


@tool()
async def test_audio_content(call: Input) -> Json:
    """Return a sound."""
    return content({"type": "audio", "data": WAV, "mimeType": "audio/wav"})


@tool()
async def test_embedded_resource(call: Input) -> Json:
    """Return a resource."""
    return content(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content."))


@tool()
async def test_multiple_content_types(call: Input) -> Json:
    """Return a text, a picture and a resource."""
    resource = embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return content(text("Multiple content types test:"), image(), resource)


@tool()
async def test_error_handling(call: Input) -> Json:
    """Fail."""
    return {**content(text("This tool intentionally returns an error for testing")), "isError": True}


@tool()
async def test_tool_with_logging(call: Input) -> Json:
    """Send three log messages."""
    for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await call.log(message)
        await asyncio.sleep(PAUSE)
    return content(text("logged"))


@tool()
async def test_logging_tool(call: Input) -> Json:
    """Send a log message."""
    await call.log("logged by the tool")
    return content(text("logged"))


@tool()
async def test_tool_with_progress(call: Input) -> Json:
    """Report progress three times, if the client wants to know."""
    for done in (0, 50, 100):
        await call.context.session.report_progress(done, 100)
        await asyncio.sleep(PAUSE)
    return content(text("done"))


@tool(schema=form(prompt="string"))
async def test_sampling(call: Input) -> Json:
    """Ask the client's model."""
    return content(text(f"LLM response: {await call.sample(call.arguments['prompt'])}"))


@tool(schema=form(message="string"))
async def test_elicitation(call: Input) -> Json:
    """Ask the user."""
    answer = await call.elicit(call.arguments["message"], form(username="string", email="string"))
    return content(text(f"User response: {answer}"))


@tool()
async def test_elicitation_sep1034_defaults(call: Input) -> Json:
    """Ask the user with a default for each primitive type."""
    schema = form(
        name={"type": "string", "default": "John Doe"},
        age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5},
        status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        verified={"type": "boolean", "default": True},
    )
    return content(text(f"Elicitation completed: {await call.elicit('Who are you?', schema)}"))


@tool()
async def test_elicitation_sep1330_enums(call: Input) -> Json:
    """Ask the user with each way to write an enumeration."""
    plain = {"type": "string", "enum": ["option1", "option2", "option3"]}
    titled = [{"const": f"value{number}", "title": f"Value {number}"} for number in (1, 2, 3)]
    legacy = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
    schema = form(
        untitledSingle=plain,
        titledSingle={"type": "string", "oneOf": titled},
        legacyEnum={"type": "string", **legacy},
        untitledMulti={"type": "array", "items": plain},
        titledMulti={"type": "array", "items": {"anyOf": titled}},
    )
    return content(text(f"Elicitation completed: {await call.elicit('Which ones?', schema)}"))


@tool()
async def test_reconnection(call: Input) -> Json:
    """Close the stream of this call, and give the result when the client may have come back."""
    await call.log("the stream will be closed")
    if call.context.close_sse_stream is not None:
        await call.context.close_sse_stream()
    await asyncio.sleep(ABSENCE)
    await call.log("the stream was closed")
    return content(text("Reconnection test completed"))


@tool(
    schema={
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {"$anchor": "addressDef", **form(street="string", city="string"), "required": []}},
        "properties": {
            **dict.fromkeys(("name", "phone", "email"), {"type": "string"}),
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    }
)
async def json_schema_2020_12_tool(call: Input) -> Json:
    """Take arguments whose schema uses what JSON Schema 2020-12 has."""
    return content(text("valid"))


# Tools of the stateless revisions -----------------------------------------------------------------------------------


@tool(schema={"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}})
async def test_x_mcp_header(call: Input) -> Json:
    """Take an argument that has to be in a header, too."""
    return content(text(call.arguments.get("region", "nowhere")))


@tool()
async def test_missing_capability(call: Input) -> Json:
    """Refuse a client that cannot sample."""
    if call.capabilities.sampling is None:
        needed: Json = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "this tool needs sampling", needed)
    return content(text("the client can sample"))


@tool()
async def test_streaming_elicitation(call: Input) -> Json:
    """Report progress, then ask the user."""
    await call.context.session.report_progress(1, 2)
    return content(text("answered")) if call.answers else asks(user_name=NAME_QUESTION)


@tool()
async def test_input_required_result_elicitation(call: Input) -> Json:
    """Ask for a name in the result."""
    name = call.answers.get("user_name", {}).get("content", {}).get("name")
    return content(text(f"Hello, {name}!")) if name else asks(user_name=NAME_QUESTION)


@tool()
async def test_input_required_result_sampling(call: Input) -> Json:
    """Ask the client's model in the result."""
    answer = call.answers.get("capital_question")
    if answer is None:
        return asks(capital_question=model_question("What is the capital of France?"))
    return content(text(json.dumps(answer.get("content"))))


@tool()
async def test_input_required_result_list_roots(call: Input) -> Json:
    """Ask for the roots in the result."""
    answer = call.answers.get("client_roots")
    if answer is None:
        return asks(client_roots=ROOTS_QUESTION)
    return content(text(" ".join(root["uri"] for root in answer["roots"])))


@tool()
async def test_input_required_result_request_state(call: Input) -> Json:
    """Ask for a confirmation, and for a state back."""
    if "confirm" in call.answers and call.state == "asked":
        return content(text("state-ok"))
    return asks("asked", confirm=CONFIRM_QUESTION)


@tool()
async def test_input_required_result_tampered_state(call: Input) -> Json:
    """Ask for a state back that nobody may change; the SDK signs it, and refuses another."""
    return asks("untouched", confirm=CONFIRM_QUESTION) if call.state is None else content(text("state-ok"))


@tool()
async def test_input_required_result_multiple_inputs(call: Input) -> Json:
    """Ask the user, the model and the client at once."""
    questions = {
        "user_name": NAME_QUESTION,
        "greeting": model_question("Generate a greeting", tokens=50),
        "client_roots": ROOTS_QUESTION,
    }
    return content(text("all answered")) if questions.keys() <= call.answers.keys() else asks("three", **questions)


@tool()
async def test_input_required_result_multi_round(call: Input) -> Json:
    """Ask twice; the state carries the first answer through the second round."""
    known: Json = json.loads(call.state or "{}")
    known |= {key: call.answers[key].get("content") for key in ("step1", "step2") if key in call.answers}
    if "step1" not in known:
        return asks(json.dumps(known), step1=form_question("Step 1: What is your name?", name="string"))
    if "step2" not in known:
        return asks(json.dumps(known), step2=form_question("Step 2: What is your favorite color?", color="string"))
    return content(text(json.dumps(known)))


@tool()
async def test_input_required_result_capabilities(call: Input) -> Json:
    """Ask only what the client has declared to answer."""
    questions: dict[str, Json] = {}
    if call.capabilities.sampling is not None:
        questions["sample"] = model_question("Say hello")
    if call.capabilities.elicitation is not None:
        questions["user_name"] = NAME_QUESTION
    return asks(**questions) if questions else content(text("there is nobody to ask"))


# Changes, as the streams of ``subscriptions/listen`` tell them.
CHANGES = InMemorySubscriptionBus()


@tool()
async def test_trigger_tool_change(call: Input) -> Json:
    """Say that the tools have changed."""
    await CHANGES.publish(ToolsListChanged())
    if not call.is_stateless:
        await call.context.session.send_tool_list_changed()
    return content(text("told"))


@tool()
async def test_trigger_prompt_change(call: Input) -> Json:
    """Say that the prompts have changed."""
    await CHANGES.publish(PromptsListChanged())
    if not call.is_stateless:
        await call.context.session.send_prompt_list_changed()
    return content(text("told"))


# Prompts ------------------------------------------------------------------------------------------------------------

#: Each prompt with its description and arguments.
PROMPTS: dict[str, tuple[str, list[str]]] = {
    "test_simple_prompt": ("One message.", []),
    "test_prompt_with_arguments": ("A message with two arguments in it.", ["arg1", "arg2"]),
    "test_prompt_with_embedded_resource": ("A resource and what to do with it.", ["resourceUri"]),
    "test_prompt_with_image": ("A picture and what to do with it.", []),
    "test_input_required_result_prompt": ("A message, after a question to the user.", []),
}


def prompt_blocks(name: str, call: Input) -> list[Json] | None:
    """Return what the messages of this prompt contain, None if it has to ask first."""
    arguments = call.arguments
    if name == "test_simple_prompt":
        return [text("This is a simple prompt for testing.")]
    if name == "test_prompt_with_arguments":
        return [text(f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'")]
    if name == "test_prompt_with_embedded_resource":
        resource = embedded(arguments["resourceUri"], "text/plain", "Embedded resource content for testing.")
        return [resource, text("Please process the embedded resource above.")]
    if name == "test_prompt_with_image":
        return [image(), text("Please analyze the image above.")]
    answer = call.answers.get("user_context", {}).get("content", {})
    return [text(answer["context"])] if "context" in answer else None


# Resources ----------------------------------------------------------------------------------------------------------

TEMPLATE = "test://template/{id}/data"
#: Each resource with its description, its type, and whether it is text or a blob.
RESOURCES: dict[str, tuple[str, str, Json]] = {
    "test://static-text": (
        "A text that stays.",
        "text/plain",
        {"text": "This is the content of the static text resource."},
    ),
    "test://static-binary": ("A picture that stays.", "image/png", {"blob": PNG}),
    "test://watched-resource": ("Something to subscribe to.", "text/plain", {"text": "nothing new"}),
}


def resource_contents(uri: str) -> Json:
    """Return the contents of a resource.

    :raises MCPError: there is no such resource.
    """
    if uri in RESOURCES:
        _, mime_type, body = RESOURCES[uri]
        return {"uri": uri, "mimeType": mime_type, **body}
    match = re.fullmatch(re.escape(TEMPLATE).replace(r"\{id\}", "([^/]+)"), uri)
    if match is None:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    value = {"id": match[1], "templateTest": True, "data": f"Data for ID: {match[1]}"}
    return {"uri": uri, "mimeType": "application/json", "text": json.dumps(value)}
