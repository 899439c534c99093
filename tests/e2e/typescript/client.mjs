// A client of the official TypeScript SDK (SSEClientTransport), driven by a test: `node client.mjs`.
// It understands the commands of ../python_client.py, which explains them; `connect` also takes `resuming`, for a
// transport that comes back with Last-Event-ID.

import readline from "node:readline";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { CreateMessageRequestSchema, ElicitRequestSchema, McpError } from "@modelcontextprotocol/sdk/types.js";
import { EventSource } from "eventsource";

/**
 * HTTP+SSE by the book, as a browser does it: when the stream breaks, EventSource opens it again and tells the id of
 * the last event that it got. (The SDK's transport has an EventSource too, but replaces the headers it wants to send.)
 */
class ResumingTransport {
  constructor(url) {
    this.url = url;
  }

  start() {
    this.stream = new EventSource(this.url);
    this.stream.addEventListener("message", (event) => this.onmessage(JSON.parse(event.data)));
    return new Promise((resolve) => {
      this.stream.addEventListener("endpoint", (event) => {
        this.endpoint = new URL(event.data, this.url);
        resolve();
      });
    });
  }

  async send(message) {
    const headers = { "content-type": "application/json" };
    const response = await fetch(this.endpoint, { method: "POST", headers, body: JSON.stringify(message) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
  }

  async close() {
    this.stream.close();
  }
}

/** One client: its commands are the methods after the constructor. */
class Driven {
  #seen = [];
  #mayAnswer = Promise.resolve();
  #release = () => {};

  constructor() {
    const capabilities = { sampling: {}, elicitation: {} };
    this.sdk = new Client({ name: "e2e-typescript", version: "1.0" }, { capabilities });
    this.sdk.setRequestHandler(CreateMessageRequestSchema, async () => {
      await this.#mayAnswer;
      return { role: "assistant", content: { type: "text", text: "blue" }, model: "none" };
    });
    this.sdk.setRequestHandler(ElicitRequestSchema, async () => {
      await this.#mayAnswer;
      return { action: "accept", content: { answer: "blue" } };
    });
    this.sdk.onerror = (error) => console.error(`client error: ${error.message}`);
  }

  async connect({ url, resuming }) {
    const transport = new (resuming ? ResumingTransport : SSEClientTransport)(new URL(url));
    // The SDK keeps this handler and calls it first.
    transport.onmessage = (message) => {
      if ("method" in message) this.#seen.push(message);
    };
    await this.sdk.connect(transport);
    return this.sdk.getServerCapabilities();
  }

  async list() {
    return (await this.sdk.listTools()).tools.map((tool) => tool.name);
  }

  async call({ tool, arguments: parameters }) {
    const progress = [];
    const onprogress = (report) => progress.push(report.progress);
    const result = await this.sdk.callTool({ name: tool, arguments: parameters }, undefined, { onprogress });
    const text = result.content.map((part) => part.text).join("");
    if (result.isError) throw new Error(text);
    return { text, progress };
  }

  async read({ uri }) {
    return (await this.sdk.readResource({ uri })).contents[0].text;
  }

  async subscribe({ uri }) {
    await this.sdk.subscribeResource({ uri });
    return null;
  }

  async set_level({ level }) {
    await this.sdk.setLoggingLevel(level);
    return null;
  }

  async ping() {
    await this.sdk.ping();
    return null;
  }

  seen() {
    return this.#seen;
  }

  hold() {
    this.#mayAnswer = new Promise((resolve) => (this.#release = resolve));
    return null;
  }

  release() {
    this.#release();
    return null;
  }
}

async function perform(client, { id, do: command, ...options }) {
  try {
    return { id, value: await client[command](options) };
  } catch (error) {
    const isAnswer = error instanceof McpError;
    const message = isAnswer ? error.message : String(error);
    return { id, error: { code: isAnswer ? error.code : null, message, data: error.data ?? null } };
  }
}

const clients = new Map();
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { client: name, ...command } = JSON.parse(line);
  if (!clients.has(name)) clients.set(name, new Driven());
  perform(clients.get(name), command).then((answer) => process.stdout.write(JSON.stringify(answer) + "\n"));
}
process.exit();
