# The agent and the reference Supervisor, in one image: docs/docker.md says how it is run.
#
#   docker build --tag iggy-agent .
#
# BASE is any image with Python 3.11 or newer, pip and openssl; the two stages need the same one.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# Wheels that `make wheelhouse` gathered are taken where they fit. With --build-arg PIP_NO_INDEX=1 nothing else is, and
# the build needs no network.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_FIND_LINKS=/build/wheels
WORKDIR /build
COPY requirements.lock requirements-build.lock build/wheelhous[e]/*.whl wheels/
RUN python3 -m venv --without-pip /opt/iggy-agent \
 && python3 -m pip --python /opt/iggy-agent/bin/python3 install --require-hashes --only-binary :all: -r wheels/requirements.lock
RUN python3 -m venv --without-pip tools \
 && python3 -m pip --python tools/bin/python3 install --no-compile --require-hashes --only-binary :all: -r wheels/requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY supervisor supervisor
RUN python3 -m pip --python tools/bin/python3 wheel --no-deps --no-build-isolation --wheel-dir wheel . \
 && python3 -m pip --python /opt/iggy-agent/bin/python3 install --no-index --no-deps wheel/*.whl

FROM ${BASE}
# Numbers, so that they can be named where the names are not known: `group_add`, `chown` on the host.
RUN echo 'iggy-agent:x:10001:10001::/var/lib/iggy-agent:/bin/false' >> /etc/passwd \
 && echo 'iggy-agent:x:10001:' >> /etc/group \
 && mkdir -p /etc/iggy-agent /run/iggy-agent /run/iggy-setup /var/lib/iggy-supervisor \
      /var/lib/iggy-agent/runtimes/iggy /var/lib/iggy-agent/runtimes/connectors \
 && chown -R 10001:10001 /run/iggy-agent /run/iggy-setup /var/lib/iggy-agent /var/lib/iggy-supervisor \
 && chmod 0711 /var/lib/iggy-agent && chmod 0700 /var/lib/iggy-supervisor
COPY --from=build /opt/iggy-agent /opt/iggy-agent
ENV PATH=/opt/iggy-agent/bin:$PATH PYTHONUNBUFFERED=1 HOME=/var/lib/iggy-agent \
    CONFIGURATION_DIRECTORY=/etc/iggy-agent STATE_DIRECTORY=/var/lib/iggy-agent RUNTIME_DIRECTORY=/run/iggy-agent
USER 10001:10001
# Degraded is alive: a Supervisor that is away is no reason to replace the agent.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD ["/bin/sh", "-c", "iggy-agent status >/dev/null; test $? -le 1"]
ENTRYPOINT ["iggy-agent"]
CMD ["run"]
