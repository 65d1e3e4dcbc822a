# The server as an image: python:3.11-slim, the library with its server extra, not root, port 7860 (PORT).
#
#   docker build -t inferencegym . && docker run -p 7860:7860 inferencegym
#
# Half of its size is jaxlib; docs/server.md has the list.

FROM python:3.11-slim AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY inferencegym_jax inferencegym_jax
COPY data data
# OpenEnv without its dependencies: with them it brings 111 packages. Left behind are what nothing here imports: scipy
# (111 MB; jax asks for it, for functions that the library does not use), pyarrow's RPC and S3 parts, the packages' tests,
# type stubs and Cython sources.
RUN /venv/bin/pip install --quiet -c constraints.txt ".[server]" \
 && /venv/bin/pip install --quiet --no-deps -c constraints.txt openenv \
 && /venv/bin/pip uninstall --quiet --yes scipy pip setuptools \
 && cd /venv/lib/python3*/site-packages \
 && find . -depth -name tests -type d -exec rm -rf {} + \
 && find . \( -name "*.pyi" -o -name "*.pyx" -o -name "*.px[di]" \) -delete \
 && rm -rf pyarrow/include pyarrow/src pyarrow/libarrow_flight* pyarrow/libarrow_python_flight* pyarrow/_flight* \
      pyarrow/libarrow_s3* pyarrow/_s3fs*

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 gym
WORKDIR /app
COPY --from=build /venv /venv
COPY server server
COPY openenv.yaml LEADERBOARD.md ./
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 JAX_PLATFORMS=cpu HOST=0.0.0.0 PORT=7860
USER gym
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/health\", timeout=4)"]
CMD ["python", "-m", "server"]
