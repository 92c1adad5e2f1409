# syntax=docker/dockerfile:1
# One image for every role: `run FLOW`, `gateway`, `topics create`.
#   docker build --tag headrace .                                    PyTorch for CPUs
#   docker build --tag headrace-cuda --build-arg VARIANT=cuda .      PyTorch with CUDA, for GPUs (x86-64)
# It runs with a read-only root: what it writes is in /data (state) and /tmp.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH
WORKDIR /build
COPY pyproject.toml requirements.lock README.md LICENSE ./
# The wheels of PyTorch on PyPI carry CUDA, 3 GB of it. Without it they are the same release with the local version +cpu,
# which satisfies the lock; what PyTorch itself needs comes in the next step.
RUN case "$VARIANT" in \
      cpu) pip install --no-deps --index-url "$TORCH_CPU_INDEX" --constraint requirements.lock torch ;; \
      cuda) ;; \
      *) echo "VARIANT=$VARIANT: cpu or cuda" >&2; exit 1 ;; \
    esac
# Dependencies first, with no code of ours in the packages: their layer is built anew only when they change.
RUN mkdir schemas connectors operators flows gateway cli \
    && pip install --constraint requirements.lock '.[embedded,postgres,s3,otel]'
COPY schemas schemas
COPY connectors connectors
COPY operators operators
COPY flows flows
COPY gateway gateway
COPY cli cli
RUN pip install --no-deps --force-reinstall . \
    && python -m compileall -q /opt/headrace/lib

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
# tini reaps what killed parsers leave behind: process 1 inherits it, and Python would keep it as zombies.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tesseract-ocr tesseract-ocr-eng tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin headrace \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data \
    && install --directory --owner 10001 --group 10001 --mode 0750 /objects
COPY --from=build /opt/headrace /opt/headrace
# Named volumes take over owner and mode of /data and /objects when they are made.
ENV PATH=/opt/headrace/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HEADRACE_DATA_DIR=/data \
    HEADRACE_METRICS_PORT=9464
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 9464 9700
VOLUME ["/data"]
# Of flows: that they close epochs. A gateway knows no such path (404), and lives if it says so; its probes are at 8080.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=4 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; asked = HTTPConnection('127.0.0.1', int(os.environ['HEADRACE_METRICS_PORT']), timeout=4); asked.request('GET', '/livez'); sys.exit(asked.getresponse().status not in (200, 404))"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "headrace"]
CMD ["--help"]
