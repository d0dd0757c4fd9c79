-- name: all_drift_watches
SELECT * FROM drift_watches;

-- name: drift_watch
SELECT * FROM drift_watches WHERE deployment = $1;

-- What a shadow answered, nobody got.
-- name: count_requests
SELECT count(*) FROM (
    SELECT FROM predictions WHERE deployment = $1 AND version = $2 AND time > $3 AND NOT shadow LIMIT $4
) w;

-- name: newest_requests
SELECT time, inputs, outputs FROM predictions
WHERE deployment = $1 AND version = $2 AND time > $3 AND NOT shadow
ORDER BY time DESC, event_id DESC;

-- name: insert_drift_watch
INSERT INTO drift_watches (deployment, version, since, drifting, calm, episode, message)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
RETURNING true;

-- name: update_drift_watch
UPDATE drift_watches SET
    version = $2, since = $3, drifting = $4, calm = $5, episode = $6, message = $7, revision = revision + 1
WHERE deployment = $1 AND revision = $8
RETURNING true;

-- name: delete_drift_watch
DELETE FROM drift_watches WHERE deployment = $1 AND revision = $2 RETURNING true;

-- name: insert_drift_window
INSERT INTO drift_windows (deployment, end_time, version, begin_time, requests, row_count, findings)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: forget_drift_windows
DELETE FROM drift_windows WHERE deployment = $1 AND end_time < (
    SELECT min(end_time) FROM (
        SELECT end_time FROM drift_windows WHERE deployment = $1 ORDER BY end_time DESC LIMIT $2
    ) kept
);

-- name: last_drift_window
SELECT * FROM drift_windows WHERE deployment = $1 AND version = $2 ORDER BY end_time DESC LIMIT 1;

-- name: put_drift_episode
INSERT INTO drift_episodes (id, deployment, model, version, dataset, dataset_version, columns, begin_time, end_time, end_reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO UPDATE SET end_time = excluded.end_time, end_reason = excluded.end_reason;

-- name: drift_episode
SELECT * FROM drift_episodes WHERE id = $1;

-- name: list_drift_episodes
SELECT * FROM drift_episodes WHERE deployment = $1 ORDER BY begin_time DESC, id DESC LIMIT $2;
