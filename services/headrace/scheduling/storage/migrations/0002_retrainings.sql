-- Alerts of drift, and what they led to.
CREATE TABLE retrainings (
    episode         uuid        PRIMARY KEY,
    pipeline        text        NOT NULL,
    deployment      text        NOT NULL,
    model_version   bigint      NOT NULL,
    -- What the drifting version was trained on.
    dataset_version bigint      NOT NULL,
    state           text        NOT NULL CHECK (state IN ('WAITING', 'STARTED', 'WITHDRAWN')),
    reason          text,
    message         text        NOT NULL,
    job             text        NOT NULL,
    alert_time      timestamptz NOT NULL,
    update_time     timestamptz NOT NULL
);
CREATE INDEX retrainings_of_pipeline ON retrainings (pipeline, alert_time DESC);
CREATE INDEX retrainings_waiting ON retrainings (alert_time) WHERE state = 'WAITING';
