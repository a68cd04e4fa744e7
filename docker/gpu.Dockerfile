# The same worker with CUDA; the host needs the NVIDIA container toolkit.
#   docker build -f docker/gpu.Dockerfile -t focusdpo:gpu .
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 focusdpo
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY data_schemas ./data_schemas
COPY model ./model
COPY pipeline ./pipeline
COPY pocket ./pocket
COPY flows ./flows
# torch from the default index brings its own CUDA libraries.
RUN pip install --no-cache-dir .
COPY prefect.yaml ./

USER focusdpo
WORKDIR /data
ENV DO_NOT_TRACK=1 \
    HF_HUB_OFFLINE=1
ENTRYPOINT ["focusdpo"]
CMD ["--help"]
