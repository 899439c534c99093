// Clients of the official TypeScript SDK 2.x, driven by a test: `node client2.mjs`. They do not negotiate the revision
// 2026-07-28, and shake hands as those of 1.x do; with `auto` as an argument they do.

import { Client, ProtocolError, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

import { drive } from "./driver.mjs";

await drive({
  makeClient(sample, elicit) {
    const capabilities = { sampling: {}, elicitation: {} };
    const options = { capabilities, versionNegotiation: { mode: process.argv[2] ?? "legacy" } };
    const client = new Client({ name: "e2e-typescript-2", version: "1.0" }, options);
    client.setRequestHandler("sampling/createMessage", sample);
    client.setRequestHandler("elicitation/create", elicit);
    return client;
  },
  transports: {
    sse: SSEClientTransport,
    streamable: StreamableHTTPClientTransport,
    modern: StreamableHTTPClientTransport,
  },
  call: (client, request, options) => client.callTool(request, options),
  isAnswer: (error) => error instanceof ProtocolError,
});
