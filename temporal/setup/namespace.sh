#!/bin/sh
# Creates the namespaces and search attributes of ../namespaces.json and ../search-attributes.json. Safe to repeat.
# Runs in temporalio/admin-tools; TEMPORAL_ADDRESS comes from docker-compose.yml.
set -eu
here=$(dirname "$0")/..

until temporal operator cluster health >/dev/null 2>&1; do sleep 2; done

sed -n 's/.*"name": "\([^"]*\)", "retentionDays": \([0-9]*\).*/\1 \2/p' "$here/namespaces.json" | while read -r namespace days; do
  temporal operator namespace describe --namespace "$namespace" >/dev/null 2>&1 ||
    temporal operator namespace create --namespace "$namespace" --retention "${days}d"
  # The server's caches learn of a new namespace within seconds.
  until temporal operator search-attribute list --namespace "$namespace" >/dev/null 2>&1; do sleep 2; done
  sed -n 's/.*"name": "\([^"]*\)", "type": "\([^"]*\)".*/\1 \2/p' "$here/search-attributes.json" | while read -r name type; do
    temporal operator search-attribute create --namespace "$namespace" --name "$name" --type "$type"
  done
done
