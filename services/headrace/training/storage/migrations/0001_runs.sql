CREATE TABLE runs (
    id                text             PRIMARY KEY,
    job               text             NOT NULL,
    attempt           int              NOT NULL,
    pipeline          text             NOT NULL,
    node              text             NOT NULL,
    traceparent       text             NOT NULL,
    state             text             NOT NULL
        CHECK (state IN ('STARTING', 'RUNNING', 'REGISTERING', 'SUCCEEDED', 'FAILED', 'STOPPED')),
    reason            text             NOT NULL,
    message           text             NOT NULL,
    epoch             bigint           NOT NULL,
    epochs            bigint           NOT NULL,
    loss              double precision NOT NULL,
    remaining_seconds double precision NOT NULL,
    resumed_epoch     bigint           NOT NULL,
    metrics           jsonb            NOT NULL,
    model_version     bigint           NOT NULL,
    start_time        timestamptz      NOT NULL,
    end_time          timestamptz
);
CREATE INDEX runs_by_node ON runs (node, start_time DESC);
CREATE INDEX runs_by_time ON runs (start_time DESC, id DESC);
