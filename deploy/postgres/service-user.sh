#!/bin/sh
# Run once by the PostgreSQL image when it makes the database: the user that the hub's services sign in as.
# What it may do is granted by `hub db upgrade` (hub/store/grants.py): everything the services need, and no change
# of what is sealed in the audit log.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set service_password="$SERVICE_PASSWORD" <<'SQL'
CREATE ROLE transfer_hub NOLOGIN;
CREATE USER hub_service PASSWORD :'service_password' IN ROLE transfer_hub;
SQL
