# apollo-train on CPUs, without root: see "Install" in docs/index.md
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11-slim-bookworm
COPY constraints.txt /tmp/
COPY --from=build /dist /tmp/dist
# uv knows where PyTorch's builds for CPUs are
RUN pip install --no-cache-dir uv && \
    uv pip install --system --no-cache --torch-backend cpu --constraint /tmp/constraints.txt /tmp/dist/*.whl
# Any user may write here: docker run --user keeps the owner of a mounted outputs/
ENV HOME=/runs
RUN mkdir -p /runs/outputs && chmod -R a+rwX /runs
WORKDIR /runs
USER 1000:1000
VOLUME /runs/outputs
ENTRYPOINT ["apollo-train"]
