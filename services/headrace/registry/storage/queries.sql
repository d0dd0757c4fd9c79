-- name: insert_model
INSERT INTO models (name, gates, create_time, update_time) VALUES ($1, $2, $3, $3)
ON CONFLICT (name) DO NOTHING RETURNING name;

-- name: change_gates
UPDATE models SET gates = $2, update_time = $3 WHERE name = $1;

-- name: get_model
SELECT name, gates, latest_version, create_time, update_time FROM models WHERE name = $1;

-- The lock orders everything that happens to one model, its versions' numbers and its events among them.
-- name: lock_model
SELECT name, gates, latest_version, create_time, update_time FROM models WHERE name = $1 FOR UPDATE;

-- name: list_models
SELECT name, gates, latest_version, create_time, update_time FROM models
WHERE name > $1 ORDER BY name LIMIT $2;

-- name: list_aliases
SELECT model, alias, version FROM aliases WHERE model = ANY($1::text[]);

-- name: set_alias
INSERT INTO aliases (model, alias, version) VALUES ($1, $2, $3)
ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version;

-- name: remove_alias
DELETE FROM aliases WHERE model = $1 AND alias = $2;

-- name: find_by_request
SELECT version FROM model_versions WHERE model = $1 AND request_id = $2;

-- name: next_version
UPDATE models SET latest_version = latest_version + 1 WHERE name = $1 RETURNING latest_version;

-- name: insert_version
INSERT INTO model_versions (model, version, request_id, state, metrics, lineage, signature, traceparent, create_time,
                            format)
VALUES ($1, $2, $3, 'UPLOADING', $4, $5, $6, $7, $8, $9);

-- name: get_version
SELECT model, version, state, metrics, lineage, signature, gate_results, traceparent, create_time, close_time,
       format
FROM model_versions WHERE model = $1 AND version = $2;

-- name: list_versions
SELECT model, version, state, metrics, lineage, signature, gate_results, traceparent, create_time, close_time,
       format
FROM model_versions WHERE model = $1 AND version < $2 ORDER BY version DESC LIMIT $3;

-- name: describe_version
UPDATE model_versions SET metrics = $3, lineage = $4, signature = $5, format = $6 WHERE model = $1 AND version = $2;

-- name: close_version
UPDATE model_versions SET state = $3, gate_results = $4, close_time = $5 WHERE model = $1 AND version = $2;

-- name: list_artifacts
SELECT model, version, path, size, sha256, uri FROM artifacts
WHERE model = $1 AND version = ANY($2::bigint[]) ORDER BY version, path;

-- name: put_artifact
INSERT INTO artifacts (model, version, path, size, sha256, uri) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model, version, path) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256, uri = excluded.uri;

-- name: insert_audit_entry
INSERT INTO audit (model, action, version, details, traceparent, time) VALUES ($1, $2, $3, $4, $5, $6);
