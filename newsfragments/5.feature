SIGTERM drains: no new connections and sessions, `/ready` says 503, clients that wait for nothing are let go with
`retry:`, requests in flight have `DRAIN_TIMEOUT` seconds, the rest is told the truth.
What happens is counted, for Prometheus, at `/metrics`, which `ADMIN_TOKEN` guards.
A Grafana dashboard, alerts, a systemd unit, and files for compose, Kubernetes and Azure Container Apps are in `deploy/`.
With the extra `otel` each request has a span of OpenTelemetry; trace context is passed on in any case.
`make soak` runs clients of all kinds over hundreds of restarts and fails on a lost or doubled answer, and on growth.
Limits: `MAX_REQUEST_RATE` and `MAX_REQUEST_BURST`, `MAX_SESSIONS_PER_CREDENTIAL`, `MAX_STREAMS`, `MAX_BATCH`,
`HOLD_MAX_TOTAL_BYTES`. What is refused is counted by its reason, in `/health` and `/metrics`; a request that does not
come in time gets 408. `docs/security.md` is a checklist with the tests of each line.
Pages of `ALLOWED_ORIGINS` can read the answers (CORS). `BACKEND_CA_FILE`, `BACKEND_CLIENT_CERT` and `BACKEND_CLIENT_KEY`:
TLS with a private authority, and with a certificate of the proxy's own.
With `PROXY_API_KEYS_FILE` clients must show one of the proxy's own keys as `X-Proxy-Key`, which the server never sees.
A Host or Origin that merely holds a loopback name (`localhost/x`, `x@localhost`) is refused.
