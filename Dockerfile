# The service in a container, for a CPU or for an NVIDIA GPU. Neither image holds torch or a compiler.
#
#   docker build -t tessera:cpu .
#   docker build -t tessera:cuda --build-arg DEVICE=cuda .
#   docker build -t tessera:integrations --build-arg EXTRAS=integrations .        (DICOM, archives, Sectra, slide files)
#   docker run --rm --init --read-only --stop-timeout 40 -p 127.0.0.1:8000:8000 tessera:cpu
#   docker run --rm --init --read-only --stop-timeout 40 -p 127.0.0.1:8000:8000 --gpus all tessera:cuda
#   docker run --rm --network none --user "$(id -u)" -v "$PWD/examples/patches:/in:ro" -v "$PWD/results:/out" \
#       tessera:cpu segment /in --out /out        (into a folder `results` of your own)
#
# --build-arg VERSION=... --build-arg REVISION=$(git rev-parse HEAD) label an image; unlabelled ones say "unknown".
#
# CUDA and cuDNN come as Python packages, so both images have the same base; the GPU's driver is the host's, handed in
# by NVIDIA's container toolkit. A mirror of the base, or its digest, is a build argument: PYTHON_IMAGE=NAME@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG DEVICE=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

# What installs (/tools) stays here; what is installed (/venv) is copied, and holds no pip.
COPY requirements/build.txt /src/requirements/
RUN python -m venv /tools \
    && /tools/bin/pip install --require-hashes -r /src/requirements/build.txt \
    && python -m venv --without-pip /venv

# Dependencies before the sources: a change of code leaves this, by far the largest layer, as it is.
# ONNX Runtime's Linux packages always hold its GPU providers, 285 MB that an image for a CPU has no use for.
ARG EXTRAS=
COPY requirements/serve.txt requirements/cuda.txt requirements/integrations.txt /src/requirements/
RUN case "${DEVICE}" in \
        cpu) locked=serve.txt ;; \
        cuda) locked=cuda.txt ;; \
        *) echo "DEVICE is cpu or cuda, not '${DEVICE}'" >&2; exit 1 ;; \
    esac \
    && case "${EXTRAS}" in \
        ''|integrations) ;; \
        *) echo "EXTRAS is integrations or nothing, not '${EXTRAS}'" >&2; exit 1 ;; \
    esac \
    && for name in "${locked}" ${EXTRAS:+"${EXTRAS}.txt"}; do \
        /tools/bin/pip --python /venv/bin/python install --require-hashes -r "/src/requirements/${name}" || exit 1; \
    done \
    && if [ "${DEVICE}" = cpu ]; then \
        rm -f /venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so \
            /venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_tensorrt.so; \
    fi

# The project by itself, under /project/venv: a layer of its own, so that a release is a small download.
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN /tools/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheel . \
    && /tools/bin/pip --python /venv/bin/python install --no-deps --no-index --no-warn-script-location \
        --root /project /wheel/*.whl


FROM ${PYTHON_IMAGE}
# The slim image has neither libexpat, which GDAL in rasterio's wheel takes from the system, nor the standard library as
# bytecode, which each start and each health check would compile anew: nothing is written at run time.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && python -m compileall -q "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# A fixed, numeric user: an orchestrator can tell that it is not root, and volumes can be given to it by number.
# Its folder is for a volume on which `dicomweb watch` remembers; the service itself writes nothing.
RUN groupadd --gid 10001 tessera \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tessera \
    && install --directory --owner=tessera --group=tessera /var/lib/tessera

COPY --from=build /venv /venv
COPY --from=build /project/venv /venv

# An image for CUDA refuses to start without a usable GPU rather than be quietly slow; TESSERA_DEVICE=auto allows both.
# Nothing is written at run time: the root filesystem can be read-only, and no volume or tmpfs is needed.
ARG DEVICE=cpu
ENV PATH=/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TESSERA_HOST=0.0.0.0 \
    TESSERA_PORT=8000 \
    TESSERA_DEVICE=${DEVICE} \
    TESSERA_LOG_FORMAT=json

# A library that is missing is found here, and not at the first start.
RUN ["python", "-c", "import app.main"]

USER 10001:10001
WORKDIR /
EXPOSE 8000

# Readiness, not liveness: Docker itself restarts nothing for this state. Who reads it (depends_on, a proxy) wants to
# know whether to send images. Where an unhealthy container is replaced (Swarm), ask /health/live instead. Kubernetes
# ignores this check; give it /health/ready as the readiness probe and /health/live as the liveness probe.
# Not urllib.request: that would obey a proxy's environment variables, which Docker can put into every container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-IS", "-c", "import http.client, os, ssl, sys; at = ('127.0.0.1', int(os.environ['TESSERA_PORT'])); c = http.client.HTTPSConnection(*at, timeout=3, context=ssl._create_unverified_context()) if os.environ.get('TESSERA_TLS_CERT') else http.client.HTTPConnection(*at, timeout=3); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]

# SIGTERM stops the service when what it has accepted is answered, within 38 s; Docker itself waits only 10 unless told.
ENTRYPOINT ["tessera"]
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tessera" \
      org.opencontainers.image.description="Tissue maps of H&E patches over HTTP. Research use only." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
