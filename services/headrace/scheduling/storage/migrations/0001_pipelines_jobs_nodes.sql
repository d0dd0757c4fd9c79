CREATE TABLE pipelines (
    name        text        PRIMARY KEY,
    spec        jsonb       NOT NULL,
    generation  bigint      NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL
);

-- A job carries all that its run needs (training, schema, dataset version), so that placing it asks nobody;
-- these are serialized messages, read with every change of a job, which as JSON took most of a round.
CREATE TABLE jobs (
    id                    uuid        PRIMARY KEY,
    pipeline              text        NOT NULL,
    dataset_version       bigint      NOT NULL,
    -- Started by a new dataset version, and not by a user.
    automatic             boolean     NOT NULL,
    request_id            text        NOT NULL DEFAULT '',
    state                 text        NOT NULL,
    reason                text        NOT NULL,
    message               text        NOT NULL,
    priority              integer     NOT NULL,
    cpu_millis            bigint      NOT NULL,
    memory                bigint      NOT NULL,
    gpu                   integer     NOT NULL,
    max_retries           integer     NOT NULL,
    deadline              interval,
    attempt               integer     NOT NULL,
    failures              integer     NOT NULL,
    node                  text        NOT NULL,
    progress              jsonb,
    metrics               jsonb       NOT NULL,
    model_version         bigint      NOT NULL,
    create_time           timestamptz NOT NULL,
    queue_time            timestamptz NOT NULL,
    start_time            timestamptz,
    attempt_start_time    timestamptz,
    end_time              timestamptz,
    traceparent           text        NOT NULL,
    placement_traceparent text        NOT NULL,
    training              bytea       NOT NULL,
    dataset_schema        bytea       NOT NULL,
    dataset               bytea       NOT NULL,
    -- Grows with each change of state; writers name the one they saw.
    version               bigint      NOT NULL
);

-- One automatic job for each dataset version, however often its event comes.
CREATE UNIQUE INDEX jobs_automatic ON jobs (pipeline, dataset_version) WHERE automatic;
CREATE UNIQUE INDEX jobs_request ON jobs (request_id) WHERE request_id <> '';
CREATE INDEX jobs_queue ON jobs ((-priority), create_time, id) WHERE state = 'QUEUED';
CREATE INDEX jobs_on_node ON jobs (node) WHERE state IN ('PLACED', 'RUNNING', 'CANCELLING');
CREATE INDEX jobs_newest ON jobs (create_time DESC, id DESC);
CREATE INDEX jobs_newest_of_pipeline ON jobs (pipeline, create_time DESC, id DESC);

CREATE TABLE nodes (
    name             text        PRIMARY KEY,
    version          text        NOT NULL,
    cpu_millis       bigint      NOT NULL,
    memory           bigint      NOT NULL,
    gpu              integer     NOT NULL,
    -- The stream that speaks for the node; a later one takes over.
    session          uuid        NOT NULL,
    lease_until      timestamptz NOT NULL,
    last_report_time timestamptz NOT NULL,
    -- Attempts that the last report called active: [[job, attempt, gpu, cpu_millis, memory], ...].
    reported         jsonb       NOT NULL
);

-- Grows with each change of leadership. A leader's writes hold a share lock on its epoch, so that one that was
-- replaced without noticing can write no more.
CREATE TABLE leadership (
    epoch bigint NOT NULL
);
INSERT INTO leadership (epoch) VALUES (0);

-- Everything that waits for a change listens here, whichever instance made it.
CREATE FUNCTION notify_job_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    nodes text[] := ARRAY[NEW.node];
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.node <> NEW.node THEN
        nodes := nodes || OLD.node;
    END IF;
    PERFORM pg_notify(
        'headrace_scheduling',
        json_build_object('schema', TG_TABLE_SCHEMA, 'job', NEW.id, 'nodes', nodes)::text
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER job_changed AFTER INSERT OR UPDATE ON jobs
    FOR EACH ROW EXECUTE FUNCTION notify_job_change();

CREATE FUNCTION notify_node_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(
        'headrace_scheduling',
        json_build_object('schema', TG_TABLE_SCHEMA, 'nodes', ARRAY[NEW.name])::text
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER node_attached AFTER INSERT ON nodes
    FOR EACH ROW EXECUTE FUNCTION notify_node_change();
-- Not at each report: most say that nothing has changed.
CREATE TRIGGER node_changed AFTER UPDATE ON nodes
    FOR EACH ROW WHEN (
        (OLD.session, OLD.cpu_millis, OLD.memory, OLD.gpu, OLD.reported)
        IS DISTINCT FROM (NEW.session, NEW.cpu_millis, NEW.memory, NEW.gpu, NEW.reported)
    ) EXECUTE FUNCTION notify_node_change();
