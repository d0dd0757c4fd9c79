-- name: put_run
INSERT INTO runs (id, job, attempt, pipeline, node, traceparent, state, reason, message, epoch, epochs, loss,
                  remaining_seconds, resumed_epoch, metrics, model_version, start_time, end_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
ON CONFLICT (id) DO UPDATE SET
    state = excluded.state, reason = excluded.reason, message = excluded.message, epoch = excluded.epoch,
    epochs = excluded.epochs, loss = excluded.loss, remaining_seconds = excluded.remaining_seconds,
    resumed_epoch = excluded.resumed_epoch, metrics = excluded.metrics, model_version = excluded.model_version,
    end_time = excluded.end_time;

-- name: get_run
SELECT * FROM runs WHERE id = $1;

-- name: list_runs
SELECT * FROM runs WHERE ($1 = '' OR job = $1) AND (start_time, id) < ($2, $3)
ORDER BY start_time DESC, id DESC LIMIT $4;

-- name: recent_runs
SELECT * FROM runs WHERE node = $1 ORDER BY start_time DESC LIMIT $2;
