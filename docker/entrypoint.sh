#!/bin/sh
# What a container of focusdpo does:
#   server     a Prefect server on PostgreSQL; it brings the database up to its version first
#   migrate    only that, and ends; `migrate back` undoes one revision
#   setup      bucket, work pool, limits, deployments; ends; may be repeated; takes the options of
#              `focusdpo prefect-setup`
#   worker     runs flow runs of the pool
#   healthy    whether the server or worker of this container answers (the images' health check)
#   focusdpo, prefect, python, sh ...  that command, with the same settings
#
# Secrets are read from files, and neither printed nor given as arguments:
#   FOCUSDPO_DATABASE_PASSWORD_FILE  PostgreSQL's password
#   FOCUSDPO_API_AUTH_FILE           user:password of the Prefect API
#   AWS_SHARED_CREDENTIALS_FILE      keys of the object store, in the AWS tools' own format
set -eu
umask 077

fail() {
    echo "focusdpo: $*" >&2
    exit 2
}

secret() { # NAME FILE: the first line of a secret file
    [ -r "$2" ] || fail "$1=$2: no such file, or not readable by user $(id -u)"
    line=
    IFS= read -r line <"$2" || : # the last line needs no end
    [ -n "$line" ] || fail "$1=$2: its first line is empty; write the secret there"
    printf '%s' "$line"
}

quiet() { # nothing is sent out
    export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
    export PREFECT_SERVER_ANALYTICS_ENABLED="${PREFECT_SERVER_ANALYTICS_ENABLED:-false}"
    export PREFECT_HOME="${PREFECT_HOME:-/tmp/prefect}"
    export PREFECT_CLI_COLORS="${PREFECT_CLI_COLORS:-false}"
    # A server that is away for some minutes (2 + 4 + ... + 256 s) fails no flow run.
    export PREFECT_CLIENT_MAX_RETRIES="${PREFECT_CLIENT_MAX_RETRIES:-8}"
    mkdir -p "$PREFECT_HOME"
}

api_auth() {
    [ -n "${FOCUSDPO_API_AUTH_FILE:-}" ] || return 0
    PREFECT_API_AUTH_STRING=$(secret FOCUSDPO_API_AUTH_FILE "$FOCUSDPO_API_AUTH_FILE")
    case $PREFECT_API_AUTH_STRING in
    ?*:?*) ;;
    *) fail "FOCUSDPO_API_AUTH_FILE=$FOCUSDPO_API_AUTH_FILE: write user:password" ;;
    esac
    export PREFECT_API_AUTH_STRING
}

# asyncpg and libpq look for PGPASSWORD; an URL with the password ends up in tracebacks.
database() {
    [ -n "${FOCUSDPO_DATABASE_HOST:-}" ] || fail "FOCUSDPO_DATABASE_HOST: set PostgreSQL's host"
    [ -n "${FOCUSDPO_DATABASE_PASSWORD_FILE:-}" ] ||
        fail "FOCUSDPO_DATABASE_PASSWORD_FILE: set the file of PostgreSQL's password"
    port=${FOCUSDPO_DATABASE_PORT:-5432} user=${FOCUSDPO_DATABASE_USER:-prefect}
    name=${FOCUSDPO_DATABASE_NAME:-prefect}
    PGPASSWORD=$(secret FOCUSDPO_DATABASE_PASSWORD_FILE "$FOCUSDPO_DATABASE_PASSWORD_FILE")
    export PGPASSWORD
    export PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://$user@$FOCUSDPO_DATABASE_HOST:$port/$name${FOCUSDPO_DATABASE_OPTIONS:-}"
}

remember() { # ROLE PORT: for the health check
    printf '%s %s\n' "$1" "$2" >"$PREFECT_HOME/role"
}

server() {
    database
    if [ -n "${PREFECT_API_AUTH_STRING:-}" ]; then
        export PREFECT_SERVER_API_AUTH_STRING="$PREFECT_API_AUTH_STRING"
    else
        case ${PREFECT_SERVER_API_HOST:-127.0.0.1} in
        127.* | localhost) ;;
        *)
            [ "${FOCUSDPO_OPEN_API:-}" = yes ] ||
                fail "FOCUSDPO_API_AUTH_FILE: set it; whoever reaches a Prefect API runs code on its" \
                    "workers (FOCUSDPO_OPEN_API=yes if something else guards it)"
            ;;
        esac
    fi
    # In memory, the default, slots of running flows would be lost with the server: the flows are
    # ended then, and the slots stay taken for ever. PREFECT_HOME has to outlive the container.
    lease_storage=prefect.server.concurrency.lease_storage.filesystem
    export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="${PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE:-$lease_storage}"
    # Beside the code the pages could not be written, and the browser knows the API as its own host.
    export PREFECT_UI_STATIC_DIRECTORY="${PREFECT_UI_STATIC_DIRECTORY:-$PREFECT_HOME/ui}"
    export PREFECT_UI_API_URL="${PREFECT_UI_API_URL:-/api}"
    remember server "${PREFECT_SERVER_API_PORT:-4200}"
    export PREFECT_SERVER_DATABASE_TIMEOUT="${PREFECT_SERVER_DATABASE_TIMEOUT:-60}"
    unset PREFECT_API_URL
    # At DEBUG the web server writes what clients send, the API's password among it.
    case ${PREFECT_SERVER_LOGGING_LEVEL:-} in
    [Dd][Ee][Bb][Uu][Gg])
        echo "focusdpo: PREFECT_SERVER_LOGGING_LEVEL=DEBUG would log secrets; INFO is used" >&2
        export PREFECT_SERVER_LOGGING_LEVEL=INFO
        ;;
    esac
    exec prefect server start
}

setup() { # OPTIONS of `focusdpo prefect-setup`
    if [ -n "${FOCUSDPO_BUCKET:-}" ]; then
        python "$here/bucket.py" "$FOCUSDPO_BUCKET"
    fi
    # The pool before the deployments, what starts a deployment after them.
    focusdpo prefect-setup --pool "$pool"
    prefect --no-prompt deploy --all --prefect-file "$deployments"
    [ $# -eq 0 ] || focusdpo prefect-setup --pool "$pool" "$@"
}

worker() {
    export PREFECT_WORKER_WEBSERVER_PORT="${PREFECT_WORKER_WEBSERVER_PORT:-8080}"
    remember worker "$PREFECT_WORKER_WEBSERVER_PORT"
    exec prefect worker start --pool "$pool" --type process \
        --limit "${FOCUSDPO_RUNS_AT_ONCE:-1}" --name "${FOCUSDPO_WORKER:-$(hostname)}" \
        --with-healthcheck --install-policy never --no-create-pool-if-not-found
}

healthy() {
    [ -r "$PREFECT_HOME/role" ] || fail "neither a server nor a worker was started here"
    read -r role port <"$PREFECT_HOME/role"
    case $role in server) path=api/health ;; *) path=health ;; esac
    url="http://127.0.0.1:$port/$path"
    python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=8)' "$url" \
        2>/dev/null || fail "the $role does not answer at $url"
}

here=$(cd "$(dirname "$0")" && pwd)
deployments=${FOCUSDPO_DEPLOYMENTS:-$here/../prefect.yaml}
pool=${FOCUSDPO_POOL:-local}
role=${1:-}
[ $# -eq 0 ] || shift
quiet
case $role in
'') fail "say what to do: server, migrate, setup, worker, or a command" ;;
healthy)
    healthy
    exit
    ;;
migrate) database ;;
*) api_auth ;; # not `api_auth && ...`: there the shell would go on after a failure
esac
case $role in
server) server ;;
migrate)
    case ${1:-} in
    '') exec prefect server database upgrade --yes ;;
    back) exec prefect server database downgrade --yes --revision=-1 ;;
    *) fail "migrate $1: say nothing, or back" ;;
    esac
    ;;
setup) setup "$@" ;; # no exec: it is several commands
worker) worker ;;
*) exec "$role" "$@" ;;
esac
