# Two images from one file:
#   gateway  gateway, listener and relay; no torch, so it stays small
#   worker   everything, with torch and the networks
#
#   docker build --target gateway -t embolens-gateway .
#   docker build --target worker  -t embolens-worker .
#
# Build arguments: PIP_INDEX_URL where packages come from another index than pip's own; TORCH_INDEX_URL an index that
# holds a smaller torch build, for workers without a GPU.
ARG PYTHON_IMAGE=python:3.11-slim


FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A number, so that an orchestrator can tell that it is not root. The data directory belongs to it: a new named volume
# mounted there takes over owner and mode.
RUN groupadd --system --gid 10001 embolens \
    && useradd --system --uid 10001 --gid embolens --no-create-home --home-dir /nonexistent embolens \
    && install -d -o embolens -g embolens -m 0750 /var/lib/embolens
WORKDIR /app


# Packages are installed in stages of their own: what installs them stays behind there.
FROM base AS gateway-packages
ARG PIP_INDEX_URL
COPY requirements-gateway.lock /tmp/requirements.lock
RUN python3 -m venv /tmp/installer \
    && python3 -m venv --without-pip /opt/venv \
    && /tmp/installer/bin/pip --python /opt/venv/bin/python3 install --no-cache-dir --only-binary :all: \
        --require-hashes --requirement /tmp/requirements.lock \
    && printf '#!/opt/venv/bin/python3\nfrom cli.app import main\n\nmain()\n' > /opt/venv/bin/embolens \
    && chmod 0755 /opt/venv/bin/embolens


FROM base AS worker-packages
ARG PIP_INDEX_URL
ARG TORCH_INDEX_URL
COPY requirements.lock requirements-torch.lock /tmp/
RUN python3 -m venv /tmp/installer \
    && python3 -m venv --without-pip /opt/venv \
    && /tmp/installer/bin/pip --python /opt/venv/bin/python3 install --no-cache-dir --only-binary :all: \
        --require-hashes --requirement /tmp/requirements.lock \
    && /tmp/installer/bin/pip --python /opt/venv/bin/python3 install --no-cache-dir --only-binary :all: \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} --requirement /tmp/requirements-torch.lock \
    && printf '#!/opt/venv/bin/python3\nfrom cli.app import main\n\nmain()\n' > /opt/venv/bin/embolens \
    && chmod 0755 /opt/venv/bin/embolens


FROM base AS application
LABEL org.opencontainers.image.title="Embolens" \
      org.opencontainers.image.description="Finds pulmonary emboli in CT pulmonary angiograms. Research use only." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY imaging /app/imaging
COPY services /app/services
COPY migrations /app/migrations
COPY cli /app/cli
COPY deploy/intake.toml deploy/destinations.toml /app/deploy/
ENV EMBOLENS_DATA_DIR=/var/lib/embolens
VOLUME /var/lib/embolens
ENTRYPOINT ["embolens"]


FROM application AS worker
COPY --from=worker-packages /opt/venv /opt/venv
COPY models /app/models
COPY worker /app/worker
COPY deploy/sbom/worker.cdx.json /app/sbom.cdx.json
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 CMD ["embolens", "health", "worker"]
CMD ["serve", "--only", "worker"]


FROM application AS gateway
COPY --from=gateway-packages /opt/venv /opt/venv
COPY api /app/api
COPY deploy/sbom/gateway.cdx.json /app/sbom.cdx.json
ENV EMBOLENS_GATEWAY_HOST=0.0.0.0 \
    EMBOLENS_DICOM_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000 11112
# The listener and the relay run from this image too; the compose file gives each its own check.
HEALTHCHECK --interval=30s --timeout=20s --start-period=30s --retries=3 CMD ["embolens", "health", "gateway"]
CMD ["serve", "--only", "gateway"]
