-- Which version of the dataset a model version was trained on; 0 of those that were promoted before this was kept.
ALTER TABLE served_versions ADD COLUMN dataset_version bigint NOT NULL DEFAULT 0;

-- headrace.inference.domain.drift.DriftRules as JSON; null: the default.
ALTER TABLE deployments ADD COLUMN drift jsonb;

-- How far each deployment's version is watched. Outlives the deployment until what it began is told to be over.
CREATE TABLE drift_watches (
    deployment text        PRIMARY KEY,
    version    bigint      NOT NULL,
    -- Requests from here on are new.
    since      timestamptz NOT NULL,
    -- Windows in a row that drift, and that do not.
    drifting   int         NOT NULL,
    calm       int         NOT NULL,
    -- The one that goes on.
    episode    uuid,
    message    text        NOT NULL,
    -- Grows with each change; a writer names the one that it saw.
    revision   bigint      NOT NULL DEFAULT 1
);

-- The last windows of each deployment.
CREATE TABLE drift_windows (
    deployment text        NOT NULL,
    end_time   timestamptz NOT NULL,
    version    bigint      NOT NULL,
    begin_time timestamptz NOT NULL,
    requests   bigint      NOT NULL,
    row_count  bigint      NOT NULL,
    -- headrace.inference.domain.drift.Finding, each as JSON. Statistics only: no value of any request.
    findings   jsonb       NOT NULL,
    PRIMARY KEY (deployment, end_time)
);

CREATE TABLE drift_episodes (
    id              uuid        PRIMARY KEY,
    deployment      text        NOT NULL,
    model           text        NOT NULL,
    version         bigint      NOT NULL,
    dataset         text        NOT NULL,
    dataset_version bigint      NOT NULL,
    columns         text[]      NOT NULL,
    begin_time      timestamptz NOT NULL,
    end_time        timestamptz,
    end_reason      text CHECK (end_reason IN ('RECOVERED', 'REPLACED'))
);
CREATE INDEX drift_episodes_by_deployment ON drift_episodes (deployment, begin_time DESC);
