-- name: put_served_version
INSERT INTO served_versions (model, version, uri, sha256, signature, traceparent, dataset, format, dataset_version, size)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (model, version) DO NOTHING;

-- name: list_served_versions
SELECT * FROM served_versions WHERE model = $1 ORDER BY version;

-- name: get_served_version
SELECT * FROM served_versions WHERE model = $1 AND version = $2;

-- name: served_version_states
SELECT model || '/' || version AS row_key, xmin::text || ctid::text AS row_state FROM served_versions ORDER BY model, version;

-- name: served_versions_by_key
SELECT *, model || '/' || version AS row_key, xmin::text || ctid::text AS row_state FROM served_versions
WHERE model || '/' || version = ANY($1::text[]);

-- The update changes nothing; it locks the one that there is, whoever makes or forgets it at the same time.
-- name: insert_or_lock_deployment
INSERT INTO deployments (name, model, steps, hold_seconds, analysis, shadow, sticky_header, audience, create_time, update_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
ON CONFLICT (name) DO UPDATE SET name = excluded.name;

-- name: change_plan
UPDATE deployments SET
    steps = $2, hold_seconds = $3, analysis = $4, shadow = $5, sticky_header = $6, audience = $7, update_time = $8
WHERE name = $1;

-- name: change_drift_rules
UPDATE deployments SET drift = $2 WHERE name = $1;

-- name: change_serving
WITH named AS (
    INSERT INTO log_table_named SELECT true WHERE $2::jsonb->'log'->>'dataset' <> '' ON CONFLICT DO NOTHING
)
UPDATE deployments SET serving = $2, message = '', update_time = $3 WHERE name = $1;

-- name: has_log_table
SELECT EXISTS (SELECT FROM log_table_named);

-- name: record_served
UPDATE deployments SET served = $2, message = '' WHERE name = $1 AND served <> $2;

-- name: change_scaling
UPDATE deployments SET scaling = $2, update_time = $3 WHERE name = $1;

-- name: change_scale
UPDATE deployments SET scale = $2, demanded = false WHERE name = $1 AND NOT deleted;

-- name: record_placed
UPDATE deployments SET placed = $2, placed_time = $3 WHERE name = $1;

-- Of those that are to be somewhere it is known.
-- name: record_demand
UPDATE deployments SET demanded = true
WHERE name = $1 AND NOT deleted AND NOT demanded AND (scale ->> 'replicas')::int = 0;

-- name: revive_deployment
UPDATE deployments SET deleted = false, message = '', scale = '{}', placed = '{}', demanded = false WHERE name = $1;

-- name: forget_rollouts
DELETE FROM rollouts WHERE deployment = $1;

-- name: get_deployment
SELECT * FROM deployments WHERE name = $1 AND NOT deleted;

-- The lock orders everything that happens to one deployment, its events among it.
-- name: lock_deployment
SELECT * FROM deployments WHERE name = $1 FOR UPDATE;

-- name: list_deployments
SELECT * FROM deployments WHERE name > $1 AND NOT deleted ORDER BY name LIMIT $2;

-- name: deployment_states
SELECT name AS row_key, xmin::text || ctid::text AS row_state FROM deployments ORDER BY name;

-- name: deployments_by_key
SELECT *, name AS row_key, xmin::text || ctid::text AS row_state FROM deployments WHERE name = ANY($1::text[]);

-- name: save_deployment
UPDATE deployments SET traffic = $2, loaded = $3, message = $4, deleted = $5, update_time = $6 WHERE name = $1;

-- name: forget_deployment
DELETE FROM deployments WHERE name = $1 AND deleted;

-- name: last_rollout_states
SELECT DISTINCT ON (deployment) deployment AS row_key, xmin::text || ctid::text AS row_state FROM rollouts
ORDER BY deployment, create_time DESC;

-- name: last_rollouts
SELECT DISTINCT ON (deployment) *, deployment AS row_key, xmin::text || ctid::text AS row_state FROM rollouts
WHERE deployment = ANY($1::text[])
ORDER BY deployment, create_time DESC;

-- What gave way to a newer version was not found wanting.
-- name: rolled_out_versions
SELECT deployment, array_agg(DISTINCT to_version) AS versions FROM rollouts WHERE NOT superseded GROUP BY deployment;

-- name: put_rollout
INSERT INTO rollouts (id, deployment, from_version, to_version, state, step, weight, message, traceparent,
                      create_time, step_time, end_time, superseded, paused, judgement, baselines)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
ON CONFLICT (id) DO UPDATE SET
    state = excluded.state, step = excluded.step, weight = excluded.weight, message = excluded.message,
    step_time = excluded.step_time, end_time = excluded.end_time, superseded = excluded.superseded,
    paused = excluded.paused, judgement = excluded.judgement, baselines = excluded.baselines;

-- name: list_rollouts
SELECT * FROM rollouts WHERE deployment = $1 AND (create_time, id) < ($2, $3) ORDER BY create_time DESC, id DESC LIMIT $4;

-- All of them in one statement: one each takes PostgreSQL, and whoever sends them, several times as long. The dataset is
-- looked up now: later the deployment's name may be another model's.
-- name: put_predictions
INSERT INTO predictions (event_id, prediction_id, deployment, version, time, seconds, inputs, outputs, answer,
                         traceparent, subject, shadow, mirror_id, segment, dataset)
SELECT p.event_id, p.prediction_id, p.deployment, p.version, p.time, p.seconds, p.inputs, p.outputs, p.answer,
       p.traceparent, p.subject, p.shadow, p.mirror_id, p.segment, CASE WHEN p.subject = '' THEN '' ELSE coalesce(
    (SELECT v.dataset FROM deployments d JOIN served_versions v USING (model)
     WHERE d.name = p.deployment AND v.version = p.version), '')
    END
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::float8[], $7::text[], $8::text[], $9::float8[],
            $10::text[], $11::text[], $12::boolean[], $13::text[], $14::text[])
    AS p(event_id, prediction_id, deployment, version, time, seconds, inputs, outputs, answer,
         traceparent, subject, shadow, mirror_id, segment)
ON CONFLICT (event_id) DO NOTHING;

-- name: lock_predictions
LOCK TABLE predictions IN SHARE ROW EXCLUSIVE MODE;

-- Where the dataset is not known: a prediction too many rather than one too few.
-- name: erase_predictions
WITH erased AS (
    DELETE FROM predictions WHERE subject = $2 AND subject <> '' AND dataset IN ('', $1)
    RETURNING deployment, prediction_id
), labels AS (
    DELETE FROM feedback f USING erased e WHERE (f.deployment, f.prediction_id) = (e.deployment, e.prediction_id)
)
SELECT count(*) FROM erased;

-- Also against those who lock a row first: they would wait for the table while the erasure waits for their row.
-- name: lock_requests
LOCK TABLE requests IN EXCLUSIVE MODE;

-- name: erase_requests
DELETE FROM requests WHERE subject = $2 AND subject <> '' AND dataset IN ('', $1);

-- name: remember_erasure
INSERT INTO erasures (id, dataset, digest, erase_time, prediction_count)
VALUES ($1, $2, sha256(convert_to($1::text || $3::text, 'UTF8')), $4, $5)
ON CONFLICT (id) DO UPDATE SET
    erase_time = excluded.erase_time, prediction_count = erasures.prediction_count + excluded.prediction_count
RETURNING prediction_count;

-- name: erase_late_predictions
WITH erased AS (
    DELETE FROM predictions p USING erasures e
    WHERE p.event_id = ANY($1::text[]) AND p.time <= e.erase_time AND p.dataset IN ('', e.dataset)
        AND e.digest = sha256(convert_to(e.id || p.subject, 'UTF8'))
    RETURNING p.deployment, p.prediction_id
)
DELETE FROM feedback f USING erased e WHERE (f.deployment, f.prediction_id) = (e.deployment, e.prediction_id);

-- name: erased_from_tables
SELECT p.event_id FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS p (event_id, dataset, subject, time)
WHERE EXISTS (
    SELECT FROM erasures e WHERE e.dataset = p.dataset AND p.time <= e.erase_time
        AND e.digest = sha256(convert_to(e.id || p.subject, 'UTF8'))
);

-- name: forget_erasures
DELETE FROM erasures WHERE erase_time < $1 RETURNING id;

-- The oldest first, and none that an erasure or another instance has in work.
-- name: forget_predictions
DELETE FROM predictions WHERE event_id IN (
    SELECT event_id FROM predictions WHERE stored < now() - $1::interval ORDER BY stored LIMIT $2 FOR UPDATE SKIP LOCKED
) RETURNING deployment, prediction_id;

-- Later nobody could say whose they are, and no erasure would find them.
-- name: forget_labels_of
DELETE FROM feedback f USING unnest($1::text[], $2::text[]) AS gone (deployment, prediction_id)
WHERE (f.deployment, f.prediction_id) = (gone.deployment, gone.prediction_id) AND NOT EXISTS (
    SELECT FROM predictions p WHERE (p.deployment, p.prediction_id) = (gone.deployment, gone.prediction_id)
);

-- Of no prediction, that is; another one may have the same id.
-- name: forget_labels
DELETE FROM feedback WHERE (deployment, prediction_id) IN (
    SELECT f.deployment, f.prediction_id FROM feedback f LEFT JOIN predictions p USING (deployment, prediction_id)
    WHERE f.stored < now() - $1::interval AND p.event_id IS NULL LIMIT $2
) RETURNING true;

-- name: put_feedback
INSERT INTO feedback (deployment, prediction_id, label, time) VALUES ($1, $2, $3, $4)
ON CONFLICT (deployment, prediction_id) DO UPDATE SET label = excluded.label, time = excluded.time
WHERE feedback.time < excluded.time;

-- name: list_predictions
SELECT p.*, f.label FROM predictions p LEFT JOIN feedback f USING (deployment, prediction_id)
WHERE p.deployment = $1 AND (p.time, p.event_id) < ($2, $3) ORDER BY p.time DESC, p.event_id DESC LIMIT $4;

-- What a shadow answered, nobody got.
-- name: get_prediction
SELECT p.*, f.label FROM predictions p LEFT JOIN feedback f USING (deployment, prediction_id)
WHERE p.deployment = $1 AND p.prediction_id = $2 AND NOT p.shadow ORDER BY p.time DESC, p.event_id DESC LIMIT 1;

-- name: count_logged
SELECT count(DISTINCT prediction_id) FROM predictions
WHERE deployment = $1 AND prediction_id = ANY($2::text[]) AND NOT shadow;

-- Null: of the segments that are not among the largest.
-- name: count_predictions
WITH counted AS (
    SELECT version, segment, count(*) AS predictions FROM predictions
    WHERE deployment = $1 AND NOT shadow AND ($2::bigint = 0 OR version = $2)
    GROUP BY version, segment
), ranked AS (
    SELECT segment, row_number() OVER (ORDER BY sum(predictions) DESC, segment) AS place
    FROM counted WHERE segment <> '' GROUP BY segment
)
SELECT version, CASE WHEN segment = '' OR place <= $3::int THEN segment END AS segment,
    sum(predictions)::bigint AS predictions, (SELECT count(*) FROM ranked) AS segments
FROM counted LEFT JOIN ranked USING (segment)
GROUP BY 1, 2;

-- name: count_answers
SELECT p.version, CASE WHEN p.segment = ANY($3::text[]) THEN p.segment END AS segment, p.answer, f.label,
    count(*) AS count
FROM predictions p JOIN feedback f USING (deployment, prediction_id)
WHERE p.deployment = $1 AND NOT p.shadow AND p.answer IS NOT NULL AND ($2::bigint = 0 OR p.version = $2)
GROUP BY 1, 2, 3, 4;

-- What a step is judged by: of each version, what it answered since that moment.
-- name: count_latencies
SELECT p.version, ceil($4::int * ln(greatest(p.seconds, 1e-6)) / ln(2))::int AS bucket, count(*) AS count
FROM unnest($2::bigint[], $3::timestamptz[]) w (version, since)
JOIN predictions p ON p.deployment = $1 AND p.version = w.version AND p.time >= w.since
GROUP BY 1, 2;

-- name: count_answers_given
SELECT p.version, p.answer, count(*) AS count
FROM unnest($2::bigint[], $3::timestamptz[]) w (version, since)
JOIN predictions p ON p.deployment = $1 AND p.version = w.version AND p.time >= w.since
WHERE p.answer IS NOT NULL
GROUP BY p.version, p.answer;

-- name: count_answers_since
SELECT p.version, p.answer, f.label, count(*) AS count
FROM unnest($2::bigint[], $3::timestamptz[]) w (version, since)
JOIN predictions p ON p.deployment = $1 AND p.version = w.version AND p.time >= w.since
JOIN feedback f USING (deployment, prediction_id)
WHERE p.answer IS NOT NULL
GROUP BY p.version, p.answer, f.label;

-- name: get_served_versions
SELECT v.* FROM deployments d JOIN served_versions v USING (model) WHERE d.name = $1 AND v.version = ANY($2::bigint[]);

-- A pair that is not whole is still on its way, or was dropped. Numbers are compared as decimal ones: the difference of two
-- floats may be too large or too small for a float, which is an error in SQL. $6 and $7: classes that
-- the two answer by different numbers, as the old version does and as the new one does.
-- name: count_differing
SELECT count(*) AS total, count(*) FILTER (
    WHERE new IS NULL OR (new <> old AND abs(new::numeric - old::numeric) > $5::float8::numeric * abs(old::numeric))) AS hits
FROM (
    SELECT mirrored.new, coalesce(said.as_new, mirrored.old) AS old
    FROM (
        SELECT min(answer) FILTER (WHERE version = $2) AS new, min(answer) FILTER (WHERE version = $3) AS old
        FROM predictions
        WHERE deployment = $1 AND time >= $4 AND mirror_id <> '' AND version IN ($2, $3)
        GROUP BY mirror_id
        HAVING count(*) FILTER (WHERE version = $2) = 1 AND count(*) FILTER (WHERE version = $3) = 1
    ) mirrored
    LEFT JOIN unnest($6::float8[], $7::float8[]) said (as_old, as_new) ON said.as_old = mirrored.old
    WHERE mirrored.old IS NOT NULL
) pairs;
