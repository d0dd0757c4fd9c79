CREATE TABLE models (
    name           text        PRIMARY KEY,
    gates          jsonb       NOT NULL,
    latest_version bigint      NOT NULL DEFAULT 0,
    create_time    timestamptz NOT NULL,
    update_time    timestamptz NOT NULL
);

CREATE TABLE model_versions (
    model        text        NOT NULL REFERENCES models (name),
    version      bigint      NOT NULL,
    -- What makes creating a version idempotent: the same request is answered the same version.
    request_id   text        NOT NULL,
    state        text        NOT NULL CHECK (state IN ('UPLOADING', 'PROMOTED', 'REFUSED')),
    metrics      jsonb       NOT NULL,
    lineage      bytea       NOT NULL,
    signature    bytea       NOT NULL,
    gate_results jsonb       NOT NULL DEFAULT '[]',
    traceparent  text        NOT NULL,
    create_time  timestamptz NOT NULL,
    close_time   timestamptz,
    PRIMARY KEY (model, version),
    UNIQUE (model, request_id)
);

CREATE TABLE artifacts (
    model   text   NOT NULL,
    version bigint NOT NULL,
    path    text   NOT NULL,
    size    bigint NOT NULL,
    sha256  text   NOT NULL,
    uri     text   NOT NULL,
    PRIMARY KEY (model, version, path),
    FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
);

CREATE TABLE aliases (
    model   text   NOT NULL REFERENCES models (name),
    alias   text   NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (model, alias),
    FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
);
