-- What was done to each model, in order; written with the change itself, and never changed.
CREATE TABLE audit (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model       text        NOT NULL REFERENCES models (name),
    action      text        NOT NULL,
    -- 0: no version is meant.
    version     bigint      NOT NULL,
    details     text        NOT NULL,
    traceparent text        NOT NULL,
    time        timestamptz NOT NULL
);

CREATE INDEX audit_by_model ON audit (model, id);
