-- Requests that came over Kafka, and how they ended. By ce_id and ce_source: what comes again finds its answer here.
CREATE TABLE requests (
    id              text        NOT NULL,
    source          text        NOT NULL,
    deployment      text        NOT NULL,
    state           text        NOT NULL DEFAULT 'RECEIVED'
        CHECK (state IN ('RECEIVED', 'ANSWERED', 'FAILED', 'EXPIRED', 'CANCELLED')),
    priority        text        NOT NULL,
    deadline        timestamptz,
    reply_topic     text        NOT NULL,
    partition_key   text        NOT NULL,
    content_type    text        NOT NULL,
    traceparent     text        NOT NULL,
    -- Its event's own time, by which an erasure tells what was asked before it.
    send_time       timestamptz NOT NULL,
    receive_time    timestamptz NOT NULL,
    -- Of the run that ended, or is under way.
    replays         int         NOT NULL DEFAULT 0,
    attempts        int         NOT NULL DEFAULT 0,
    end_time        timestamptz,
    version         text        NOT NULL DEFAULT '',
    -- Whose data it was about, where it said so, and the dataset of the model that answered: an erasure finds it by both.
    subject         text        NOT NULL DEFAULT '',
    dataset         text        NOT NULL DEFAULT '',
    code            text        NOT NULL DEFAULT '',
    reason          text        NOT NULL DEFAULT '',
    message         text        NOT NULL DEFAULT '',
    -- The response as it was or will be published, once it has ended: headers as [[name, text]], and the payload.
    response_headers jsonb,
    response         bytea,
    -- The request's own record, where it ended without an answer and may be replayed.
    request_headers  jsonb,
    request          bytea,
    PRIMARY KEY (id, source)
) WITH (fillfactor = 60);
CREATE INDEX requests_by_time ON requests (receive_time, id);
-- By hash: no other index takes a text of any length.
CREATE INDEX requests_by_subject ON requests USING hash (subject) WHERE subject <> '';
