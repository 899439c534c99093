// What a client of the TypeScript SDK needs to be driven by a test, whichever the SDK is.
// It understands the commands of ../python_client.py, which explains them; `connect` also takes `resuming`, for an
// HTTP+SSE transport that comes back with Last-Event-ID.

import readline from "node:readline";

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

/**
 * One client: its commands are the methods after the constructor.
 *
 * @param sdk what differs from one SDK to the other: makeClient(sample, elicit), transports by their names,
 *   call(client, request, options), and isAnswer(error) for errors that came as an answer.
 */
class Driven {
  #sdk;
  #seen = [];
  #mayAnswer = Promise.resolve();
  #release = () => {};
  #calls = [];

  constructor(sdk) {
    this.#sdk = sdk;
    this.client = sdk.makeClient(
      async () => {
        await this.#mayAnswer;
        return { role: "assistant", content: { type: "text", text: "blue" }, model: "none" };
      },
      async () => {
        await this.#mayAnswer;
        return { action: "accept", content: { answer: "blue" } };
      },
    );
    this.client.onerror = (error) => console.error(`client error: ${error.message}`);
  }

  async connect({ url, transport: name, resuming }) {
    const transport = new (resuming ? ResumingTransport : this.#sdk.transports[name])(new URL(url));
    // The SDK keeps this handler and calls it first.
    transport.onmessage = (message) => {
      if ("method" in message) this.#seen.push(message);
    };
    await this.client.connect(transport);
    return this.client.getServerCapabilities();
  }

  async list() {
    return (await this.client.listTools()).tools.map((tool) => tool.name);
  }

  async call({ tool, arguments: parameters }) {
    const progress = [];
    const onprogress = (report) => progress.push(report.progress);
    const call = { tool, abort: new AbortController() };
    this.#calls.push(call);
    const options = { onprogress, signal: call.abort.signal };
    const result = await this.#sdk.call(this.client, { name: tool, arguments: parameters }, options);
    const text = result.content.map((part) => part.text).join("");
    if (result.isError) throw new Error(text);
    return { text, progress };
  }

  cancel({ tool }) {
    for (const call of this.#calls) if (call.tool === tool) call.abort.abort("not wanted");
    return null;
  }

  async read({ uri }) {
    return (await this.client.readResource({ uri })).contents[0].text;
  }

  async resources() {
    return (await this.client.listResources()).resources.map((resource) => resource.uri);
  }

  async prompts() {
    return (await this.client.listPrompts()).prompts.map((prompt) => prompt.name);
  }

  async prompt({ name, arguments: parameters }) {
    return (await this.client.getPrompt({ name, arguments: parameters })).messages[0].content.text;
  }

  async subscribe({ uri }) {
    await this.client.subscribeResource({ uri });
    return null;
  }

  /** Of the SDK 2.x, for servers of revision 2026-07-28. */
  async listen({ uris }) {
    this.subscription = await this.client.listen({ resourceSubscriptions: uris });
    return null;
  }

  events() {
    return this.#seen.filter((message) => message.method === "notifications/resources/updated");
  }

  async set_level({ level }) {
    await this.client.setLoggingLevel(level);
    return null;
  }

  async ping() {
    await this.client.ping();
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

async function perform(sdk, client, { id, do: command, ...options }) {
  try {
    return { id, value: await client[command](options) };
  } catch (error) {
    const isAnswer = sdk.isAnswer(error);
    const message = isAnswer ? error.message : String(error);
    return { id, error: { code: isAnswer ? error.code : null, message, data: error.data ?? null } };
  }
}

/** Perform the commands on stdin, until it ends. */
export async function drive(sdk) {
  const clients = new Map();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { client: name, ...command } = JSON.parse(line);
    if (!clients.has(name)) clients.set(name, new Driven(sdk));
    perform(sdk, clients.get(name), command).then((answer) => process.stdout.write(JSON.stringify(answer) + "\n"));
  }
  process.exit();
}
