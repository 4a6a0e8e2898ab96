# The weft binary with a nats-server beside it, for `weft up`; each role can also run alone.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin weft

FROM nats:2.15.1-alpine AS nats

FROM debian:bookworm-slim
COPY --from=nats /usr/local/bin/nats-server /usr/local/bin/nats-server
COPY --from=build /src/target/release/weft /usr/local/bin/weft
RUN useradd --system --uid 10001 --create-home weft && mkdir /data && chown weft /data
USER weft
ENV WEFT_DATA=/data
VOLUME /data
# Gateway, admin, ops.
EXPOSE 8080 9080 9101
ENTRYPOINT ["weft"]
CMD ["up"]
