# The wheel is built in one stage and installed in another, so that no sources and no build tools are shipped.
FROM python:3.13-slim AS build
WORKDIR /src
COPY LICENSE README.md setup.cfg setup.py pyproject.toml ./
COPY mcp_proxy ./mcp_proxy
COPY twisted ./twisted
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.13-slim AS install
# `[demo]` adds the demonstration backend; docker-compose.yml asks for it.
ARG EXTRAS=""
COPY --from=build /dist /dist
RUN python -m venv /opt/mcp-proxy \
    && /opt/mcp-proxy/bin/pip install --no-cache-dir "$(echo /dist/*.whl)${EXTRAS}" \
    # Writes the plugin cache now, as root: the user that runs the proxy cannot.
    && /opt/mcp-proxy/bin/twistd --help > /dev/null

FROM python:3.13-slim
RUN useradd --system --no-create-home --shell /usr/sbin/nologin mcp-proxy
COPY --from=install /opt/mcp-proxy /opt/mcp-proxy
ENV PATH=/opt/mcp-proxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PROXY_HOST=0.0.0.0
WORKDIR /srv
USER mcp-proxy
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PROXY_PORT\") or 8001}/health', timeout=4)"]
CMD ["twistd", "--nodaemon", "--pidfile=", "mcp-proxy"]
