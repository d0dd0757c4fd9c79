-- The schemas that datasets had. Events may name the version by which they were written, and a dataset version is
-- read by the one by which it was cut.
create table dataset_schemas (
    dataset text not null references datasets (name),
    version integer not null,
    -- The message headrace.api.ingestion.v1.Schema as JSON.
    schema jsonb not null,
    create_time timestamptz not null,
    primary key (dataset, version)
);

-- Earlier ones were not kept.
insert into dataset_schemas (dataset, version, schema, create_time)
select name, schema_version, schema, update_time from datasets;

-- The last version that took a declaration, since events that became rows before may be none by it.
alter table datasets add column declared_version integer not null default 0;
