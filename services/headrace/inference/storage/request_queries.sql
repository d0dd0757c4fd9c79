-- In one order, so that two instances that have some in common never wait for each other.
-- name: receive_requests
INSERT INTO requests (id, source, deployment, priority, deadline, reply_topic, partition_key, content_type, traceparent,
                      send_time, receive_time)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                     $9::text[], $10::timestamptz[], $11::timestamptz[])
ORDER BY 1, 2
ON CONFLICT (id, source) DO NOTHING;

-- name: known_requests
SELECT r.* FROM requests r JOIN unnest($1::text[], $2::text[]) AS k (id, source) USING (id, source);

-- Who stored the end first was right; of a run, that is: one that was replayed since has a response of its own. The dataset
-- is looked up now: later the deployment's name may be another model's.
-- name: end_requests
WITH ended AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::int[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[], $13::text[], $14::bytea[], $15::int[])
        AS e (id, source, state, end_time, attempts, version, subject, code, reason, message,
              response_headers, response, request_headers, request, replays)
), locked AS (
    SELECT r.id, r.source FROM requests r JOIN ended USING (id, source, replays) WHERE r.state = 'RECEIVED'
    ORDER BY r.id, r.source FOR UPDATE OF r
)
UPDATE requests r SET
    state = e.state, end_time = e.end_time, attempts = e.attempts, version = e.version, subject = e.subject,
    dataset = CASE WHEN e.subject = '' THEN '' ELSE coalesce(
        (SELECT v.dataset FROM deployments d JOIN served_versions v USING (model)
         WHERE d.name = r.deployment AND v.version::text = e.version), '') END,
    code = e.code, reason = e.reason, message = e.message,
    response_headers = e.response_headers::jsonb, response = e.response,
    request_headers = e.request_headers::jsonb, request = e.request
FROM ended e JOIN locked l USING (id, source)
WHERE (r.id, r.source) = (e.id, e.source)
RETURNING r.id, r.source;

-- Of runs that somebody has in work: those that count no more.
-- name: stale_requests
SELECT r.id, r.source FROM requests r JOIN unnest($1::text[], $2::text[], $3::int[]) AS k (id, source, replays) USING (id, source)
WHERE r.state <> 'RECEIVED' OR r.replays <> k.replays;

-- name: find_requests
SELECT * FROM requests WHERE id = $1 AND ($2 = '' OR source = $2) ORDER BY source LIMIT 2;

-- name: list_requests
SELECT * FROM requests
WHERE ($1 = '' OR deployment = $1) AND ($2 = '' OR state = $2)
    AND ($3::timestamptz IS NULL OR (receive_time, id) < ($3, $4))
ORDER BY receive_time DESC, id DESC LIMIT $5;

-- name: lock_request
SELECT * FROM requests WHERE (id, source) = ($1, $2) FOR UPDATE;

-- name: run_request_again
UPDATE requests SET
    state = 'RECEIVED', replays = replays + 1, attempts = 0, end_time = NULL, deadline = $3, version = '',
    code = '', reason = '', message = '', response_headers = NULL, response = NULL,
    request_headers = NULL, request = NULL
WHERE (id, source) = ($1, $2);

-- name: forget_requests
WITH old AS (
    SELECT id, source FROM requests WHERE receive_time < $1 AND state <> 'RECEIVED' ORDER BY receive_time LIMIT $2
)
DELETE FROM requests r USING old WHERE (r.id, r.source) = (old.id, old.source) RETURNING true;

-- Of one that somebody else ended: its record is known to who had it in work.
-- name: keep_request_record
UPDATE requests SET request_headers = $3::text::jsonb, request = $4, subject = $5
WHERE (id, source) = ($1, $2) AND request IS NULL AND state IN ('FAILED', 'EXPIRED', 'CANCELLED');

-- Which of them were sent before their subject was erased from the data of a model that they may come to.
-- name: erased_requests
SELECT r.id, r.source
FROM requests r JOIN unnest($1::text[], $2::text[], $3::text[]) AS k (id, source, subject) USING (id, source)
WHERE EXISTS (
    SELECT FROM erasures e
    WHERE r.send_time <= e.erase_time AND e.digest = sha256(convert_to(e.id || k.subject, 'UTF8'))
        AND (SELECT coalesce(bool_or(v.dataset IN ('', e.dataset)), true)
             FROM deployments d JOIN served_versions v USING (model) WHERE d.name = r.deployment)
);

-- name: erase_late_requests
DELETE FROM requests r USING unnest($1::text[], $2::text[]) AS k (id, source), erasures e
WHERE (r.id, r.source) = (k.id, k.source) AND r.send_time <= e.erase_time AND r.dataset IN ('', e.dataset)
    AND e.digest = sha256(convert_to(e.id || r.subject, 'UTF8'))
RETURNING r.id, r.source;
