// An MCP server made with the official TypeScript SDK 2.x: `node server2.mjs sessions|stateless|modern PORT FOLDER`.
// It knows both eras, and serves clients of older revisions in sessions or, as the SDK does by itself, each request for
// itself; or it knows only 2026-07-28. It offers what ../backend_modern.py does; ../folder.py explains the folder.

import { randomUUID } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import path from "node:path";

import { NodeStreamableHTTPServerTransport, toNodeHandler, toWebRequest } from "@modelcontextprotocol/node";
import { Server, createMcpHandler, inputRequired, isLegacyRequest } from "@modelcontextprotocol/server";

const [mode, port, folder] = process.argv.slice(2);

const STRING = { type: "string" };
/** Each tool with the properties that it takes. */
const TOOLS = {
  echo: { text: { ...STRING, "x-mcp-header": "Text" } },
  pid: {},
  append: { line: STRING, gate: STRING },
  count: { to: { type: "integer" }, gate: STRING },
  ask: { kind: { enum: ["sampling", "elicitation"] } },
};
const QUESTIONS = {
  elicitation: inputRequired.elicit({
    message: "Which colour?",
    requestedSchema: { type: "object", properties: { answer: STRING }, required: ["answer"] },
  }),
  sampling: inputRequired.createMessage({
    messages: [{ role: "user", content: { type: "text", text: "Which colour?" } }],
    maxTokens: 10,
  }),
};

function append(name, line) {
  fs.appendFileSync(path.join(folder, name), `${line}\n`);
}

/** Wait until the gate is open, or nobody wants the result any more; without a name, there is none. */
async function passGate(name, signal) {
  while (name && fs.existsSync(path.join(folder, "gates", name))) {
    if (signal.aborted) throw new Error("cancelled");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const tools = {
  echo: ({ text }) => text,
  pid: () => String(process.pid),
  async append({ line, gate }, { signal }) {
    append("ledger.txt", line);
    try {
      await passGate(gate, signal);
    } catch (error) {
      append("ledger.txt", `cancelled ${line}`);
      throw error;
    }
    return `appended ${line}`;
  },
  async count({ to, gate }, { _meta, notify, signal }) {
    for (let progress = 1; progress <= to; progress++) {
      const params = { progressToken: _meta.progressToken, progress, total: to };
      await notify({ method: "notifications/progress", params });
    }
    await passGate(gate, signal);
    return `counted to ${to}`;
  },
  /** The SDK puts the question to clients that have a session as a request, and calls this again with the answer. */
  ask({ kind }, { inputResponses, requestState }) {
    const answer = inputResponses?.colour;
    if (!answer) return inputRequired({ inputRequests: { colour: QUESTIONS[kind] }, requestState: `by ${process.pid}` });
    if (requestState() !== `by ${process.pid}`) throw new Error(`another's state: ${requestState()}`);
    return kind === "sampling" ? answer.content.text : `${answer.action}: ${answer.content?.answer}`;
  },
};

/** Who has subscribed in a session: by URI, each with its server. */
const subscribers = new Map();

/** A server, of a session or for one request. */
function makeServer() {
  const capabilities = { tools: {}, prompts: {}, resources: { subscribe: true } };
  const server = new Server({ name: "e2e-typescript-2", version: "2.0" }, { capabilities });
  const handlers = {
    "tools/list": () => {
      const file = path.join(folder, "tools.json");
      const extra = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, "utf8")) : [];
      const all = { ...TOOLS, ...Object.fromEntries(extra.map((name) => [name, {}])) };
      const shown = ([name, properties]) => ({ name, inputSchema: { type: "object", properties } });
      return { tools: Object.entries(all).map(shown) };
    },
    "tools/call": async ({ name, arguments: given }, { mcpReq }) => {
      const result = await tools[name](given ?? {}, mcpReq);
      return typeof result === "string" ? { content: [{ type: "text", text: result }] } : result;
    },
    "resources/list": () => ({ resources: [{ uri: "note://open", name: "open" }] }),
    "resources/read": async ({ uri }, { mcpReq }) => {
      await passGate(uri.split("//")[1], mcpReq.signal);
      return { contents: [{ uri, text: `${uri} of ${process.pid}` }] };
    },
    "prompts/list": () => ({ prompts: [{ name: "greet", arguments: [{ name: "who", required: true }] }] }),
    "prompts/get": ({ arguments: given }) => ({
      messages: [{ role: "user", content: { type: "text", text: `Greet ${given?.who}.` } }],
    }),
    "resources/subscribe": ({ uri }) => {
      subscribers.set(uri, [...(subscribers.get(uri) ?? []), server]);
      return {};
    },
  };
  for (const [method, handler] of Object.entries(handlers)) {
    server.setRequestHandler(method, (request, context) => handler(request.params ?? {}, context));
  }
  return server;
}

const onerror = (error) => console.error(`server error: ${error.message}`);
const handler = createMcpHandler(makeServer, { legacy: mode === "stateless" ? "stateless" : "reject", onerror });
const serveModern = toNodeHandler(handler, { onerror });
const sessions = new Map();

/** A client of an older revision, where it has a session. */
async function serveLegacy(request, response, body) {
  const id = request.headers["mcp-session-id"];
  let transport = sessions.get(id);
  if (id && !transport) {
    const error = { code: -32001, message: "Session not found" };
    response.writeHead(404, { "content-type": "application/json" });
    response.end(JSON.stringify({ jsonrpc: "2.0", id: null, error }));
    return;
  }
  if (!transport) {
    transport = new NodeStreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (made) => void sessions.set(made, transport),
      onsessionclosed: (closed) => void sessions.delete(closed),
    });
    await makeServer().connect(transport);
  }
  await transport.handleRequest(request, response, body);
}

async function serveMcp(request, response) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = chunks.length ? JSON.parse(Buffer.concat(chunks).toString()) : undefined;
  const isLegacy = await isLegacyRequest(await toWebRequest(request, body), body);
  const isServed = !isLegacy || mode !== "modern";
  if (body && isServed) append("journal.jsonl", JSON.stringify({ pid: process.pid, message: body }));
  await (isLegacy && mode === "sessions" ? serveLegacy : serveModern)(request, response, body);
}

/** Tell whoever listens, and clients that have subscribed in their sessions, that a resource has changed. */
async function touch(uri) {
  const asked = subscribers.get(uri) ?? [];
  await Promise.all(asked.map((server) => server.sendResourceUpdated({ uri })));
  handler.notify.resourceUpdated(uri);
  return { told: asked.length + handler.bus.listenerCount };
}

async function serve(request, response) {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const pages = {
    "/health": () => ({ status: "ok", pid: process.pid }),
    "/touch": () => touch(searchParams.get("uri")),
  };
  if (pathname === "/mcp") return serveMcp(request, response);
  const page = await pages[pathname]?.();
  response.writeHead(page ? 200 : 404, { "content-type": "application/json" });
  response.end(JSON.stringify(page ?? {}));
}

http
  .createServer((request, response) => void serve(request, response).catch(onerror))
  .listen(Number(port), "127.0.0.1");
