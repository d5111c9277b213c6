# The calibration worker. PyPI's torch brings CUDA with it and is several gigabytes; for a
# CPU image point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels (docker/README.md).
ARG BASE_IMAGE=python:3.11-slim-bookworm

# A folder of wheels to prefer over an index; --build-context wheels=FOLDER takes its place.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS dependencies
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv --without-pip /opt/fimlora
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    python requirements.py worker s3 telemetry > requirements.txt \
    && pip --python /opt/fimlora/bin/python install --find-links /wheels -c constraints.txt -r requirements.txt

FROM ${BASE_IMAGE} AS package
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY service service
COPY worker worker
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --find-links /wheels --wheel-dir /dist .

FROM ${BASE_IMAGE}
# The same user and group in both images, because they share the data volume. Nothing lies
# in /data: Docker copies it into a new volume, and two containers at once would collide.
RUN groupadd --gid 10001 fimlora \
    && useradd --uid 10001 --gid fimlora --home-dir /tmp --no-create-home --shell /usr/sbin/nologin fimlora \
    && install -d -o fimlora -g fimlora /data
COPY --from=dependencies /opt/fimlora /opt/fimlora
RUN --mount=type=bind,from=package,source=/dist,target=/dist \
    pip --python /opt/fimlora/bin/python install --no-cache-dir --no-index --no-deps /dist/*.whl
COPY docker/worker_health.py /opt/fimlora/worker_health.py
ENV PATH=/opt/fimlora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/hub \
    FIMLORA_DATA_DIR=/data
USER fimlora
WORKDIR /data
VOLUME /data
CMD ["python", "-m", "fimlora_worker"]
