// Clients of the official TypeScript SDK 1.x, driven by a test: `node client.mjs`.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { CreateMessageRequestSchema, ElicitRequestSchema, McpError } from "@modelcontextprotocol/sdk/types.js";

import { drive } from "./driver.mjs";

await drive({
  makeClient(sample, elicit) {
    const capabilities = { sampling: {}, elicitation: {} };
    const client = new Client({ name: "e2e-typescript", version: "1.0" }, { capabilities });
    client.setRequestHandler(CreateMessageRequestSchema, sample);
    client.setRequestHandler(ElicitRequestSchema, elicit);
    return client;
  },
  transports: { sse: SSEClientTransport, streamable: StreamableHTTPClientTransport },
  call: (client, request, options) => client.callTool(request, undefined, options),
  isAnswer: (error) => error instanceof McpError,
});
