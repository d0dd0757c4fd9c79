-- Pipelines.

-- name: get_pipeline
SELECT * FROM pipelines WHERE name = $1

-- name: lock_pipeline
SELECT * FROM pipelines WHERE name = $1 FOR UPDATE

-- name: list_pipelines
SELECT * FROM pipelines WHERE name > $1 ORDER BY name LIMIT $2

-- name: put_pipeline
-- The same specification again changes nothing.
INSERT INTO pipelines AS stored (name, spec, generation, create_time, update_time)
VALUES ($1, $2, 1, $3, $3)
ON CONFLICT (name) DO UPDATE SET
    spec = EXCLUDED.spec,
    generation = stored.generation + (stored.spec <> EXCLUDED.spec)::int,
    update_time = CASE WHEN stored.spec <> EXCLUDED.spec THEN EXCLUDED.update_time ELSE stored.update_time END
RETURNING *

-- Jobs.

-- name: insert_job
-- No row comes back where the request or the dataset version has its job already.
INSERT INTO jobs (
    id, pipeline, dataset_version, automatic, request_id, state, reason, message, priority, cpu_millis, memory,
    gpu, max_retries, deadline, attempt, failures, node, metrics, model_version, create_time, queue_time,
    traceparent, placement_traceparent, training, dataset_schema, dataset, version, end_time
)
VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
    $25, $26, $27, $28
)
ON CONFLICT DO NOTHING
RETURNING id

-- name: get_job
SELECT * FROM jobs WHERE id = $1

-- name: get_job_by_request
SELECT * FROM jobs WHERE request_id = $1

-- name: lock_jobs
-- Always in the order of ids: two transactions never wait for each other.
SELECT * FROM jobs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE

-- name: lock_jobs_on_node
SELECT * FROM jobs
WHERE node = $1 AND state IN ('PLACED', 'RUNNING', 'CANCELLING')
ORDER BY id FOR UPDATE

-- name: list_jobs
SELECT * FROM jobs
WHERE ($1 = '' OR pipeline = $1) AND ($2::timestamptz IS NULL OR (create_time, id) < ($2, $3::uuid))
ORDER BY create_time DESC, id DESC
LIMIT $4

-- name: desired_jobs
SELECT * FROM jobs WHERE node = $1 AND state IN ('PLACED', 'RUNNING') ORDER BY id

-- name: living_jobs
SELECT id, version, state, priority, cpu_millis, memory, gpu, attempt, node, create_time, attempt_start_time,
    deadline
FROM jobs WHERE state IN ('QUEUED', 'PLACED', 'RUNNING', 'CANCELLING')

-- name: holding_jobs
SELECT id, version, state, priority, cpu_millis, memory, gpu, attempt, node, create_time, attempt_start_time,
    deadline
FROM jobs WHERE state IN ('PLACED', 'RUNNING', 'CANCELLING')

-- name: jobs_ahead
SELECT id FROM jobs
WHERE state = 'QUEUED' AND (-priority, create_time, id) < (-$1::integer, $2::timestamptz, $3::uuid)
ORDER BY -priority, create_time, id
LIMIT $4

-- name: count_ahead
-- All that go first, and those among them that some node is large enough for.
WITH capacities AS MATERIALIZED (SELECT DISTINCT gpu, cpu_millis, memory FROM nodes)
SELECT count(*) AS count, count(*) FILTER (WHERE EXISTS (
    SELECT FROM capacities
    WHERE capacities.gpu >= jobs.gpu AND capacities.cpu_millis >= jobs.cpu_millis
        AND capacities.memory >= jobs.memory
)) AS able
FROM jobs
WHERE state = 'QUEUED' AND (-priority, create_time, id) < (-$1::integer, $2::timestamptz, $3::uuid)

-- name: resources_of_jobs
SELECT id, gpu, cpu_millis, memory FROM jobs WHERE id = ANY($1::uuid[])

-- name: update_job
-- The writer holds the row's lock; the version says that it decided on this very state.
UPDATE jobs SET
    state = $3, reason = $4, message = $5, attempt = $6, failures = $7, node = $8, progress = $9, metrics = $10,
    model_version = $11, queue_time = $12, start_time = $13, attempt_start_time = $14, end_time = $15,
    placement_traceparent = $16, version = $17
WHERE id = $1 AND version = $2

-- name: update_progress
-- From events, which may come late: only the attempt that runs now, and never backwards.
UPDATE jobs SET progress = $3
WHERE id = $1 AND attempt = $2 AND state IN ('PLACED', 'RUNNING', 'CANCELLING')
    AND coalesce((progress ->> 'epoch')::bigint, 0) <= ($3::jsonb ->> 'epoch')::bigint
    AND progress IS DISTINCT FROM $3

-- name: update_metrics
UPDATE jobs SET metrics = metrics || $3
WHERE id = $1 AND attempt = $2 AND metrics IS DISTINCT FROM metrics || $3

-- Nodes.

-- name: attach_node
INSERT INTO nodes (
    name, version, cpu_millis, memory, gpu, session, lease_until, last_report_time, reported
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (name) DO UPDATE SET
    version = EXCLUDED.version, cpu_millis = EXCLUDED.cpu_millis, memory = EXCLUDED.memory, gpu = EXCLUDED.gpu,
    session = EXCLUDED.session, lease_until = EXCLUDED.lease_until,
    last_report_time = EXCLUDED.last_report_time, reported = EXCLUDED.reported

-- name: report_node
UPDATE nodes SET
    version = $2, cpu_millis = $3, memory = $4, gpu = $5, lease_until = $7, last_report_time = $8, reported = $9
WHERE name = $1 AND session = $6
RETURNING name

-- name: session_of_node
SELECT session FROM nodes WHERE name = $1

-- name: list_nodes
SELECT * FROM nodes ORDER BY name

-- name: forget_nodes
DELETE FROM nodes
WHERE last_report_time < $1 AND NOT EXISTS (
    SELECT FROM jobs WHERE node = nodes.name AND state IN ('PLACED', 'RUNNING', 'CANCELLING')
)

-- Leadership.

-- name: begin_epoch
UPDATE leadership SET epoch = epoch + 1 RETURNING epoch

-- name: hold_epoch
SELECT epoch FROM leadership WHERE epoch = $1 FOR SHARE

-- Retraining on drift.

-- name: automatic_job
SELECT * FROM jobs WHERE pipeline = $1 AND dataset_version = $2 AND automatic

-- name: insert_retraining
INSERT INTO retrainings (
    episode, pipeline, deployment, model_version, dataset_version, state, reason, message, job, alert_time,
    update_time
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT DO NOTHING

-- name: lock_retraining
SELECT * FROM retrainings WHERE episode = $1 FOR UPDATE

-- name: update_retraining
UPDATE retrainings SET state = $2, reason = $3, message = $4, job = $5, update_time = $6 WHERE episode = $1

-- name: retrained
-- Several alerts may have led to one job.
SELECT min(update_time) AS time FROM retrainings
WHERE pipeline = $1 AND state = 'STARTED' AND update_time >= $2
GROUP BY job

-- name: waiting_retrainings
SELECT * FROM retrainings WHERE state = 'WAITING' ORDER BY alert_time

-- name: list_retrainings
SELECT * FROM retrainings WHERE pipeline = $1 ORDER BY alert_time DESC, episode LIMIT $2
