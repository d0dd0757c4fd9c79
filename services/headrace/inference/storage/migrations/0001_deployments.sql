-- Promoted versions, as the registry told: a copy, so that a deployment made later finds them.
CREATE TABLE served_versions (
    model       text   NOT NULL,
    version     bigint NOT NULL,
    uri         text   NOT NULL,
    sha256      text   NOT NULL,
    -- headrace.api.registry.v1.Signature
    signature   bytea  NOT NULL,
    traceparent text   NOT NULL,
    PRIMARY KEY (model, version)
);

CREATE TABLE deployments (
    name         text             PRIMARY KEY,
    model        text             NOT NULL,
    steps        int[]            NOT NULL,
    hold_seconds double precision NOT NULL,
    -- {"3": 90, "4": 10}: shares of versions that were loaded when they got them.
    traffic      jsonb            NOT NULL DEFAULT '{}',
    loaded       bigint[]         NOT NULL DEFAULT '{}',
    message      text             NOT NULL DEFAULT '',
    deleted      boolean          NOT NULL DEFAULT false,
    create_time  timestamptz      NOT NULL,
    update_time  timestamptz      NOT NULL
);

CREATE TABLE rollouts (
    id           uuid        PRIMARY KEY,
    deployment   text        NOT NULL REFERENCES deployments (name) ON DELETE CASCADE,
    from_version bigint      NOT NULL,
    to_version   bigint      NOT NULL,
    state        text        NOT NULL
        CHECK (state IN ('LOADING', 'PROGRESSING', 'SUCCEEDED', 'ROLLED_BACK', 'FAILED')),
    step         int         NOT NULL,
    weight       int         NOT NULL,
    message      text        NOT NULL,
    traceparent  text        NOT NULL,
    create_time  timestamptz NOT NULL,
    step_time    timestamptz NOT NULL,
    end_time     timestamptz
);
CREATE INDEX rollouts_by_deployment ON rollouts (deployment, create_time DESC);
-- One at a time.
CREATE UNIQUE INDEX rollouts_in_progress ON rollouts (deployment) WHERE end_time IS NULL;

CREATE TABLE predictions (
    event_id      text             PRIMARY KEY,
    prediction_id text             NOT NULL,
    deployment    text             NOT NULL,
    version       bigint           NOT NULL,
    time          timestamptz      NOT NULL,
    seconds       double precision NOT NULL,
    inputs        jsonb            NOT NULL,
    outputs       jsonb            NOT NULL,
    -- The answer as a number, where the request asked for one row: what feedback is compared with.
    answer        double precision,
    traceparent   text             NOT NULL
);
CREATE INDEX predictions_by_id ON predictions (deployment, prediction_id);
CREATE INDEX predictions_by_time ON predictions (deployment, time DESC, event_id DESC);

CREATE TABLE feedback (
    deployment    text        NOT NULL,
    prediction_id text        NOT NULL,
    label         jsonb       NOT NULL,
    time          timestamptz NOT NULL,
    PRIMARY KEY (deployment, prediction_id)
);
