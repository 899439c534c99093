// A client of the official TypeScript SDK (SSEClientTransport), driven by a test: `node client.mjs`.
// It understands the commands of ../python_client.py, which explains them.

import readline from "node:readline";

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { CreateMessageRequestSchema, ElicitRequestSchema, McpError } from "@modelcontextprotocol/sdk/types.js";

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

  async connect({ url }) {
    const transport = new SSEClientTransport(new URL(url));
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
