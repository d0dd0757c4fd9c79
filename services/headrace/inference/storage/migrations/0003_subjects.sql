-- Which dataset a version was trained on; '' of those that were promoted before this was kept.
ALTER TABLE served_versions ADD COLUMN dataset text NOT NULL DEFAULT '';

-- Whose data a request was about, as its caller names them; '' where it named nobody. `dataset` is that of the model's
-- version, by which an erasure finds them.
ALTER TABLE predictions
    ADD COLUMN subject text NOT NULL DEFAULT '',
    ADD COLUMN dataset text NOT NULL DEFAULT '';
-- By hash: no other index takes a text of any length.
CREATE INDEX predictions_by_subject ON predictions USING hash (subject) WHERE subject <> '';

-- Erasures, for as long as predictions from before them may still be read from the topic.
CREATE TABLE erasures (
    id               text        PRIMARY KEY,
    dataset          text        NOT NULL,
    -- SHA-256 of the id and the subject.
    digest           bytea       NOT NULL,
    erase_time       timestamptz NOT NULL,
    prediction_count bigint      NOT NULL
);
CREATE INDEX erasures_by_time ON erasures (erase_time);
