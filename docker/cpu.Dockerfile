# A worker that runs the flows on processors alone. Build from the repository's top:
#   docker build -f docker/cpu.Dockerfile -t focusdpo:cpu .
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 focusdpo
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY data_schemas ./data_schemas
COPY model ./model
COPY pipeline ./pipeline
COPY pocket ./pocket
COPY flows ./flows
# The CPU build of torch: a tenth of the size of the default one.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu .
COPY prefect.yaml ./

USER focusdpo
WORKDIR /data
ENV DO_NOT_TRACK=1 \
    HF_HUB_OFFLINE=1
ENTRYPOINT ["focusdpo"]
CMD ["--help"]
