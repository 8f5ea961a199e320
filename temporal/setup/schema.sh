#!/bin/sh
# Creates Temporal's two PostgreSQL databases, or brings their schemas up to this version. Safe to repeat: what is there stays.
# Runs in temporalio/admin-tools; SQL_HOST, SQL_PORT, SQL_USER and SQL_PASSWORD come from docker-compose.yml.
set -eu

for database in temporal temporal_visibility; do
  kind=temporal
  [ "$database" = temporal_visibility ] && kind=visibility
  tool="temporal-sql-tool --plugin postgres12 --ep $SQL_HOST -p $SQL_PORT -u $SQL_USER --db $database"
  $tool create
  # A fresh database has no version table; on an older one `setup-schema` would fail, and only the update is due.
  $tool setup-schema -v 0.0 || echo "$database: there already"
  $tool update-schema -d "/etc/temporal/schema/postgresql/v12/$kind/versioned"
done
