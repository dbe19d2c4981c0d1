# syntax=docker/dockerfile:1
# Image of this project. Its default command is the quickstart: DyMo through every stage on the embedded Digits data.
#   docker build -t dymo-bench .                                            CPU
#   docker build -t dymo-bench:cuda --build-arg DEVICE=cuda .               NVIDIA GPU; run it with --gpus all
#   docker run --rm -v dymo-outputs:/app/outputs dymo-bench [overrides, e.g. model=QMF seed=1]
FROM python:3.11.13-slim-bookworm

# cpu | cuda: which wheels of PyTorch are installed. The CUDA wheels bring their libraries along.
ARG DEVICE=cpu
# For cpu: the index of the smaller CPU wheels, which PyTorch's installation page names. Empty: the default wheels, which
# run on a CPU too.
ARG CPU_INDEX=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=Agg

WORKDIR /app

# The dependencies first: they are built again only when these files change.
COPY pyproject.toml constraints.txt LICENSE ./
RUN case "$DEVICE" in \
      cpu) pip install -c constraints.txt ${CPU_INDEX:+--index-url "$CPU_INDEX"} torch torchvision ;; \
      cuda) pip install -c constraints.txt torch torchvision ;; \
      *) echo "DEVICE=$DEVICE: must be cpu or cuda" >&2; exit 2 ;; \
    esac \
 && pip install -c constraints.txt ".[sweep]" && rm -rf build *.egg-info

# Noted in the results of every run, as the image has no git checkout: --build-arg GIT_COMMIT=$(git describe --always)
# Below the dependencies, so that a new commit does not rebuild them.
ARG GIT_COMMIT=""
ENV GIT_COMMIT=${GIT_COMMIT}
COPY . .

# Nothing runs as root. Mount a volume at /app/data for raw files and packed stores, and at /app/outputs for results.
# All may write them, and HOME, where libraries keep caches: docker run --user may name a user that the image lacks.
RUN useradd --uid 1000 user \
 && mkdir -p data outputs \
 && chown user:user data outputs \
 && chmod 1777 data outputs
ENV HOME=/tmp
USER user
VOLUME ["/app/data", "/app/outputs"]

ENTRYPOINT ["python", "run.py"]
CMD []
