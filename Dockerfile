# The broker, and its command line, in one image: `docker build -t taskyard .`
#
# It listens on every address of its container, so it asks for tokens and for TLS, or says why it does not start:
# `docker run taskyard` alone is refused, with the way out. compose.yaml is the short way to one that runs.

FROM rust:1.90-bookworm AS build
WORKDIR /src
# The dependencies alone, with empty sources: a layer that is built anew only when Cargo.lock or a manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY allocator/Cargo.toml allocator/
COPY proto/Cargo.toml proto/
COPY bench/Cargo.toml bench/
COPY clients/rust/Cargo.toml clients/rust/
RUN mkdir -p src allocator/src proto/src bench/src clients/rust/src \
    && touch src/lib.rs allocator/src/lib.rs proto/src/lib.rs clients/rust/src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && cp src/main.rs bench/src/ \
    && cargo build --release --locked --bin taskyard
COPY . .
# A copied file keeps its time, which may be before that of the empty one it replaces.
RUN find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --bin taskyard

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="Taskyard" \
      org.opencontainers.image.description="A task broker that pushes durable tasks to workers over WebSocket" \
      org.opencontainers.image.licenses="Apache-2.0"
# The authorities that `taskyard … --url https://…` and the address of an issuer's keys are checked with. Of no fixed
# version: an old list of authorities is worth nothing.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -m 0750 -o 10001 -g 10001 /data \
    && install -d -m 0755 -o 10001 -g 10001 /run/taskyard
COPY --from=build /src/target/release/taskyard /usr/local/bin/taskyard
USER 10001:10001
ENV TASKYARD_LISTEN=0.0.0.0:7070 \
    TASKYARD_DATA_DIR=/data
# All that the broker writes: the root may be read-only.
VOLUME /data
WORKDIR /data
EXPOSE 7070
# SIGTERM lets workers finish what they hold, for up to 30 s (TASKYARD_DRAIN_MS): give `docker stop` a time above that.
STOPSIGNAL SIGTERM
# It reads the same settings as the broker: where it listens, and whether over TLS.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["taskyard", "health"]
ENTRYPOINT ["taskyard"]
CMD ["serve"]
