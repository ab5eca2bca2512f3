# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /build
# The dependencies in a layer of their own, which only a change of the lock file builds anew.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches/report \
    && echo 'fn main() {}' | tee src/main.rs >benches/report/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src benches
COPY . .
# cargo compares times, and those of a checkout may be older than the placeholders.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin registrar

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /srv/registrar --create-home registrar
COPY --from=build /build/target/release/registrar /usr/local/bin/registrar
# Reports and policies are read from the working folder.
COPY report-templates /srv/registrar/report-templates
COPY jobs /srv/registrar/jobs
WORKDIR /srv/registrar
USER registrar
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["registrar", "healthcheck"]
ENTRYPOINT ["registrar"]
CMD ["serve"]
