# The weft binary with nats-server beside it, for `weft up`; each role can also run alone.
#
#   docker build -t weft .                                compiles it, in about a quarter of an hour on two cores
#   make image                                            takes the host's release binary instead: `--target prebuilt`

FROM nats:2.15.1-alpine AS nats

# The files of the image: what the two programs link to, certificate authorities, users, folders. No shell, no packages.
FROM debian:bookworm-slim AS files
# Delivery to https:// needs the roots. An image that has them already needs no network.
RUN test -e /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; }
RUN mkdir --parents /files/etc/ssl/certs /files/usr/local/bin /files/tmp && chmod 1777 /files/tmp && \
    libraries=$(ldconfig --print-cache | sed --quiet --regexp-extended 's/^\s*lib(c\.so\.6|m\.so\.6|gcc_s\.so\.1) .* => //p') && \
    for path in /lib64/ld-linux-x86-64.so.2 /lib/ld-linux-aarch64.so.1 $libraries; do \
        ! test -e "$path" || cp --dereference --parents "$path" /files; \
    done && \
    cp --dereference /etc/ssl/certs/ca-certificates.crt /files/etc/ssl/certs && \
    echo 'hosts: files dns' >/files/etc/nsswitch.conf && \
    echo 'weft:x:10001:10001::/data:/sbin/nologin' >/files/etc/passwd && echo 'weft:x:10001:' >/files/etc/group && \
    mkdir --parents --mode 0700 /folders/data /folders/secrets

FROM scratch AS base
COPY --from=files /files /
# Volumes inherit the owner and the mode of the folder that they are mounted on.
COPY --from=files --chown=10001:10001 /folders /
COPY --from=nats /usr/local/bin/nats-server /usr/local/bin/nats-server
USER weft
ENV PATH=/usr/local/bin \
    WEFT_DATA=/data \
    WEFT_GATEWAY__LISTEN=0.0.0.0:8080 \
    WEFT_ADMIN__LISTEN=0.0.0.0:9080 \
    WEFT_OPS__LISTEN=0.0.0.0:9101
VOLUME /data
# Gateway, admin, ops.
EXPOSE 8080 9080 9101
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["weft", "healthcheck"]
ENTRYPOINT ["weft"]
CMD ["up"]

# With a binary of the host, stripped: target/image/weft.
FROM base AS prebuilt
COPY target/image/weft /usr/local/bin/weft

# The web console, which the binary embeds.
FROM node:20-bookworm-slim AS console
WORKDIR /src/console
COPY console/package.json console/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY proto/proto /src/proto/proto
COPY console .
RUN npm run build

# The manifests alone, so that the layer of the dependencies is kept until one of them changes.
FROM rust:1.95-bookworm AS manifests
WORKDIR /src
COPY . .
RUN mkdir /manifests && find . \( -name Cargo.toml -o -name Cargo.lock \) -not -path './target/*' -exec cp --parents -t /manifests {} +

FROM rust:1.95-bookworm AS compiled
WORKDIR /src
COPY --from=manifests /manifests .
# The dependencies, with empty crates in the place of ours.
RUN for crate in */; do mkdir -p "$crate/src" && touch "$crate/src/lib.rs" && echo 'fn main() {}' >"$crate/src/main.rs"; done && \
    mkdir -p nats/tests/bin && cp weft/src/main.rs nats/tests/bin/supervise.rs && cp weft/src/main.rs proto/build.rs && \
    cargo build --release --locked --bin weft && \
    rm -r */src nats/tests proto/build.rs
COPY . .
COPY --from=console /src/console/dist console/dist
# Cargo goes by times, and what is copied may be older than the empty crates.
RUN find . -path ./target -prune -o -type f -exec touch {} + && \
    cargo build --release --locked --bin weft && \
    strip -o /weft target/release/weft

FROM base
COPY --from=compiled /weft /usr/local/bin/weft
