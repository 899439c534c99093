// Makes npm's server-everything fit for a test: `node --import ./everything.mjs .../index.js sse|streamableHttp`.
// It listens on all interfaces, which is not ours to offer, and it does not tell what it receives.

import fs from "node:fs";
import http from "node:http";
import net from "node:net";

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, port, "127.0.0.1", ...rest);
};

/** Write down the message of a POST, as ../folder.py describes it, when all of it has arrived. */
function journal(request) {
  const chunks = [];
  const emit = request.emit;
  request.emit = function (name, ...rest) {
    if (name === "data") chunks.push(Buffer.from(rest[0]));
    if (name === "end" && chunks.length) {
      const message = JSON.parse(Buffer.concat(chunks).toString());
      fs.appendFileSync("journal.jsonl", JSON.stringify({ pid: process.pid, message }) + "\n");
    }
    return emit.call(this, name, ...rest);
  };
}

const emit = http.Server.prototype.emit;
http.Server.prototype.emit = function (name, request, ...rest) {
  if (name === "request" && request.method === "POST") journal(request);
  return emit.call(this, name, request, ...rest);
};
