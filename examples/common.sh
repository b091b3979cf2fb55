# What the examples with a page share. Each `run` sources this.
#
# From the environment: TASKYARD, the binary (default: built by cargo); TASKYARD_URL, a broker that runs already
# (default: one is started for the example, and remembers nothing); PORT, where the page is served (default: any
# that is free).

set -euo pipefail
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s\n' "$*"; }
fail() {
    printf '%s\n' "$*" >&2
    exit 1
}
need() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null || fail "this example needs $tool: install it first"; done
}

# Text as a JSON string.
json() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\t'/\\t}
    printf '"%s"' "$(printf '%s' "$text" | tr -d '\000-\037')"
}

# Says something to the broker over HTTP: PATH and a JSON body. A token, where one is needed, is TASKYARD_TOKEN.
post() {
    curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' \
        ${TASKYARD_TOKEN:+--header "Authorization: Bearer $TASKYARD_TOKEN"} \
        --data-binary "$2" "${TASKYARD_URL:-http://127.0.0.1:7070}$1"
    say ''
}

taskyard() {
    if [ -z "${TASKYARD:-}" ]; then
        say 'building the broker; that takes a while the first time' >&2
        cargo build --release --quiet --manifest-path "$examples/../Cargo.toml" --bin taskyard
        TASKYARD=${CARGO_TARGET_DIR:-$examples/../target}/release/taskyard
    fi
    [ -x "$TASKYARD" ] || fail "there is no program at $TASKYARD: set TASKYARD to the broker's binary"
}

started=()
clean_up() {
    local pid
    # A second Ctrl-C must not leave half of it behind.
    trap '' INT TERM
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$tmp"
}
begin() {
    tmp=$(mktemp -d)
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# Waits for a line in a file, and gives what `sed` makes of it; the process that writes it must live.
found_in() { # FILE PID SED
    local tries text
    for tries in $(seq 300); do
        text=$(sed -n "$3" "$1" | head -n 1)
        if [ -n "$text" ]; then
            printf '%s' "$text"
            return
        fi
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    cat "$1" >&2
    fail "this did not start; its last words are above"
}

# Serves the pages, and starts a broker that lets them in, unless TASKYARD_URL names one. What is given goes to
# the broker.
start() {
    need python3 curl
    : >"$tmp/pages.log" >"$tmp/broker.log"
    python3 -u -m http.server "${PORT:-0}" --bind 127.0.0.1 --directory "$examples" >"$tmp/pages.log" 2>&1 &
    started+=($!)
    local port
    port=$(found_in "$tmp/pages.log" $! 's|.*port \([0-9]*\).*|\1|p')
    pages=http://127.0.0.1:$port
    if [ -z "${TASKYARD_URL:-}" ]; then
        taskyard
        "$TASKYARD" serve --listen 127.0.0.1:0 --engine memory --data-dir "$tmp/data" \
            --allow-origins "$pages,http://localhost:$port" "$@" 2>"$tmp/broker.log" &
        started+=($!)
        TASKYARD_URL=$(found_in "$tmp/broker.log" $! 's|.*listening on \(http://[0-9.:]*\).*|\1|p')
    else
        say "the broker must let the page in: allow_origins = [\"$pages\"]"
    fi
    export TASKYARD_URL
    say "broker $TASKYARD_URL"
}

# Tells where the page is, and waits for Ctrl-C.
page() { # NAME [MORE]
    say "page   $pages/$1/?broker=ws${TASKYARD_URL#http}${2:-}"
    say 'open it in a browser, better in two; Ctrl-C ends it'
    wait -n "${started[@]}" || true
    fail 'one of the programs of this example has ended'
}
