#!/usr/bin/env bash
# Builds the fuzz targets with the stable toolchain and runs each for a fixed number of executions, as many targets at a
# time as there are processors. Prints what each has executed; fails when one finds something or executes less.
#
#   fuzz/run.sh [TARGET…]      RUNS=1000000 by default
#
# The flags are those that cargo-fuzz gives without a sanitizer; they need no nightly compiler.
set -euo pipefail
cd "$(dirname "$0")"

RUNS=${RUNS:-1000000}
if (($#)); then targets=("$@"); else targets=(signatures cloudevents schema envelope pointer cursor framing spelling rfc3339 delivery_url expression); fi

host=$(rustc -vV | sed -n 's/^host: //p')
coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing -Ccodegen-units=1)
RUSTFLAGS="${coverage[*]}" cargo build --release --locked --target "$host" "${targets[@]/#/--bin=}"

found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT

# Inputs with new coverage go to a folder of this run; what breaks a target goes to artifacts/.
run() {
    local target=$1 log="$found/$1.log"
    mkdir -p "$found/$target" "artifacts/$target"
    if ! "target/$host/release/$target" -runs="$RUNS" -max_len=1024 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="artifacts/$target/" "$found/$target" "corpus/$target" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "$target: FAILED; the input is in fuzz/artifacts/$target"
        return 1
    fi
    local executions seconds
    read -r executions seconds < <(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) second.*/\1 \2/p' "$log")
    printf '%-12s %10d executions in %3d s\n' "$target" "$executions" "$seconds"
    ((executions >= RUNS))
}
export -f run
export found host RUNS

printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run {}'
