-- How much of a deployment there may be; how much there is to be, and where; where requests find it, and since when. '{}': on every
-- server. Whether a request found it nowhere, and waits.
ALTER TABLE deployments
    ADD COLUMN scaling jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN scale jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN placed jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN placed_time timestamptz,
    ADD COLUMN demanded boolean NOT NULL DEFAULT false;

-- Of the model's file, in bytes; 0 where an earlier release stored the version.
ALTER TABLE served_versions ADD COLUMN size bigint NOT NULL DEFAULT 0;
