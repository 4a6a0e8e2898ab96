# Settings of `start` and `check`.

cd "$(dirname "${BASH_SOURCE[0]}")"
WEFT=${WEFT:-$PWD/../../target/debug/weft}
PORTS=(5441 5442)
USERS=20
ORDERS=5
export PG_A="postgres://weft@127.0.0.1:${PORTS[0]}/postgres" PG_B="postgres://weft@127.0.0.1:${PORTS[1]}/postgres"

BIN=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -1 || true)
[[ -n $BIN ]] || BIN=$(dirname "$(command -v initdb)" 2>/dev/null) || {
    echo "PostgreSQL is missing: apt-get install postgresql" >&2
    exit 1
}
# PostgreSQL refuses to run as root.
as_postgres=()
[[ $EUID -ne 0 ]] || as_postgres=(setpriv --reuid=postgres --regid=postgres --clear-groups)
# In a folder that this account can reach.
DATA=${TMPDIR:-/tmp}/weft-orders-postgres

query() { # DSN SQL
    "$BIN/psql" "$1" --no-psqlrc --tuples-only --no-align --set=ON_ERROR_STOP=1 --command "$2"
}
