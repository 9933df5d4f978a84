# segexp with an NVIDIA GPU:  docker build -t segexp .  (without one: --build-arg TORCH_BACKEND=cpu)
# docker run --rm --gpus all --shm-size 4g --user "$(id -u):$(id -g)" -v "$PWD:/work" segexp train activation=arctan loss=dice
ARG CUDA_VERSION=13.0.0
ARG UV_VERSION=0.13.9

FROM ghcr.io/astral-sh/uv:${UV_VERSION} AS uv

# torch brings its own cuBLAS and cuDNN, so that the smallest image with the CUDA runtime is enough.
FROM nvidia/cuda:${CUDA_VERSION}-base-ubuntu24.04
# Named, because a machine that builds images often has no GPU from which uv could tell.
ARG TORCH_BACKEND=cu130
ARG EXTRAS=nifti,dicom

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home segexp \
 && install -d -o segexp /work

COPY --from=uv /uv /usr/local/bin/uv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY segexp segexp
ENV VIRTUAL_ENV=/opt/segexp PATH=/opt/segexp/bin:$PATH
RUN uv venv --python /usr/bin/python3 /opt/segexp \
 && uv pip install --no-cache --torch-backend=${TORCH_BACKEND} ".[${EXTRAS}]"

USER segexp
# Also for a user id that has no home in the image (docker run --user).
ENV HOME=/tmp SEGEXP_CACHE=/tmp/segexp-cache
WORKDIR /work
ENTRYPOINT ["segexp"]
CMD ["doctor"]
