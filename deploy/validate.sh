#!/bin/sh
# Does Docker Compose accept docker-compose.yml? Needs no Docker engine.
# Without Compose on this machine, it is built from its Go module, once, into the cache folder (Go 1.24 or later; minutes).
# `deploy/validate.sh --print` says which Compose would be used and builds nothing (exit 3 if there is none).
set -eu

version=v2.40.3
repository=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/transfer-hub
built=$cache/docker-compose-$version

if docker compose version >/dev/null 2>&1; then
    compose="docker compose"
elif [ -x "$built" ]; then
    compose=$built
elif [ "${1:-}" = --print ]; then
    exit 3
else
    command -v go >/dev/null || { echo "validate: neither 'docker compose' nor Go is here" >&2; exit 3; }
    mkdir -p "$cache"
    # Not `go install module@version`: Go refuses that for a module whose go.mod has exclude directives.
    module=$(GOFLAGS=-mod=mod go mod download -json "github.com/docker/compose/v2@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')
    [ -n "$module" ] || { echo "validate: the Go module could not be downloaded" >&2; exit 3; }
    partial=$built.$$
    trap 'rm -f "$partial"' EXIT
    CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false go build -C "$module" -trimpath \
        -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$version" -o "$partial" ./cmd
    mv "$partial" "$built"
    compose=$built
fi

if [ "${1:-}" = --print ]; then
    echo "$compose"
    exit 0
fi
$compose --project-directory "$repository" --file "$repository/docker-compose.yml" config --quiet
echo "docker-compose.yml: accepted by $($compose version --short)"
